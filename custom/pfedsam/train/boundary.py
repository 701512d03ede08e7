"""FedDG's boundary-oriented loss (Liu et al. 2021): embeddings of boundaries are alike, and unlike the others."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pfedsam.data.values import IGNORED
from pfedsam.train.losses import one_hot

INSIDE, AROUND = 1, 5  # pixels of the label: how wide the boundary is, and the ring around it
FAR = -1e4  # the logarithm of nothing, which a sum of exponentials ignores


def boundary_loss(maps: Sequence[Tensor], label: Tensor, *, classes: int, temperature: float) -> Tensor:
    """The contrast of each class's boundary with its surroundings, summed over the classes, a scalar.

    Args:
        maps: embeddings of the same images in several styles, (B, C, side, side) each.
        label: (B, L, L) of class numbers, from 1 to `classes`. Another number is no class.
    """
    areas = zip(*(found.unbind(1) for found in regions(label, maps[0].shape[-1], classes)), strict=True)  # by class
    vectors = ([torch.cat([pooled(one, area[:, None]) for one in maps]) for area in pair] for pair in areas)
    return torch.stack([contrast(edge, ring, temperature) for edge, ring in vectors]).sum()


def regions(label: Tensor, side: int, classes: int = 1) -> tuple[Tensor, Tensor]:
    """The boundary within each class's objects and the ring around them, (B, classes, side, side): shares of a place.

    Args:
        label: (B, L, L) of class numbers. Pixels without a label are in neither. Other classes may be in a ring.
    """
    marked = one_hot(label, classes, background=False)
    known = (label != IGNORED)[:, None].float()
    edge = marked * F.max_pool2d(1 - marked, 2 * INSIDE + 1, 1, INSIDE)
    ring = (F.max_pool2d(marked, 2 * AROUND + 1, 1, AROUND) - marked) * known
    return F.adaptive_avg_pool2d(edge, side), F.adaptive_avg_pool2d(ring, side)


def pooled(embedding: Tensor, weight: Tensor) -> Tensor:
    """The mean embedding in a region, (B, C), of length 1. Zeros where the region is empty."""
    return F.normalize((embedding.float() * weight).sum((2, 3)), dim=1)


def contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The mean over pairs of one kind of -log(e(pair) / (e(pair) + sum of e(vector, one of the other kind))), a scalar.

    e is the exponential of the cosine over the temperature. 0 without two of a kind.

    Args:
        first, second: the vectors of both kinds, (N, C) each, of length 1. Zeros stand for a missing one.
    """
    terms = [of_kind(*kinds, temperature) for kinds in ((first, second), (second, first))]
    return torch.stack([sums for sums, _ in terms]).sum() / torch.stack([n for _, n in terms]).sum().clamp_min(1)


def of_kind(own: Tensor, other: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The sum over ordered pairs of `own`, and their number."""
    here, there = own.any(1), other.any(1)
    alike = own @ own.T / temperature
    unlike = (own @ other.T / temperature).masked_fill(~there, FAR).logsumexp(1, keepdim=True)
    pairs = here[:, None] & here & ~torch.eye(len(own), dtype=torch.bool, device=own.device)
    return ((torch.logaddexp(alike, unlike) - alike) * pairs).sum(), pairs.sum()
