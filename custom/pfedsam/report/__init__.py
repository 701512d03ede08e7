"""Report: a run's results as a page, with charts and pictures."""
