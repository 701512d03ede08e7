"""The gated CRF term (Obukhov et al. 2019): pixels that are near and look alike should be of one class.

It teaches what weak labels leave open. Side, reach and the two deviations are our choice.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 64  # the term is computed on maps of at most this side
REACH = 3  # how many of their pixels apart two may be
NEAR, ALIKE = 2.0, 0.1  # deviations of the kernel: in pixels of the maps, and in colours of 0..1


def gated_crf(logits: Tensor, image: Tensor, gate: Tensor, *, exclusive: bool) -> Tensor:
    """The mean energy of a pixel, a scalar: sum over its neighbours of the kernel times how unlike their classes are.

    Args:
        logits: (B, outputs, h, h).
        image: (B, 3, S, S), colours in 0..1 up to an offset.
        gate: (B, 1, L, L), 1 for a pixel that takes energy, here one without a label.
        exclusive: take a softmax over the channels. Otherwise each channel has two classes, and they are averaged.
    """
    side = min(SIDE, logits.shape[-1])
    logits, colour = (F.adaptive_avg_pool2d(maps.float(), side) for maps in (logits, image))
    found = logits.softmax(1) if exclusive else logits.sigmoid()
    takes = F.adaptive_avg_pool2d(gate, side)
    energy = [pairs(found, colour, takes, down, right) for down, right in neighbours(REACH)]
    return torch.stack(energy).sum() / (len(found) * side**2 * (2 if exclusive else found.shape[1]))


def pairs(found: Tensor, colour: Tensor, takes: Tensor, down: int, right: int) -> Tensor:
    """The energy of all pairs of pixels with one offset, a scalar. All maps are (B, channels, h, h)."""
    (p, q), (c, d), (g, h) = (shifted(maps, down, right) for maps in (found, colour, takes))
    distance = (down**2 + right**2) / NEAR**2 + (c - d).square().sum(1) / ALIKE**2
    unlike = (p + q - 2 * p * q).sum(1)  # with a softmax twice 1 - sum p q
    return ((-distance / 2).exp() * unlike * (g + h)[:, 0]).sum()


def neighbours(reach: int) -> Iterator[tuple[int, int]]:
    """Every offset of up to `reach` rows and columns, and of two opposite ones only the first."""
    for down in range(reach + 1):
        for right in range(-reach, reach + 1):
            if (down, right) > (0, 0):
                yield down, right


def shifted(maps: Tensor, down: int, right: int) -> tuple[Tensor, Tensor]:
    """The pixels that have a neighbour at an offset of `down` >= 0 and `right`, and these neighbours."""
    height, width = maps.shape[-2:]
    left = max(0, -right)
    columns = width - abs(right)
    here = maps[..., : height - down, left : left + columns]
    return here, maps[..., down:, left + right : left + right + columns]
