"""Measures each prepared case and the whole site: the numbers of the report."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from pfedsam.data.geometry import across
from pfedsam.data.values import IGNORED
from pfedsam.prepare.convert import Pair
from pfedsam.prepare.labels import counted
from pfedsam.prepare.words import some_of

WIDE = 100  # mm: no voxel of a patient is wider
TINY = 0.01  # mm: only a microscope's voxels are smaller in each direction
OBJECTS = 4  # with fewer classes, masks that show the first ones alone are usual
DIM = 128  # 8-bit images with a bright end below this are scaled by percentile


@dataclass(frozen=True)
class Measurements:
    """One prepared case: shape (H, W, N), spacing (row, column, slice) in mm, intensities, pixels of each class.

    `unlabelled` counts the pixels that nobody labelled. They belong to no class. `turned`: EXIF turns the image
    but not its mask, and the sizes do not show whether they fit. `covered`: as in `Pair`.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    placed: bool
    eight_bit: bool
    colour: bool
    low: float
    high: float
    top: float
    pixels: dict[int, int]
    unlabelled: int = 0
    turned: bool = False
    covered: dict[tuple[int, int], int] = field(default_factory=dict)


def measured(pair: Pair) -> Measurements:
    """The measurements of a case. The 99.5 percentile of a large volume comes from a part of it."""
    values = pair.image.values
    part = values.ravel()[:: max(1, values.size // 1_000_000)]
    pixels = counted(pair.labels)
    unlabelled = pixels.pop(IGNORED, 0) if pair.partly else 0
    height, width, count = values.shape[:3]
    return Measurements(
        shape=(height, width, count),
        spacing=pair.image.spacing,
        placed=pair.image.affine is not None,
        eight_bit=values.dtype == np.uint8,
        colour=values.ndim == 4,
        low=float(values.min()),
        high=float(np.percentile(part, 99.5)),
        top=float(values.max()),
        pixels=pixels,
        unlabelled=unlabelled,
        turned=pair.turned,
        covered=pair.covered,
    )


def label_table(facts: Sequence[Measurements], names: dict[int, str], classes: int) -> list[dict[str, Any]]:
    """One row per class, the background first: pixels, their share, and the number of cases that show it."""
    pixels, cases = Counter[int](), Counter[int]()
    for one in facts:
        pixels.update(one.pixels)
        cases.update(one.pixels.keys())
    whole = sum(pixels.values()) or 1
    return [
        {
            "class": n,
            "name": "background" if n == 0 else names.get(n, ""),
            "pixels": pixels[n],
            "share": pixels[n] / whole,
            "cases": cases[n],
        }
        for n in range(classes + 1)
    ]


def unlabelled(facts: Sequence[Measurements]) -> dict[str, Any]:
    """The unlabelled pixels, their share, and the number of cases that have some."""
    pixels = sum(one.unlabelled for one in facts)
    return {
        "pixels": pixels,
        "share": pixels / (pixels + sum(sum(one.pixels.values()) for one in facts)),
        "cases": sum(one.unlabelled > 0 for one in facts),
    }


def sizes(facts: Sequence[Measurements]) -> dict[str, Any]:
    """The smallest, middle and largest slice, number of slices, and spacing in mm if known."""
    placed = [one.spacing for one in facts if one.placed]
    return {
        "height": _range([one.shape[0] for one in facts]),
        "width": _range([one.shape[1] for one in facts]),
        "slices": _range([one.shape[2] for one in facts]),
        "spacing_mm": {
            name: _range([float(f"{s[i]:.4g}") for s in placed]) for i, name in enumerate(("row", "column", "slice"))
        }
        if placed
        else None,
    }


def intensities(facts: Sequence[Measurements]) -> dict[str, Any]:
    """The ranges, the suitable `data.scale`, and the reason in words."""
    bright = median(one.high for one in facts)
    if not all(one.eight_bit for one in facts):
        scale, why = "percentile", "the values are not 8-bit, so each file is scaled from its own range to 0..1"
    elif bright < DIM:
        scale, why = "percentile", f"the images are dark (the brightest values are near {bright:.0f} of 255)"
    else:
        scale, why = "uint8", "the images are 8-bit and use the full range"
    return {
        "lowest": min(one.low for one in facts),
        "bright": bright,
        "highest": max(one.top for one in facts),
        "scale": scale,
        "why": why,
    }


def remarks(facts: Sequence[Measurements], names: Sequence[str], plane: str) -> list[str]:
    """What a person should check, in words."""

    def of_those(holds: Callable[[Measurements], bool], what: str, advice: str) -> list[str]:
        those = [name for name, one in zip(names, facts, strict=True) if holds(one)]
        return [f"{len(those)} {what} ({some_of(those)}){advice}"] if those else []

    mixed = len({one.colour for one in facts}) > 1
    return [
        *of_those(
            lambda one: set(one.pixels) <= {0},
            "case(s) show no class and are kept",
            ": this is right if there is nothing to see. If nobody drew the class, remove the pair and prepare again.",
        ),
        *of_those(
            lambda one: one.placed and across(one.spacing, one.shape[2]),
            f"volume(s) have coarser steps within the {plane} slices than across them",
            ": the scanner used another plane. Choose it with --plane, so that slices are sharp.",
        ),
        *of_those(
            lambda one: one.placed and min(one.spacing) > WIDE,
            f"volume(s) have voxels of more than {WIDE} mm",
            ": if their headers say metres but mean millimetres, correct the headers"
            " (nibabel: image.header.set_xyzt_units('mm')) and prepare again.",
        ),
        *of_those(
            lambda one: one.placed and max(one.spacing) < TINY,
            f"volume(s) have voxels of less than {TINY} mm",
            ": this is right for a microscope. If the headers say millimetres but mean another unit, correct"
            " them and prepare again.",
        ),
        *(["Grey and colour images are mixed. Training repeats grey to RGB."] if mixed else []),
        *_inverted(facts, names),
        *_absent(facts),
        *of_those(
            lambda one: one.turned,
            "image(s) are turned upright as their EXIF says, but their masks are not",
            ": check in report.html whether they fit. If they do not, save the images as PNG without EXIF.",
        ),
        *_lone(facts, names),
    ]


def counted_objects(facts: Sequence[Measurements]) -> list[str]:
    """A remark if the masks' numbers go from 1 up to another end in each: they may count objects."""
    shown = [one.pixels.keys() - {0} for one in facts if one.pixels.keys() - {0}]
    ends = {max(numbers) for numbers in shown}
    if max(ends, default=0) < OBJECTS or len(ends) == 1 or any(len(numbers) < max(numbers) for numbers in shown):
        return []
    return [
        f"The masks' numbers may be numbers of objects instead of classes: each mask shows 1, 2, 3 and so on, and they"
        f" end between {min(ends)} and {max(ends)}. If so, use --labels '*=1', which makes them one class."
    ]


def _lone(facts: Sequence[Measurements], names: Sequence[str]) -> Iterator[str]:
    """A remark on each class that only one of ten or more cases shows."""
    for number in sorted({n for one in facts for n in one.pixels if n}):
        holders = [name for name, one in zip(names, facts, strict=True) if number in one.pixels]
        if len(holders) == 1 and len(facts) >= 10:
            yield f"Only one case shows class {number} ({holders[0]}): is this a slip of the pen?"


def _inverted(facts: Sequence[Measurements], names: Sequence[str]) -> list[str]:
    """A remark on cases that are mostly class pixels, if most other cases are mostly background or if most are so."""
    shares = [1 - one.pixels.get(0, 0) / max(1, sum(one.pixels.values())) for one in facts]
    odd = [name for name, share in zip(names, shares, strict=True) if share > 0.5]
    if not odd or 0.25 <= median(shares) <= 0.5:
        return []
    if median(shares) > 0.5:
        words = "are background and class exchanged? If so, use --labels 0=1,255=0 (or the masks' own values)."
        return [f"In {len(odd)} case(s) ({some_of(odd)}), as in most, classes cover more than half: {words}"]
    words = "classes cover more than half, and in most others less than a quarter: are background and class exchanged?"
    return [f"In {len(odd)} case(s) ({some_of(odd)}) {words}"]


def _absent(facts: Sequence[Measurements]) -> list[str]:
    """A remark on class numbers that no mask shows, below those that some masks show."""
    shown = sorted({number for one in facts for number in one.pixels if number})
    covered = {lower for one in facts for lower, _ in one.covered}
    absent = [number for number in range(1, max(shown, default=0)) if number not in shown and number not in covered]
    if not absent:
        return []
    return [
        f"No mask shows class {', '.join(map(str, absent[:5]))}, but some show class {shown[-1]}."
        " If the numbers should start at 1 without gaps, give the masks' values such numbers with --labels."
    ]


def _range(values: Sequence[float]) -> list[float]:
    return [min(values), median(values), max(values)]
