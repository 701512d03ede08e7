"""One branch as plain modules: LoRA inside the weights, experts without branching on data."""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from pfedsam.model.lora import LoRA, LoRALinear
from pfedsam.model.moe import LocalMoE, by_window, mix_all, route
from pfedsam.model.segmenter import Segmenter


class Whole(nn.Module):
    """Logits (B, outputs, h, h) from RGB images (B, 3, S, S) of 0..1: the normalisation is inside.

    Args:
        branch: the segmenter.
        mean, std: the backbone's normalisation, (3, 1, 1), for images of 0..1.
    """

    def __init__(self, branch: Segmenter, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.branch = branch
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)

    def forward(self, image: Tensor) -> Tensor:
        """The whole chain."""
        return cast(Tensor, self.branch((image - self.mean) / self.std))


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
        weights = gates * chosen if self.multiplied else chosen
        return mix_all(h, self.experts, weights)


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
    whole = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    whole.weight = nn.Parameter(base.weight + lora.scale * lora.b.weight @ lora.a.weight, requires_grad=False)
    if base.bias is not None:
        whole.bias = nn.Parameter(base.bias.detach().clone(), requires_grad=False)
    return whole
