"""Data: turns a site's files into tensors."""
