"""Inference: a model file, and what it predicts."""
