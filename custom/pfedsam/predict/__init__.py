"""Predict: masks for a site's own files, written in the format and place of the files."""
