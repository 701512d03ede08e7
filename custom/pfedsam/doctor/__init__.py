"""Doctor: measures in a small real run what a job needs on this machine."""
