"""Reads one 2-D image or mask from a file: pictures by `picture`, NIfTI by nibabel.

A NIfTI volume is read slice by slice in the given plane, so memory use stays flat. For a .nii.gz, nibabel keeps an
index by indexed_gzip. A slice then costs unpacking some MiB instead of everything before it. `pfedsam prepare` turns
DICOM into NIfTI.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pfedsam.config import Scale
from pfedsam.data import nifti, picture
from pfedsam.data.geometry import Affine, check_cut, check_placed, laid, spacing_of
from pfedsam.data.planes import STORED
from pfedsam.data.readable import readable
from pfedsam.data.values import IGNORED, require_finite, whole_numbers
from pfedsam.errors import UserFault

Pixels = NDArray[np.float32]
UNIT = 1.0  # an image of 8 bits whose brightest value is no higher is black to the eye
READ = (*picture.PICTURES, *nifti.NIFTI)


class Ends(NamedTuple):
    """The values that become 0 and 1. If they are `fixed`, a value beyond them is a fault; otherwise it is cut off."""

    low: float
    high: float
    fixed: bool = False


EIGHT_BIT = Ends(0.0, 255.0, fixed=True)


@dataclass(frozen=True)
class Header:
    """A file's contents: slice shape (H, W), number of slices, spacing (row, column, slice) in `unit`, position.

    A format without millimetres has `spacing` (1, 1, 1), in pixels, and no `affine`.
    """

    shape: tuple[int, int]
    slices: int
    spacing: tuple[float, float, float]
    affine: Affine | None = field(default=None, compare=False)
    unit: Literal["mm", "px"] = "px"


def header(path: Path, plane: str = STORED) -> Header:
    """The header of an image or mask file, cut into slices of `plane` (see `geometry.oriented`).

    Raises:
        UserFault: the format is unknown, the file is unreadable, or a volume is not 3-D or states no position.
    """
    with _read(path) as is_nifti:
        return _nifti_header(path, plane) if is_nifti else Header(picture.shape(path), 1, (1.0, 1.0, 1.0))


def read_image(path: Path, index: int = 0, plane: str = STORED) -> Pixels:
    """Slice `index` of `plane` as raw RGB, (H, W, 3) float32. Grey is repeated, alpha is dropped.

    Raises:
        UserFault: the file is unreadable, or has values that are not finite.
    """
    pixels = _slice(path, index, plane, labels=False)
    require_finite(pixels, f"slice {index} of {path}")
    return rgb(pixels)


def rgb(pixels: NDArray[Any]) -> Pixels:
    """(H, W) or (H, W, channels) as (H, W, 3) float32. Grey is repeated, alpha is dropped."""
    pixels = np.asarray(pixels, dtype=np.float32)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.repeat(pixels[..., :1], 3, -1) if pixels.shape[-1] < 3 else pixels[..., :3]


def read_mask(
    path: Path, index: int, classes: int, ignore: int | None = None, *, plane: str = STORED
) -> NDArray[np.uint8]:
    """Slice `index` of a label map in `plane`, (H, W) with values 0..classes, and `IGNORED` for unlabelled pixels.

    Args:
        ignore: the file's value of pixels that nobody labelled; None: all pixels are labelled.

    Raises:
        UserFault: it has more than one channel, or a label out of range.
    """
    labels = _slice(path, index, plane, labels=True)
    if labels.ndim != 2:
        raise UserFault(
            expected=f"a mask with one channel in {path}", came=f"{labels.shape[-1]} channels", do="save label numbers"
        )
    numbers = whole_numbers(labels)
    if numbers is None:
        raise UserFault(
            expected=f"whole numbers in the mask {path}", came="fractions, or NaN", do="write class numbers"
        )
    unlabelled = np.zeros(labels.shape, bool) if ignore is None else numbers == ignore
    known = numbers[~unlabelled]
    if known.size and (known.min() < 0 or known.max() > classes):
        raise UserFault(
            expected=f"labels 0..{classes} in {path}" + ("" if ignore is None else f", or {ignore} for unlabelled"),
            came=f"values from {known.min():g} to {known.max():g}",
            do="write class numbers (a 0/255 mask becomes 0/1), set model.num_classes, "
            "or set data.ignore if a value marks pixels that nobody labelled",
        )
    return np.asarray(np.where(unlabelled, IGNORED, numbers), dtype=np.uint8)


def ends_of_file(path: Path, scale: Scale, plane: str = STORED) -> Ends:
    """The `ends_of` a whole file, from slices of `plane`."""
    return ends_of((read_image(path, i, plane) for i in judged(header(path, plane).slices, scale)), scale, str(path))


def ends_of(pictures: Iterable[Pixels], scale: Scale, name: str) -> Ends:
    """The values of an image's pictures (H, W, 3) that become 0 and 1.

    Raises:
        UserFault: the scale is that of 8 bits, and all values are fractions of 0 to 1. They would be nearly black.
    """
    if scale == "percentile":
        return levels(pictures)
    fractions = False
    for pixels in pictures:
        if pixels.max() > UNIT or pixels.min() < 0:
            return EIGHT_BIT
        fractions = fractions or bool((pixels != np.rint(pixels)).any())
    if fractions:
        raise UserFault(
            expected=f"values of 0 to 255 in {name}, for data.scale uint8",
            came="fractions of 0 to 1",
            do="multiply by 255, or set data.scale to percentile (pfedsam predict: --scale percentile)",
        )
    return EIGHT_BIT


def unit(pixels: Pixels, ends: Ends, name: str) -> Pixels:
    """(H, W, 3) in 0..1, from values between `ends`. Values beyond them are cut off.

    Raises:
        UserFault: the ends are fixed, and values are beyond them. The message names the file.
    """
    low, high, fixed = ends
    if fixed and (pixels.min() < low or pixels.max() > high):
        raise UserFault(
            expected=f"values of 0 to 255 in {name}, for data.scale uint8",
            came=f"{pixels.min():g} to {pixels.max():g}",
            do="set data.scale to percentile, as pfedsam prepare advises (pfedsam predict: --scale percentile)",
        )
    return np.asarray(np.clip((pixels - low) / (high - low), 0, 1), dtype=np.float32)


def levels(pictures: Iterable[Pixels]) -> Ends:
    """The 0.5 and 99.5 percentiles of pictures (H, W, 3), from every fourth value.

    If nearly all values are one, both percentiles are that. Then it is the least and the highest value. An image of one
    value is black: its high end is beyond that value.
    """
    seen = ((p[::2, ::2].ravel(), float(p.min()), float(p.max())) for p in pictures)
    parts, least, most = zip(*seen, strict=True)
    low, high = np.percentile(np.concatenate(parts), (0.5, 99.5))
    if low == high:
        low, high = min(least), max(most)
    return Ends(float(low), float(high if high > low else low + max(1.0, abs(low))))


def judged(count: int, scale: Scale) -> range:
    """The slices of `count` that `ends_of` needs: about 60 evenly spread ones, or all until one is bright."""
    return range(0, count, max(1, count // 32) if scale == "percentile" else 1)


@contextmanager
def _read(path: Path) -> Iterator[bool]:
    """Yield whether the file is NIfTI instead of a picture. Any error within becomes a fault that names the file."""
    name = path.name.lower()
    if not name.endswith(READ):
        raise UserFault(expected="a file ending in " + ", ".join(READ), came=str(path), do="convert it to one of these")
    with readable(path):
        yield name.endswith(nifti.NIFTI)


def _slice(path: Path, index: int, plane: str, *, labels: bool) -> NDArray[Any]:
    """Slice `index` of `plane`, (H, W) or (H, W, channels). A label map's numbers are as stored."""
    with _read(path) as is_nifti:
        if not is_nifti:
            return _picture(path, labels)
        state = path.stat()
        voxels, affine = _stored(path, (state.st_mtime_ns, state.st_size, state.st_ino))
        return nifti.channels(laid(affine, voxels.shape, plane).slice(voxels, index), path, labels=labels)


