"""Record: what happened in a run, in numbers and texts. Pure and light: no model, no plot, no FLARE."""
