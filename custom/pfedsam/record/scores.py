"""Scores of one class of one case, and their means over cases.

A class that the reference lacks is not scored (1 for nothing found would be a free point): it is
counted, and so are the cases among them where the model found something.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from pfedsam.record.measures import DISTANCES, MIXED, OVERLAP, Unit


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


def dice_by_case(scores: Sequence[CaseScore], cases: int) -> list[float | None]:
    """Each case's Dice, mean over its classes; None where all references are empty."""
    each = len(scores) // cases
    of_case = [scores[start : start + each] for start in range(0, len(scores), each)]
    known = [[score.dice for score in rows if score.dice is not None] for rows in of_case]
    return [fmean(values) if values else None for values in known]


def _distances_row(scores: Sequence[CaseScore]) -> dict[str, Any]:
    units = sorted({s.unit for s in scores if s.unit is not None})
    if len(units) < 2:
        return _means(scores, DISTANCES) | {"unit": units[0]} if units else {}
    by_unit = {unit: _means([s for s in scores if s.unit == unit], DISTANCES) for unit in units}
    return dict.fromkeys(DISTANCES) | {"unit": MIXED, "by_unit": by_unit}


def _means(scores: Sequence[CaseScore], names: Sequence[str]) -> dict[str, Any]:
    return {name: _mean_over_classes(scores, name) for name in names}


def _mean_over_classes(scores: Sequence[CaseScore], name: str) -> float | None:
    by_class: dict[int, list[float]] = {}
    for s in scores:
        if getattr(s, name) is not None:
            by_class.setdefault(s.cls, []).append(getattr(s, name))
    means = [torch.tensor(v, dtype=torch.float64).mean().item() for v in by_class.values()]
    return sum(means) / len(means) if means else None