def _picture(path: Path, labels: bool) -> NDArray[Any]:
    pixels = picture.pixels(path, labels=labels)
    if labels and pixels.any() and picture.lossy(path):
        raise UserFault(
            expected=f"class numbers without loss in the mask {path}",
            came="JPEG, whose compression changes them",
            do="save it as PNG from the source (pfedsam prepare accepts a black and white JPEG)",
        )
    return pixels


def _nifti_header(path: Path, plane: str) -> Header:
    volume = nifti.opened(path)
    if len(volume.shape) != 3 or min(volume.shape) < 1:
        several = len(volume.shape) > 3 and max(volume.shape[3:]) > 1
        raise UserFault(
            expected=f"a 3-D volume in {path}",
            came=f"shape {volume.shape}",
            do="split it into 3-D volumes" if several else "run pfedsam prepare, which gives it three axes",
        )
    check_placed(nifti.guessed(volume), plane, str(path))
    layout = laid(nifti.affine_of(path, volume), volume.shape, plane)
    assert layout.affine is not None
    check_cut(layout.affine, layout.shape, plane, str(path))
    return Header(layout.shape[:2], layout.shape[2], spacing_of(layout.affine), layout.affine, nifti.unit(volume))


@lru_cache(maxsize=256)
def _stored(path: Path, _state: tuple[int, int, int]) -> tuple[Any, Affine]:
    """nibabel's array of a volume, whose slices are read on demand, and its affine.

    Args:
        _state: what changes when another file takes the path: time of change, size and number.
    """
    file = nifti.opened(path)
    return file.dataobj, np.asarray(file.affine)
