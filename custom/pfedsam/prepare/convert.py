"""Reads, checks and arranges one case, and writes it so that training can read single slices."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedsam.data.dicom import read_in_order
from pfedsam.data.geometry import Volume, check_cut, check_formats, check_placed, oriented, placeless, strayed
from pfedsam.data.nifti import PIXELS
from pfedsam.data.picture import SIDEWAYS, lossy, turn
from pfedsam.data.values import IGNORED, require_finite
from pfedsam.data.volume import kind_of, read_volume
from pfedsam.errors import UserFault
from pfedsam.prepare.dicomseg import is_segmentation, read_segmentation
from pfedsam.prepare.found import Case
from pfedsam.prepare.labels import (
    SHARPEN,
    UNLABELLED,
    WHITE,
    LabelRule,
    Values,
    counted,
    halved,
    is_blurred,
    label_numbers,
    translated,
)

UPRIGHT = "EXIF turns the image, but not the mask: save the image upright without EXIF"


@dataclass(frozen=True)
class Plan:
    """What all cases of a site share: plane, meaning of mask values, classes of structures.

    `layered`: if structures overlap, the higher class number counts. Otherwise that is a fault.
    """

    plane: str
    rule: LabelRule
    segments: dict[str, int]
    layered: bool = False


@dataclass(frozen=True)
class Pair:
    """A case in memory, in the plan's plane.

    Attributes:
        image: (H, W, N[, 3]).
        labels: (H, W, N) of class numbers, with `IGNORED` for unlabelled pixels if `partly`.
        turned: EXIF turns the image but no mask, and the sizes do not show whether that is right.
        covered: pixels that a class lost to another one, by (lower class, class on top of it).
    """

    image: Volume
    labels: NDArray[np.uint8]
    partly: bool = False
    turned: bool = False
    covered: dict[tuple[int, int], int] = field(default_factory=dict)


def mask_values(case: Case) -> Values:
    """How often each value occurs in a case's mask. Empty for a DICOM-SEG, whose segments have names.

    Raises:
        UserFault: the mask cannot be read, or contains other than whole numbers.
    """
    if is_segmentation(case.mask) or case.structures:
        return {}
    pixels = Counter[int]()
    for mask in case.masks:
        pixels.update(counted(_own_labels(mask).values))
    return dict(pixels)


def read_pair(case: Case, plan: Plan) -> Pair:
    """A case's image and labels in the plan's plane.

    Raises:
        UserFault: a damaged file, NaN, a mask of another format, size or position, or a value without a meaning.
    """
    if kind_of(case.image[0]) == "dicom":
        source, files = read_in_order(case.image)
    else:
        source, files = read_volume(case.image[0]), case.image
    require_finite(source.values, str(case.image[0]))
    check_placed(source.guessed, plan.plane, str(case.image[0]))
    labels, covered = _labels(case, source, files, plan)
    image, mask = oriented(source, plan.plane), oriented(_placed(labels, source), plan.plane)
    _check_fit(case, image, mask)
    check_cut(image.affine, image.values.shape[:3], plan.plane, str(case.image[0]))
    return Pair(image, mask.values, plan.rule.ignore is not None, _is_turned_alone(case, image), covered)


def read_weak(case: Case, plan: Plan) -> Pair | None:
    """A case's image and weak labels: class numbers, and for unlabelled pixels 255 or the value of `--ignore`.

    None: it has no weak mask. It raises as `read_pair` does.
    """
    if case.weak is None:
        return None
    rule = replace(plan.rule, white=False, ignore=IGNORED if plan.rule.ignore is None else plan.rule.ignore)
    return read_pair(replace(case, masks=(case.weak,)), replace(plan, rule=rule))


def _is_turned_alone(case: Case, image: Volume) -> bool:
    height, width = image.values.shape[:2]
    return (turned := _turned_alone(case)) != 1 and (height == width or turned not in SIDEWAYS)


def _turned_alone(case: Case) -> int:
    """EXIF's number for how the image is turned, if no mask is; else 1, as for an upright one."""
    turns = [turn(path) if kind_of(path) == "picture" else 1 for path in (case.image[0], *case.masks)]
    return turns[0] if set(turns[1:]) == {1} else 1


