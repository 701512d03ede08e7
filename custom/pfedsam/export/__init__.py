"""Models that leave a run: one file, its card, ONNX, a MONAI bundle, and their checks."""
