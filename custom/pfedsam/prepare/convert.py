"""One case: read, checked, laid out and written where training reads it a slice at a time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedsam.data.dicom import read_in_order
from pfedsam.data.geometry import Volume, check_cut, check_formats, oriented, placeless, strayed
from pfedsam.data.nifti import PIXELS
from pfedsam.data.picture import SIDEWAYS, lossy, turn
from pfedsam.data.values import require_finite
from pfedsam.data.volume import kind_of, read_volume
from pfedsam.errors import UserFault
from pfedsam.prepare.dicomseg import is_segmentation, read_segmentation
from pfedsam.prepare.found import Case
from pfedsam.prepare.labels import LabelRule, Values, counted, halved, label_numbers, translated


@dataclass(frozen=True)
class Plan:
    """What all cases of a site have in common: plane, the meaning of mask values, the classes of structures.

    `layered`: where structures of a file each overlap, the higher class number counts; otherwise it is a fault.
    """

    plane: str
    rule: LabelRule
    segments: dict[str, int]
    layered: bool = False


@dataclass(frozen=True)
class Pair:
    """A case in memory, laid out.

    Attributes:
        image: (H, W, N[, 3]).
        labels: (H, W, N) of class numbers; `IGNORED` where nobody labelled, if `partly`.
        values: the mask's own.
        partly: whether masks say where nobody labelled.
        turned: whether EXIF turns the image and no mask, and the sizes do not show whether that is right.
    """

    image: Volume
    labels: NDArray[np.uint8]
    values: set[int]
    partly: bool = False
    turned: bool = False


def mask_values(case: Case) -> Values:
    """The values that a case's mask holds, and how often; none for a DICOM-SEG, whose segments have names.

    Raises:
        UserFault: the mask can't be read, or holds no whole numbers.
    """
    if is_segmentation(case.mask) or case.structures:
        return {}
    pixels = Counter[int]()
    for mask in case.masks:
        pixels.update(counted(_own_labels(mask).values))
    return dict(pixels)


def read_pair(case: Case, plan: Plan) -> Pair:
    """A case's image and labels, laid out in the plan's plane.

    Raises:
        UserFault: a damaged file, NaN, a mask of another format, size or place, or values without a meaning.
    """
    source, files = _image(case)
    labels, values = _labels(case, source, files, plan)
    image, mask = oriented(source, plan.plane), oriented(labels, plan.plane)
    _check_fit(case, image, mask)
    check_cut(image.affine, image.values.shape[:3], plan.plane, str(case.image[0]))
    return Pair(image, mask.values, values, plan.rule.ignore is not None, _is_turned_alone(case, image))


def _is_turned_alone(case: Case, image: Volume) -> bool:
    if kind_of(case.image[0]) != "picture" or any(
        kind_of(mask) == "picture" and turn(mask) != 1 for mask in case.masks
    ):
        return False
    number, (height, width) = turn(case.image[0]), image.values.shape[:2]
    return number != 1 and (height == width or number not in SIDEWAYS)


def write_pair(pair: Pair, folder: Path, name: str, *, plane: str) -> tuple[str, str]:
    """Both files below `folder`, as paths relative to it: PNG for a picture, uncompressed NIfTI for a volume.

    Args:
        plane: in which the pair was laid out; training that reads it in this plane turns nothing.
    """
    flat = pair.image.affine is None and pair.image.values.shape[2] == 1
    kinds = (np.uint8,) if pair.image.values.ndim == 4 else (np.uint8, np.uint16)
    flat = flat and pair.image.values.dtype in kinds and pair.image.spacing == (1, 1, 1)
    end = "png" if flat else "nii"
    image, mask = f"images/{name}.{end}", f"masks/{name}.{end}"
    write = _write_png if end == "png" else _write_nifti
    write(folder / image, pair.image, plane)
    write(folder / mask, replace(pair.image, values=pair.labels), plane)
    return image, mask


def _image(case: Case) -> tuple[Volume, Sequence[Path]]:
    """The image as stored, and its files in the order of its slices."""
    if kind_of(case.image[0]) == "dicom":
        volume, files = read_in_order(case.image)
    else:
        volume, files = read_volume(case.image[0]), case.image
    require_finite(volume.values, str(case.image[0]))
    return volume, files


def _labels(case: Case, source: Volume, files: Sequence[Path], plan: Plan) -> tuple[Volume, set[int]]:
    """Class numbers as stored, and the mask's own values."""
    if is_segmentation(case.mask):
        values = read_segmentation(case.mask, source, files, classes=plan.segments)
        return Volume(values, source.affine, source.spacing), set(plan.segments.values())
    found = set[int]()
    whole_mask: Volume | None = None
    for i, mask in enumerate(case.masks):  # one at a time: there may be a hundred structures
        if case.structures:
            number = plan.segments[case.structures[i]]
            one, own = _structure(mask, number), {number}
        else:
            one, own = _numbers(mask, plan.rule)
        placed = _on_image(one, case, mask, source)
        whole_mask = placed if whole_mask is None else _joined(whole_mask, placed, (case, mask), layered=plan.layered)
        found |= own
    assert whole_mask is not None
    return whole_mask, found


