"""Weak labels made from whole masks, to try methods on: what a quick annotator would have drawn (`data.weaken`).

All other pixels are `IGNORED`. What is drawn is never wrong, except in the middle of a box, which no annotator checks.
Sizes are our choice. Everything is drawn from a seed, so a slice has the same weak label each time.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from pfedsam.config import Weak
from pfedsam.data.values import IGNORED

Labels = NDArray[np.int64]
Region = NDArray[np.bool_]
Rng = np.random.Generator
TURN = 0.3  # radians by which a scribble's direction changes in a step, in the mean


def weakened(labels: Tensor, kind: Weak, seed: int) -> Tensor:
    """Weak labels (H, W) of one kind, from whole ones (H, W) of class numbers."""
    whole = labels.numpy().astype(np.int64)
    drawn = KINDS[kind](whole, np.random.default_rng(seed))
    return torch.from_numpy(np.where(whole == IGNORED, IGNORED, drawn))


def scribble(whole: Labels, rng: Rng) -> Labels:
    """A wavy line in each object, and one in the background."""
    out = np.full_like(whole, IGNORED)
    for number, region in [*objects(whole), (0, whole == 0)]:
        if region.any():
            out[thick(line(region, rng), whole) & region] = number
    return out


def point(whole: Labels, rng: Rng) -> Labels:
    """A dot in each object, and one more than these in the background."""
    out, found = np.full_like(whole, IGNORED), list(objects(whole))
    for number, region in [*found, *[(0, whole == 0)] * (len(found) + 1)]:
        if region.any():
            dot = np.zeros_like(region)
            dot[tuple(rng.choice(np.argwhere(region)))] = True
            out[thick(dot, whole) & region] = number
    return out


def box(whole: Labels, _rng: Rng) -> Labels:
    """Around each object a box: background outside of all, the object's class in the middle third of each side."""
    out = np.zeros_like(whole)
    found = [(n, ndimage.find_objects(region.astype(int))[0]) for n, region in objects(whole)]
    for _, place in found:
        out[place] = IGNORED
    for number, place in found:
        out[tuple(middle(side) for side in place)] = number
    return out


def block(whole: Labels, rng: Rng) -> Labels:
    """One square with a third of the longer side, labelled whole, around a pixel of an object if there is one."""
    marked = (whole != 0) & (whole != IGNORED)
    row, column = rng.choice(np.argwhere(marked if marked.any() else np.ones_like(marked)))
    half = max(1, max(whole.shape) // 6)
    out = np.full_like(whole, IGNORED)
    place = slice(max(0, row - half), row + half), slice(max(0, column - half), column + half)
    out[place] = whole[place]
    return out


KINDS: dict[Weak, Callable[[Labels, Rng], Labels]] = {
    "scribble": scribble,
    "point": point,
    "box": box,
    "block": block,
}


def objects(whole: Labels) -> Iterator[tuple[int, Region]]:
    """Each connected part of each class but the background, as the class and the pixels."""
    for number in np.setdiff1d(whole, (0, IGNORED)).tolist():
        parts, count = ndimage.label(whole == number)
        yield from ((number, parts == i) for i in range(1, count + 1))


def middle(side: slice) -> slice:
    """The middle third of a box's side, at least a pixel."""
    third = (side.stop - side.start) // 3
    return slice(side.start + third, max(side.stop - third, side.start + third + 1))


def line(region: Region, rng: Rng) -> Region:
    """A wavy line of about twice the root of the region's area, which does not leave it."""
    out = np.zeros_like(region)
    place, angle = rng.choice(np.argwhere(region)).astype(float), rng.uniform(0, 2 * np.pi)
    for _ in range(int(2 * np.sqrt(region.sum())) + 1):
        out[tuple(place.round().astype(int))] = True
        angle += rng.normal(0, TURN)
        ahead = place + np.array([np.sin(angle), np.cos(angle)])
        row, column = ahead.round().astype(int)
        if 0 <= row < len(region) and 0 <= column < region.shape[1] and region[row, column]:
            place = ahead
        else:
            angle = rng.uniform(0, 2 * np.pi)
    return out


def thick(marks: Region, whole: Labels) -> Region:
    """Marks widened to about a 64th of the longer side."""
    return np.asarray(ndimage.binary_dilation(marks, iterations=max(1, max(whole.shape) // 128)))
