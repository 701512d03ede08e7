"""All fuzz targets."""

from fuzz import files, stores, wire

TARGETS = (*wire.TARGETS, *stores.TARGETS, *files.TARGETS)
