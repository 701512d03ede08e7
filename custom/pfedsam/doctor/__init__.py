"""Doctor: what a configuration needs on this machine, measured by a small real run of it."""