def write_pair(pair: Pair, folder: Path, name: str, *, plane: str) -> tuple[str, str]:
    """Write both files below `folder` and return their relative paths: PNG for a picture, else uncompressed NIfTI.

    Args:
        plane: of the pair. Training in this plane can then read slices directly.
    """
    image = f"images/{name}.{_end(pair)}"
    _write(folder / image, pair.image, plane)
    return image, write_mask(pair, folder, name, plane=plane)


def write_mask(pair: Pair, folder: Path, name: str, *, plane: str) -> str:
    """Write the labels alone, as `write_pair` does. Their relative path."""
    mask = f"masks/{name}.{_end(pair)}"
    _write(folder / mask, replace(pair.image, values=pair.labels), plane)
    return mask


def _end(pair: Pair) -> str:
    """The ending of both files: a picture stays one if PNG can hold it."""
    flat = pair.image.affine is None and pair.image.values.shape[2] == 1
    kinds = (np.uint8,) if pair.image.values.ndim == 4 else (np.uint8, np.uint16)
    return "png" if flat and pair.image.values.dtype in kinds and pair.image.spacing == (1, 1, 1) else "nii"


def _labels(case: Case, source: Volume, files: Sequence[Path], plan: Plan) -> tuple[Volume, dict[tuple[int, int], int]]:
    """Class numbers as stored, and the covered pixels as in `Pair`."""
    joined: Volume | None = None
    covered = Counter[tuple[int, int]]()
    if is_segmentation(case.mask):
        told = covered if plan.layered else None
        values = read_segmentation(case.mask, source, files, classes=plan.segments, covered=told)
        return replace(source, values=values), dict(covered)
    for i, path in enumerate(case.masks):  # one at a time, because there may be a hundred structures
        own = _own_labels(path)
        check_placed(own.guessed, plan.plane, str(path))
        shown = counted(own.values)
        if case.structures:
            mapping = _structure(shown, path, plan.segments[case.structures[i]], plan.rule.ignore)
        else:
            mapping = plan.rule.mapping(shown, path, blurred=is_blurred(shown))
        one = _on_image(replace(own, values=translated(own.values, mapping)), case, path, source)
        if joined is not None:
            one, lost = _joined(joined, one, case, path, plan=plan)
            covered.update(lost)
        joined = one
    assert joined is not None
    return joined, dict(covered)


def _structure(shown: Values, path: Path, number: int, ignore: int | None) -> dict[int, int]:
    """The class of each value in the mask of one structure. Of one that is left out, nothing counts.

    Raises:
        UserFault: it contains several values besides 0 and the ignored one.
    """
    if len(marked := shown.keys() - {0, ignore}) > 1:
        way = f"use {UNLABELLED}; otherwise " if ignore is None and WHITE in marked else ""
        way = SHARPEN if is_blurred(shown) else way
        raise UserFault(
            expected=f"one value besides 0 in the mask of one structure {path}",
            came=", ".join(map(str, sorted(marked)[:8])),
            do=way + "save each structure in its own file, or all in one file of class numbers",
        )
    unlabelled = {} if ignore is None else {ignore: IGNORED if number else 0}
    return {0: 0} | dict.fromkeys(marked, number) | unlabelled


def _placed(labels: Volume, source: Volume) -> Volume:
    """The labels with the image's own affine if both are stored alike, so that both are turned to the same side.

    At 45 degrees the last digit of an affine decides to which side a volume is turned.
    """
    if labels.affine is None or source.affine is None or labels.values.shape != source.values.shape[:3]:
        return labels
    near = strayed(source.affine, labels.affine, labels.values.shape) is None
    return replace(labels, affine=source.affine) if near else labels


def _on_image(volume: Volume, case: Case, mask: Path, source: Volume) -> Volume:
    """A mask with its position. A picture drawn on a DICOM slice has the slice's, as rows and columns agree."""
    if volume.affine is None and kind_of(case.image[0]) == "dicom":
        return replace(volume, affine=source.affine)
    check_formats(case.image[0], mask, (source.affine, volume.affine))
    return volume


