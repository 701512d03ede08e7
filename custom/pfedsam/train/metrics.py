"""Dice, IoU, surface Dice, HD95 and ASSD of one case."""

import warnings
from collections.abc import Sequence

import torch
from monai.metrics import compute_dice, compute_iou
from monai.metrics.utils import get_edge_surface_distance
from torch import Tensor

from pfedsam.record.measures import TOLERANCE, Unit
from pfedsam.record.scores import CaseScore

# MONAI's edges call a function of their own in a way that MONAI has deprecated.
warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning)


def score(
    found: Tensor, truth: Tensor, spacing: Sequence[float] | None = None, *, unit: Unit = "px"
) -> list[CaseScore]:
    """A score for each class, by MONAI's metrics.

    A class without reference pixels has no scores. If nothing is found, surface Dice is 0 and the
    distances are None. Both are our choice.

    Args:
        found: (C, H, W) or (C, H, W, slices) of bool.
        truth: the same shape.
        spacing: of the voxels in `unit`, one value for each spatial axis, in their order. None: no distances.
    """
    return [_score_class(i + 1, found[i], truth[i], spacing, unit) for i in range(len(truth))]


def _score_class(cls: int, found: Tensor, truth: Tensor, spacing: Sequence[float] | None, unit: Unit) -> CaseScore:
    measured = None if spacing is None else unit
    if not truth.any():
        return CaseScore(cls, None, None, None, None, bool(found.any()), unit=measured)
    p, t = found[None, None].float(), truth[None, None].float()
    dice, iou = compute_dice(p, t).item(), compute_iou(p, t).item()
    if spacing is None:
        return CaseScore(cls, dice, iou, None, None, bool(found.any()))
    if not found.any():
        return CaseScore(cls, dice, iou, None, None, False, 0.0, measured)
    surface_dice, hd95, assd = _distances(found, truth, spacing)
    return CaseScore(cls, dice, iou, hd95, assd, True, surface_dice, measured)


def _distances(found: Tensor, truth: Tensor, spacing: Sequence[float]) -> tuple[float, float, float]:
    """Surface Dice, HD95 and ASSD. MONAI finds the outlines once for all three."""
    _, ways, _ = get_edge_surface_distance(found, truth, spacing=list(spacing), symmetric=True)
    both = torch.cat(ways)
    hd95 = max(torch.quantile(way, 0.95).item() for way in ways)
    return (both <= TOLERANCE).double().mean().item(), hd95, both.mean().item()
