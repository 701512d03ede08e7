"""Preparing a site: from a hospital's folder to a datalist that training reads, with a report in words."""
