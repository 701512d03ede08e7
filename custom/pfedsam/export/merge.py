"""One branch as plain modules: LoRA inside the weights, experts without branching on data."""

import copy

import torch
from torch import Tensor, nn

from pfedsam.model.lora import LoRA, LoRALinear
from pfedsam.model.moe import LocalMoE, by_window, mix_all, route, weights_of
from pfedsam.model.segmenter import Segmenter


class Dense(nn.Module):
    """A `LocalMoE` in evaluation, as a graph that does not depend on the data (`mix_all`)."""

    def __init__(self, moe: LocalMoE) -> None:
        super().__init__()
        self.score, self.experts = moe.gate.score, moe.experts
        self.top_k, self.multiplied, self.window = moe.top_k, moe.multiplied, moe.window

    def forward(self, h: Tensor) -> Tensor:
        """(B, r, H, W) -> (B, r, H, W)."""
        return by_window(h, self.window, self._mixture)

    def _mixture(self, h: Tensor) -> Tensor:
        gates, chosen = route(self.score(h.mean((2, 3))), self.top_k)
        return mix_all(h, self.experts, weights_of(gates, chosen, multiplied=self.multiplied))


@torch.no_grad()
def plain(branch: Segmenter) -> Segmenter:
    """A copy of `branch` for export: the same logits (to 1e-4 in float32), no LoRA where it can be merged.

    A LoRA with experts in its bottleneck stays: which experts an image takes is not known beforehand.
    """
    found = copy.deepcopy(branch).eval().requires_grad_(False)
    for module in list(found.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoRALinear) and child.lora.mix is None:
                setattr(module, name, merged(child))
            elif isinstance(child, LoRA) and isinstance(child.mix, LocalMoE):
                child.mix = Dense(child.mix)
    return found


@torch.no_grad()
def merged(place: LoRALinear) -> nn.Linear:
    """W0 + (alpha / r) B A as one `Linear`, the base's bias with it."""
    base, lora = place.base, place.lora
    linear = copy.deepcopy(base).requires_grad_(False)
    linear.weight += lora.scale * lora.b.weight @ lora.a.weight
    return linear
