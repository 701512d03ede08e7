"""Model: backbones, LoRA, L-MoE, decoder, branches, and the partition of their parameters."""
