"""Data: from a site's files to tensors."""
