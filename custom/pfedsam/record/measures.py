"""The metrics: their names, which way is better, their units, and how their values are written."""

from collections.abc import Iterable
from typing import Any, Literal

Unit = Literal["mm", "px"]
UNITS = ("mm", "px")
MIXED = "mixed"
OVERLAP = ("dice", "iou")
DISTANCES = ("surface_dice", "hd95", "assd")  # measured between outlines, and so in a unit
METRICS = ("dice", "iou", "detected", *DISTANCES)
HIGHER_IS_BETTER = {metric: metric not in ("hd95", "assd") for metric in METRICS}
TITLES = dict(zip(METRICS, ("Dice", "IoU", "detected", "surface Dice", "HD95", "ASSD"), strict=True))
TOLERANCE = 2.0  # mm, or pixels: how far an outline may be off for surface Dice; our choice
DISTANCES_SAY = (
    "Detected: share of the scored cases in which something was found. HD95 and ASSD are means over these. "
    f"Surface Dice: share of the outlines within {TOLERANCE:g} mm, or {TOLERANCE:g} pixels in files without a spacing."
)


def number(value: float | None, digits: int = 3) -> str:
    """The number as text, or a dash if there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def measure(value: float | None, metric: str) -> str:
    """A metric's value as text: shares with three digits, distances with one."""
    return number(value, 3 if HIGHER_IS_BETTER[metric] else 1)


def unit(row: dict[str, Any]) -> str:
    """The unit of a row's distances, or a dash if it is not known."""
    return str(row.get("unit") or "-")


def unit_of(rows: Iterable[dict[str, Any]]) -> str | None:
    """The unit that rows of distances have in common. "mixed" if there are several, None if it is not known."""
    units = {row["unit"] for row in rows if row.get("unit")}
    return units.pop() if len(units) == 1 else MIXED if units else None
