"""All fuzz targets."""

from fuzz import stores, wire

TARGETS = (*wire.TARGETS, *stores.TARGETS)
