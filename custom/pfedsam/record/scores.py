"""Scores of one class of one case, and their means over cases.

A class that the reference does not have is not scored: 1 for finding nothing would be a free point.
Such cases are counted, and so are those among them in which the model found something.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from pfedsam.record.measures import DISTANCES, HIGHER_IS_BETTER, MIXED, OVERLAP, Unit

DIGITS, DIGITS_OF_DISTANCES = 4, 2  # of a score that leaves a site; our choice
FEW = 30  # masks, below which a difference between branches may be chance; our choice
BEHIND = 0.02  # of Dice, by which a personal branch is clearly worse than the global one; our choice


@dataclass(frozen=True)
class CaseScore:
    """The scores of one class of one case. The metrics are None if the reference is empty.

    HD95 is the larger of the two directed 95th percentiles. ASSD is the mean over both outlines. Surface Dice is the
    share of both outlines within `TOLERANCE` of the other. An outline is the mask's pixels (or voxels) with a
    neighbour outside it, across a side or a face. Beyond the image is outside. All outline pixels have equal weight.
    If nothing was found, HD95 and ASSD are None, as there is no outline to measure from, and surface Dice is 0.

    Attributes:
        found: whether the model found any pixel of the class, anywhere.
        unit: of the distances. None if they were not measured.
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
        """1 if the model found something, 0 if it found nothing. None if the reference does not have the class."""
        return None if self.dice is None else float(self.found)


@dataclass(frozen=True)
class Validation:
    """A branch's mean scores on the validation split, what its experts did there, and the digest that they hold for."""

    digest: str
    scores: dict[str, Any]
    experts: dict[str, Any]


def summary(scores: Sequence[CaseScore]) -> dict[str, Any]:
    """Means over cases per class, then over classes, with counts of scored cases, empty references and false alarms.

    `detected` is the share of the scored cases in which something was found. HD95 and ASSD are means over these alone.
    The row has distances only if they were measured. `unit` is their unit. If cases have several units, it is "mixed",
    the means of the distances are None, and `by_unit` has them for each unit.
    """
    empty = [s for s in scores if s.dice is None]
    row = _means(scores, (*OVERLAP, "detected")) | _distances_row(scores)
    return row | {
        "scored": len(scores) - len(empty),
        "empty": len(empty),
        "false_alarms": sum(s.found for s in empty),
    }


def coarse(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it leaves a site: shares with four digits, distances with two. Rows within it likewise.

    All digits of the Dice of one patient say to the pixel how large that patient's mask is. The report shows three.
    """
    return {name: _coarse(name, value) for name, value in row.items()}


def _coarse(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return coarse(value)
    digits = DIGITS if HIGHER_IS_BETTER.get(name, True) else DIGITS_OF_DISTANCES
    return round(value, digits) if isinstance(value, float) else value


def behind(personal: float | None, other: float | None) -> bool:
    """Whether a personal branch's Dice is clearly below the global branch's. False if one is unknown."""
    return personal is not None and other is not None and personal < other - BEHIND


def over_masks(row: Mapping[str, Any]) -> str:
    """How many masks a row of `summary` is the mean of, in words. Empty if it does not say."""
    count = row.get("scored")
    return "" if count is None else f", over {count} masks" + (", so few that it may be chance" if count < FEW else "")


def dice_by_case(scores: Sequence[CaseScore], cases: int) -> list[float | None]:
    """Each case's Dice, the mean over its classes. None if all references are empty."""
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
