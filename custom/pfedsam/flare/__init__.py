"""FLARE: thin adapters. This is the only room that imports nvflare."""
