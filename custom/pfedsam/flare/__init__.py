"""FLARE: thin adapters; the only room that imports nvflare."""
