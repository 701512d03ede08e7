"""Report: results, table, plots, cards."""
