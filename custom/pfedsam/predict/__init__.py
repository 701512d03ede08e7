"""Predict: masks of a site's own files, in the files' format and geometry."""
