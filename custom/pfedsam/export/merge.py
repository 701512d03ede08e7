"""One branch as plain modules: LoRA inside the weights, experts without branching on data."""

import copy

import torch
from torch import nn

from pfedsam.model.lora import LoRALinear, loras
from pfedsam.model.moe import LocalMoE
from pfedsam.model.segmenter import Segmenter
from pfedsam.model.tinyvit import PixelGELU


@torch.no_grad()
def plain(branch: Segmenter) -> Segmenter:
    """A copy of `branch` for export: the same logits (to 1e-4 in float32), no LoRA where it can be merged.

    A LoRA with experts in its bottleneck stays: which experts an image takes is not known beforehand.
    """
    found = copy.deepcopy(branch).eval().requires_grad_(False)
    for module in list(found.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoRALinear) and not any(isinstance(m, LocalMoE) for m in child.modules()):
                setattr(module, name, merged(child))
            elif isinstance(child, LocalMoE):
                child.dense = True
            elif isinstance(child, PixelGELU):
                setattr(module, name, nn.GELU())  # a graph has no order in memory
    return found


@torch.no_grad()
def merged(place: LoRALinear) -> nn.Linear:
    """W0 and the detours' products, (alpha / r) B A, as one `Linear`, the base's bias with it."""
    linear = copy.deepcopy(place.base).requires_grad_(False)
    for lora in loras(place):
        linear.weight += lora.strength * lora.b.weight @ lora.a.weight
    return linear
