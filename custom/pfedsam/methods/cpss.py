"""CPSS (arXiv 2106.03422): FedAvg in which patches of early features swap mean and deviation in training.

Built from a description: features are cut into patches, and a patch takes over the mean and the deviation of another
one (AdaIN), channel by channel. Our choices: the features are those of the patch embedding, before SAM adds positions,
because these must stay where they are. The partners come from the whole batch. Half of the patches swap. A patch that
is nearly flat, such as black padding, gives its mean but not its deviation, which would erase the other's content.
The paper's second use, to adapt to a new site without the source's data, is `cpss_adapt`.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.methods import fedavg
from pfedsam.methods.base import uncached
from pfedsam.model import build
from pfedsam.model.segmenter import Segmenter
from pfedsam.model.vit import PatchAndPosition

LEAST = 0.1  # a patch keeps at least this part of its deviation; our choice


@dataclass(frozen=True)
class Settings:
    """CPSS's own settings. Both are our choice."""

    patches: int = number(4, least=1, most=64)  # along each side of the features; fewer if that does not divide them
    share: float = number(0.5, least=0, most=1)  # of the patches that take over another's style in a step


def adapters(branch: Segmenter, config: Config) -> None:
    """Put LoRA into the encoder, as in FedAvg, and the swap behind its patch embedding."""
    build.lora(branch, config)
    entry = branch.encoder.units[0]
    last = isinstance(entry, PatchAndPosition)
    embedding = entry.patch_embed if last else entry
    embedding.register_forward_hook(partial(in_training, config.own(Settings), last))  # type: ignore[union-attr]


def in_training(own: Settings, last: bool, module: nn.Module, _given: object, found: Tensor) -> Tensor:
    """An embedding's output with swapped styles in training, and unchanged in evaluation.

    The partners come from torch's generator, which each round seeds, so a repeated round has the same.

    Args:
        last: whether channels are the last axis, (B, H, W, C), as in SAM's ViT. Otherwise (B, C, H, W).
    """
    if not module.training:
        return found
    maps = found.permute(0, 3, 1, 2) if last else found
    count = len(maps) * math.gcd(own.patches, *maps.shape[-2:]) ** 2
    chance, partner = torch.rand(2, count, device=maps.device)  # a permutation without a value that a GPU must tell
    styled = swapped(maps, own.patches, partner.argsort(), chance < own.share)
    return styled.permute(0, 2, 3, 1) if last else styled


def swapped(maps: Tensor, patches: int, partner: Tensor, swaps: Tensor) -> Tensor:
    """The maps (B, C, H, W), in which each patch that `swaps` has its partner's mean and deviation by channel.

    Args:
        patches: along each side. If that does not divide both sides, the largest number below that divides it and both.
        partner: the number of each patch's partner, (B n n), counted by image, then row, then column.
        swaps: which patches take over their partner's style, (B n n) of bool.
    """
    images, channels, height, width = maps.shape
    n = math.gcd(patches, height, width)
    cut = maps.reshape(images, channels, n, height // n, n, width // n).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    mean, deviation = cut.mean((2, 3), keepdim=True), cut.std((2, 3), keepdim=True, correction=0) + 1e-5
    factor = (deviation[partner] / deviation).clamp_min(LEAST)
    styled = torch.where(swaps.view(-1, 1, 1, 1), (cut - mean) * factor + mean[partner], cut)
    whole = styled.view(images, n, n, channels, height // n, width // n).permute(0, 3, 1, 4, 2, 5)
    return whole.reshape(maps.shape)


METHOD = replace(fedavg.METHOD, adapt=adapters, augment=uncached, settings=Settings)
