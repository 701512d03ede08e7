"""Dice, IoU, surface Dice, HD95 and ASSD of one case, and their summary over cases.

A class that the reference lacks is not scored (1 for nothing found would be a free point): it is
counted, and so are the cases among them where the model found something.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from monai.metrics import compute_dice, compute_iou
from monai.metrics.utils import get_edge_surface_distance
from torch import Tensor

# MONAI's edges call a function of their own in a way that MONAI has deprecated.
warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning)

Unit = Literal["mm", "px"]
OVERLAP = ("dice", "iou")
DISTANCES = ("surface_dice", "hd95", "assd")  # measured between outlines, and so in a unit
METRICS = ("dice", "iou", "detected", *DISTANCES)
TOLERANCE = 2.0  # mm, or pixels: how far an outline may be off for surface Dice; our choice
MIXED = "mixed"


@dataclass(frozen=True)
class CaseScore:
    """One class of one case; the metrics are None where the reference is empty.

    HD95 is the larger of the two directed 95th percentiles, ASSD the mean over both outlines, surface Dice the share
    of both outlines that lies within `TOLERANCE` of the other. An outline is the mask's pixels (or voxels) with a
    neighbour outside it, across a side or a face; beyond the image is outside. Each of them counts alike.
    HD95 and ASSD are None where nothing was found: there is no outline to measure from. Surface Dice is 0 there.

    Attributes:
        found: whether the model found any pixel of the class, wherever.
        unit: of the distances; None where they were not measured.
    """

    cls: int
    dice: float | None
    iou: float | None
    hd95: float | None
    assd: float | None
    found: bool
    surface_dice: float | None = None
    unit: Unit | None = None

    @property
    def detected(self) -> float | None:
        """1 where the class is there and something of it was found, 0 where nothing was; None where it is not there."""
        return None if self.dice is None else float(self.found)


def score(
    found: Tensor, truth: Tensor, spacing: Sequence[float] | None = None, *, unit: Unit = "px"
) -> list[CaseScore]:
    """A score per class.

    Args:
        found: (C, H, W) or (C, H, W, slices) of bool.
        truth: the same shape.
        spacing: of the voxels in `unit`, as many values as spatial axes, in their order; None: no distances.
    """
    return [_score_class(i + 1, found[i], truth[i], spacing, unit) for i in range(len(truth))]


def summary(scores: Sequence[CaseScore]) -> dict[str, Any]:
    """Means over cases per class, then over classes; with counts of cases, empty references, false alarms.

    `detected` is the share of the scored cases in which something was found; HD95 and ASSD are means over these alone.
    The row has distances only where they were measured. `unit` is theirs; where cases have several it is "mixed", the
    means of the distances are None, and `by_unit` has them for each unit alone.
    """
    empty = [s for s in scores if s.dice is None]
    row = _means(scores, (*OVERLAP, "detected")) | _distances_row(scores)
    return row | {
        "scored": len(scores) - len(empty),
        "empty": len(empty),
        "false_alarms": sum(s.found for s in empty),
    }


def _distances_row(scores: Sequence[CaseScore]) -> dict[str, Any]:
    units = sorted({s.unit for s in scores if s.unit is not None})
    if len(units) < 2:
        return _means(scores, DISTANCES) | {"unit": units[0]} if units else {}
    by_unit = {unit: _means([s for s in scores if s.unit == unit], DISTANCES) for unit in units}
    return dict.fromkeys(DISTANCES) | {"unit": MIXED, "by_unit": by_unit}


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
    """Surface Dice, HD95 and ASSD, from outlines that MONAI looks for once."""
    _, ways, _ = get_edge_surface_distance(found, truth, spacing=list(spacing), symmetric=True)
    both = torch.cat(ways)
    hd95 = max(torch.quantile(way, 0.95).item() for way in ways)
    return (both <= TOLERANCE).double().mean().item(), hd95, both.mean().item()


def _means(scores: Sequence[CaseScore], names: Sequence[str]) -> dict[str, Any]:
    return {name: _mean_over_classes(scores, name) for name in names}


def _mean_over_classes(scores: Sequence[CaseScore], name: str) -> float | None:
    by_class: dict[int, list[float]] = {}
    for s in scores:
        if getattr(s, name) is not None:
            by_class.setdefault(s.cls, []).append(getattr(s, name))
    means = [torch.tensor(v, dtype=torch.float64).mean().item() for v in by_class.values()]
    return sum(means) / len(means) if means else None
