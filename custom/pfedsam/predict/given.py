"""What a caller of the Python API hands over, as the volume that a file of it would be."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfedsam.data.dicom import read_series
from pfedsam.data.geometry import Affine, Volume, spacing_of
from pfedsam.data.planes import PLANES
from pfedsam.data.volume import read_volume
from pfedsam.errors import UserFault
from pfedsam.predict.masks import Way
from pfedsam.predict.scans import Scan, find_scans

PathLike = str | os.PathLike[str]
Image = NDArray[Any] | PathLike
KINDS = "(H, W) grey, (H, W, 3) in colour, or a volume (H, W, N) or (H, W, N, 3)"
WORLD = "give the volume's affine, (4, 4), as nibabel reads it, or plane='stored'"


def opened(image: Image, affine: Affine | None, way: Way) -> tuple[Volume, bool]:
    """The volume of an array or of a path, and whether it is a picture, whose mask is (H, W).

    Args:
        affine: as for `as_volume`; a file has its own.
        way: how it is to be shown to the model.

    Raises:
        UserFault: as `as_volume` and `only_scan`; or an affine beside a path.
    """
    if isinstance(image, str | os.PathLike):
        if affine is not None:
            raise UserFault(expected="no affine with a path", came="one", do="leave it out: the file has its own")
        scan = only_scan(Path(image))
        return read_scan(scan), scan.kind == "picture"
    if affine is None and way.plane in PLANES:
        do = "give the array's affine, or plane='stored'"
        raise UserFault(expected=f"an affine with plane {way.plane}", came="an array without one", do=do)
    stacked = affine is not None or way.plane is not None
    volume = as_volume(image, affine, stacked=stacked)
    _check_range(image, way.scale)
    return volume, volume.values.ndim == image.ndim + 1


def read_scan(scan: Scan) -> Volume:
    """The image of a scan; raises UserFault where its files are unreadable or damaged."""
    return read_series(scan.files) if scan.kind == "dicom" else read_volume(scan.files[0])


def only_scan(source: Path) -> Scan:
    """The one picture, NIfTI volume or DICOM series at `source`, a file or a folder.

    Raises:
        UserFault: there is none or there are several, or a file there cannot be used.
    """
    found = list(find_scans(source))
    for one in found:
        if isinstance(one, UserFault):
            raise one
    scans = [one for one in found if isinstance(one, Scan)]
    if len(scans) != 1:
        raise UserFault(
            expected=f"one image at {source}",
            came=f"{len(scans)}",
            do="name one of them, or give the folder to pfedsam predict",
        )
    return scans[0]


def as_volume(image: NDArray[Any], affine: Affine | None, *, stacked: bool) -> Volume:
    """An array as the volume that a file with these values would be.

    Args:
        image: (H, W), (H, W, 3), (H, W, N) or (H, W, N, 3) of whole or floating-point numbers.
        affine: (4, 4), of a volume: from (row, column, slice) to mm towards right, anterior, superior.
        stacked: the third axis is of slices; without it one of length 3 is of colours.

    Raises:
        UserFault: another shape or kind of numbers, or one that can be taken for two things.
    """
    _check_numbers(image)
    _check_shape(image.shape, stacked=stacked)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
        values = image.astype(np.float32) if image.dtype.kind == "f" else image
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3 and not stacked):
        return Volume(values[:, :, None])
    if affine is None:
        return Volume(values)
    place = np.asarray(affine, dtype=np.float64)
    if place.shape != (4, 4) or not np.isfinite(place).all() or not np.linalg.det(place[:3, :3]):
        came = f"shape {place.shape}" if place.shape != (4, 4) else "one that is not finite or has no volume"
        raise UserFault(expected="an affine (4, 4) that can be inverted", came=came, do="take the file's own")
    return Volume(values, place, spacing_of(place))


def _check_numbers(image: object) -> None:
    if not isinstance(image, np.ndarray):
        raise UserFault(
            expected="an image as a NumPy array, or a path",
            came=type(image).__name__,
            do="convert it with numpy.asarray; of a palette's picture give the path",
        )
    if image.dtype.kind not in "uif":
        raise UserFault(
            expected="an image of whole or floating-point numbers",
            came=f"dtype {image.dtype}",
            do="give its intensities, such as uint8 of 0 to 255",
        )


def _check_shape(shape: tuple[int, ...], *, stacked: bool) -> None:
    colours = len(shape) == 4 and shape[3] == 3
    if (len(shape) not in (2, 3) and not colours) or 0 in shape:
        raise UserFault(expected=KINDS, came=f"shape {shape}", do="give one image or volume, its colours last")
    if stacked and len(shape) == 2:
        raise UserFault(expected="a volume (H, W, N) with affine or plane", came=f"shape {shape}", do="leave them out")
    if len(shape) == 3 and not stacked and (do := _if_one_picture(shape)):
        came = f"shape {shape}, which may be one picture"
        raise UserFault(expected=KINDS, came=came, do=f"{do}; of a volume {WORLD}")


def _if_one_picture(shape: tuple[int, ...]) -> str | None:
    """What a caller can do whose array of this shape is one picture; None where it is no such, or as it should be."""
    if shape[2] in (2, 4):
        return "cut the transparency off: image[..., :-1], or image[..., 0] of a grey picture"
    if shape[2] != 3 and shape[0] in (1, 3, 4):
        return "move the colours last: numpy.moveaxis(image, 0, 2), or image[0] of a grey picture"
    return None


def _check_range(image: NDArray[Any], scale: str) -> None:
    """Refuse floats of 0..1 where intensities of 0..255 are expected: the model would see a black image.

    Raises:
        UserFault: they are.
    """
    if scale == "uint8" and image.dtype.kind == "f" and 0 < image.max() <= 1 and image.min() >= 0:
        raise UserFault(
            expected="values of 0 to 255, as the model was trained (data.scale uint8)",
            came=f"floating-point numbers of {image.min():g} to {image.max():g}",
            do="multiply by 255, or give scale='percentile'",
        )
