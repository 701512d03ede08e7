"""One case: read, checked, laid out and written where training reads it a slice at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedsam.data.dicom import header, in_order, read_series
from pfedsam.data.geometry import Volume, check_formats, oriented, placeless, strayed
from pfedsam.data.picture import lossy
from pfedsam.data.volume import kind_of, read_volume
from pfedsam.errors import UserFault
from pfedsam.prepare.dicomseg import is_segmentation, read_segmentation
from pfedsam.prepare.found import Case
from pfedsam.prepare.labels import Rule, Values, counted, halved, translated, whole


@dataclass(frozen=True)
class Plan:
    """What all cases of a site have in common: plane, the meaning of mask values, the classes of DICOM segments."""

    plane: str
    rule: Rule
    segments: dict[str, int]


@dataclass(frozen=True)
class Pair:
    """A case in memory, laid out.

    Attributes:
        image: (H, W, N[, 3]).
        labels: (H, W, N) of class numbers; `IGNORED` where nobody labelled, if `partly`.
        values: the mask's own.
        partly: whether masks say where nobody labelled.
    """

    image: Volume
    labels: NDArray[np.uint8]
    values: set[int]
    partly: bool = False


def mask_values(case: Case) -> Values:
    """The values that a case's mask holds, and how often; none for a DICOM-SEG, whose segments have names.

    Raises:
        UserFault: the mask can't be read, or holds no whole numbers.
    """
    return {} if is_segmentation(case.mask) else counted(_own_labels(case.mask).values)


def read_pair(case: Case, plan: Plan) -> Pair:
    """A case's image and labels, laid out in the plan's plane.

    Raises:
        UserFault: a damaged file, NaN, a mask of another format, size or place, or values without a meaning.
    """
    source, files = _image(case)
    labels, values = _labels(case, source, files, plan)
    image, mask = oriented(source, plan.plane), oriented(labels, plan.plane)
    _check_fit(case, image, mask)
    return Pair(image, mask.values, values, plan.rule.ignore is not None)


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
    affine = placeless(pair.image.spacing, plane) if pair.image.affine is None else pair.image.affine
    write(folder / image, Volume(pair.image.values, affine, pair.image.spacing))
    write(folder / mask, Volume(pair.labels, affine, pair.image.spacing))
    return image, mask


def _image(case: Case) -> tuple[Volume, Sequence[Path]]:
    """The image as stored, and its files in the order of its slices."""
    if kind_of(case.image[0]) == "dicom":
        heads = {file: head for file in case.image if (head := header(file)) is not None}
        files = in_order(heads) if len(heads) > 1 else case.image
        volume = read_series(case.image)
    else:
        files, volume = case.image, read_volume(case.image[0])
    volume.whole(str(case.image[0]))
    return volume, files


def _labels(case: Case, source: Volume, files: Sequence[Path], plan: Plan) -> tuple[Volume, set[int]]:
    """Class numbers as stored, and the mask's own values."""
    if is_segmentation(case.mask):
        values = read_segmentation(case.mask, source, files, classes=plan.segments)
        return Volume(values, source.affine, source.spacing), set(plan.segments.values())
    own = _own_labels(case.mask)
    found = set(counted(own.values))
    drawn_on = own.affine is None and kind_of(case.image[0]) == "dicom"  # both count rows and columns
    affine = source.affine if drawn_on else own.affine
    check_formats(case.image[0], case.mask, (source.affine, affine))
    return Volume(translated(own.values, plan.rule.mapping(found, case.mask)), affine, own.spacing), found


def _own_labels(path: Path) -> Volume:
    volume = read_volume(path, labels=True)
    values = whole(volume.values, path)
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


def _write_png(path: Path, volume: Volume) -> None:
    Image.fromarray(np.ascontiguousarray(volume.values[:, :, 0])).save(path)


def _write_nifti(path: Path, volume: Volume) -> None:
    file = nibabel.Nifti1Image(_compact(volume.values), volume.affine)
    file.header.set_xyzt_units("mm")
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
