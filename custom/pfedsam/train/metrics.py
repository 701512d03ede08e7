"""Dice, IoU, HD95 and ASSD of one case, by MONAI, and their summary over cases.

A class that the reference lacks is not scored (1 for nothing found would be a free point): it is
counted, and so are the cases among them where the model found something.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
)
from torch import Tensor

# MONAI's distance metrics call a function of their own in a way that MONAI has deprecated.
warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning)

METRICS = ("dice", "iou", "hd95", "assd")


@dataclass(frozen=True)
class CaseScore:
    """One class of one case; the metrics are None where the reference is empty.

    Distances are in mm (in pixels where the file knows no spacing). A case where the model found
    nothing takes the image's diagonal as its distance: our choice, so that finding nothing costs.
    """

    cls: int
    dice: float | None
    iou: float | None
    hd95: float | None
    assd: float | None
    found: bool


def score(found: Tensor, truth: Tensor, spacing: Sequence[float]) -> list[CaseScore]:
    """A score per class.

    Args:
        found: (C, H, W) or (C, H, W, slices) of bool.
        truth: the same shape.
        spacing: mm per voxel, as many values as spatial axes.
    """
    return [_score_class(i + 1, found[i], truth[i], spacing) for i in range(len(truth))]


def summary(scores: Sequence[CaseScore]) -> dict[str, float | int | None]:
    """Mean over cases per class, then over classes; with counts of cases, empty references, false alarms."""
    empty = [s for s in scores if s.dice is None]
    row: dict[str, float | int | None] = {name: _mean_over_classes(scores, name) for name in METRICS}
    return row | {
        "scored": len(scores) - len(empty),
        "empty": len(empty),
        "false_alarms": sum(s.found for s in empty),
    }


def _score_class(cls: int, found: Tensor, truth: Tensor, spacing: Sequence[float]) -> CaseScore:
    if not truth.any():
        return CaseScore(cls, None, None, None, None, bool(found.any()))
    p, t = found[None, None].float(), truth[None, None].float()
    hd95, assd = _distances(p, t, spacing) if found.any() else (_diagonal(truth, spacing),) * 2
    return CaseScore(cls, compute_dice(p, t).item(), compute_iou(p, t).item(), hd95, assd, bool(found.any()))


def _distances(p: Tensor, t: Tensor, spacing: Sequence[float]) -> tuple[float, float]:
    options = {"include_background": True, "spacing": list(spacing)}
    hd95 = compute_hausdorff_distance(p, t, percentile=95, **options)
    assd = compute_average_surface_distance(p, t, symmetric=True, **options)
    return hd95.item(), assd.item()


def _diagonal(truth: Tensor, spacing: Sequence[float]) -> float:
    return math.dist([0.0] * truth.dim(), [n * s for n, s in zip(truth.shape, spacing, strict=True)])


def _mean_over_classes(scores: Sequence[CaseScore], name: str) -> float | None:
    by_class: dict[int, list[float]] = {}
    for s in scores:
        if getattr(s, name) is not None:
            by_class.setdefault(s.cls, []).append(getattr(s, name))
    means = [torch.tensor(v, dtype=torch.float64).mean().item() for v in by_class.values()]
    return sum(means) / len(means) if means else None