def _numbers(path: Path, rule: LabelRule) -> tuple[Volume, set[int]]:
    """Class numbers by the rule, and the mask's own values."""
    own = _own_labels(path)
    values = set(counted(own.values))
    return Volume(translated(own.values, rule.mapping(values, path)), own.affine, own.spacing), values


def _structure(path: Path, number: int) -> Volume:
    """The mask of one structure as its class number.

    Raises:
        UserFault: it holds several values beside 0.
    """
    own = _own_labels(path)
    if len(marked := set(counted(own.values)) - {0}) > 1:
        raise UserFault(
            expected=f"one value beside 0 in the mask of one structure {path}",
            came=", ".join(map(str, sorted(marked)[:8])),
            do="save each structure in a file of its own, or all in one file of class numbers",
        )
    return Volume(np.asarray((own.values != 0) * number, dtype=np.uint8), own.affine, own.spacing)


def _on_image(volume: Volume, case: Case, mask: Path, source: Volume) -> Volume:
    """A mask with its place; a picture drawn on a DICOM slice has that of the slice, as both count rows and columns."""
    drawn_on = volume.affine is None and kind_of(case.image[0]) == "dicom"
    affine = source.affine if drawn_on else volume.affine
    check_formats(case.image[0], mask, (source.affine, affine))
    return Volume(volume.values, affine, volume.spacing)


def _joined(one: Volume, other: Volume, names: tuple[Case, Path], *, layered: bool) -> Volume:
    """Two masks of a case as one.

    Args:
        names: the case, and the other's path, for the fault.
        layered: the higher class number counts where both are drawn.

    Raises:
        UserFault: they have different grids, or a pixel is of two classes.
    """
    shape, (case, path) = one.values.shape, names
    if other.values.shape != shape or strayed(one.affine, other.affine, shape) is not None:
        raise UserFault(
            expected=f"all masks of an image on the same grid: {case.mask} and {path}",
            came="two grids",
            do="resample each onto the image, or leave the one to learn from",
        )
    twice = (one.values != 0) & (other.values != 0) & (one.values != other.values)
    if twice.any() and not (layered and case.structures):
        order = ",".join(f"{name}={i}" for i, name in enumerate(case.structures, 1))
        raise UserFault(
            expected="one class at most in each pixel of an image's masks: " + ", ".join(map(str, case.masks)),
            came=f"two classes in {int(twice.sum())} pixel(s) where {path.name} is added",
            do=f"say which structure is on top, with the highest number: --labels {order}"
            if order
            else "correct the drawings, or leave out the masks that do not belong together",
        )
    return Volume(np.maximum(one.values, other.values), one.affine, one.spacing)


def _own_labels(path: Path) -> Volume:
    volume = read_volume(path, labels=True)
    values = label_numbers(volume.values, path)
    if kind_of(path) == "picture" and lossy(path):
        values = halved(values, path)
    return Volume(values, volume.affine, volume.spacing)


def _check_fit(case: Case, image: Volume, mask: Volume) -> None:
    shapes = [v.values.shape[:3] for v in (image, mask)]
    if shapes[0] != shapes[1]:
        raise UserFault(
            expected=f"a mask of its image's size, {_size(shapes[0])}, in {case.mask}",
            came=_size(shapes[1]),
            do="pair the right files, or resample the mask onto the image",
        )
    if (far := strayed(image.affine, mask.affine, shapes[0])) is not None:
        raise UserFault(
            expected=f"the mask {case.mask} where its image lies",
            came=far,
            do="give the mask its image's header if it was drawn on it, else resample it onto the image",
        )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[:2] if shape[2] == 1 else shape))


def _write_png(path: Path, volume: Volume, _: str) -> None:
    Image.fromarray(np.ascontiguousarray(volume.values[:, :, 0])).save(path)


def _write_nifti(path: Path, volume: Volume, plane: str) -> None:
    affine = placeless(volume.spacing, plane) if volume.affine is None else volume.affine
    file = nibabel.Nifti1Image(_compact(volume.values), affine)
    file.header.set_xyzt_units("mm")
    if volume.affine is None and volume.spacing == (1, 1, 1):
        file.header["descrip"] = PIXELS
    nibabel.save(file, path)


def _compact(values: NDArray[Any]) -> NDArray[Any]:
    """The smallest of uint8, int16 and float32 that keeps the values; colours as NIfTI's records."""
    if values.ndim == 4:
        bytes_ = np.ascontiguousarray(values, dtype=np.uint8)
        return np.asarray(bytes_.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0])
    if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        return values.astype(np.float32)
    for kind in (np.uint8, np.int16):
        if np.iinfo(kind).min <= values.min() and values.max() <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.float32)
