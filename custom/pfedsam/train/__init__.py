"""Train: losses, distillation, one step, one loop, metrics."""