def _joined(
    one: Volume, other: Volume, case: Case, path: Path, *, plan: Plan
) -> tuple[Volume, dict[tuple[int, int], int]]:
    """Two masks of a case as one, and the pixels that one covers of the other. The other was read from `path`.

    A class counts where the other mask is unlabelled.

    Raises:
        UserFault: their grids differ, or a pixel has two classes.
    """
    shape = one.values.shape
    if other.values.shape != shape or strayed(one.affine, other.affine, shape) is not None:
        raise UserFault(
            expected=f"all masks of an image on the same grid: {case.mask} and {path}",
            came="two grids",
            do="resample each mask onto the image, or keep only the one to learn from",
        )
    unlabelled = ((one.values == IGNORED) | (other.values == IGNORED)) & (plan.rule.ignore is not None)
    below, above = np.minimum(one.values, other.values), np.maximum(one.values, other.values)
    above = np.where(unlabelled & (below != 0), below, above)
    twice = (below != 0) & (below != above) & ~unlabelled
    if twice.any() and not (plan.layered and case.structures):
        pixels = Counter(counted(one.values)) + Counter(counted(other.values))
        large_first = sorted(case.structures, key=lambda name: -pixels[plan.segments[name]])
        order = ",".join(f"{name}={i}" for i, name in enumerate(large_first, 1))
        raise UserFault(
            expected="at most one class in each pixel of an image's masks: " + ", ".join(map(str, case.masks)),
            came=f"two classes in {int(twice.sum())} pixel(s) where {path.name} is added",
            do=f"say which structure is on top by giving it the highest number: --labels {order}"
            if order
            else "correct the drawings, or leave out the masks that do not belong together",
        )
    return replace(one, values=above), dict(Counter(zip(below[twice].tolist(), above[twice].tolist(), strict=True)))


def _own_labels(path: Path) -> Volume:
    volume = read_volume(path, labels=True)
    values = label_numbers(volume.values, path)
    return replace(volume, values=halved(values, path) if kind_of(path) == "picture" and lossy(path) else values)


def _check_fit(case: Case, image: Volume, mask: Volume) -> None:
    shapes = [v.values.shape[:3] for v in (image, mask)]
    if shapes[0] != shapes[1]:
        raise UserFault(
            expected=f"a mask of its image's size, {_size(shapes[0])}, in {case.mask}",
            came=_size(shapes[1]),
            do=f"{UPRIGHT}, or draw the mask on the image as a viewer shows it"
            if shapes[1][:2] == shapes[0][1::-1] and _turned_alone(case) in SIDEWAYS
            else "pair the right files, or resample the mask onto the image",
        )
    if (far := strayed(image.affine, mask.affine, shapes[0])) is not None:
        raise UserFault(
            expected=f"the mask {case.mask} at the position of its image",
            came=far,
            do="if it was drawn on the image, give it the image's header; otherwise resample it onto the image",
        )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[:2] if shape[2] == 1 else shape))


def _write(path: Path, volume: Volume, plane: str) -> None:
    if path.suffix == ".png":
        return Image.fromarray(np.ascontiguousarray(volume.values[:, :, 0])).save(path)
    affine = placeless(volume.spacing, plane) if volume.affine is None else volume.affine
    file = nibabel.Nifti1Image(compact(volume.values), None if volume.guessed else affine)
    file.header.set_zooms(volume.spacing)
    file.header.set_xyzt_units("mm")
    if volume.affine is None and volume.spacing == (1, 1, 1):
        file.header["descrip"] = PIXELS
    nibabel.save(file, path)


def compact(values: NDArray[Any]) -> NDArray[Any]:
    """The values as uint8, int16 or float32, whichever is the smallest exact type. Colours are NIfTI records."""
    if values.ndim == 4:
        bytes_ = np.ascontiguousarray(values, dtype=np.uint8)
        return np.asarray(bytes_.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0])
    if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        return values.astype(np.float32)
    for kind in (np.uint8, np.int16):
        if np.iinfo(kind).min <= values.min() and values.max() <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.float32)
