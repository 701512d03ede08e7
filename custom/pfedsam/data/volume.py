"""Reads a whole volume or picture from a file: NIfTI by nibabel, DICOM by pydicom, pictures by Pillow."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pfedsam.data import nifti, picture
from pfedsam.data.dicom import read_dicom
from pfedsam.data.geometry import Volume, spacing_of
from pfedsam.data.picture import PICTURES
from pfedsam.data.readable import readable
from pfedsam.errors import UserFault

Kind = Literal["nifti", "picture", "dicom"]

ENDINGS: dict[Kind, tuple[str, ...]] = {"nifti": nifti.NIFTI, "picture": PICTURES, "dicom": (".dcm", ".dicom", ".ima")}


def stem_of(path: Path) -> str:
    """The file's name without a known ending. `.nii.gz` counts as one ending."""
    ends = sorted((end for of_kind in ENDINGS.values() for end in of_kind), key=len, reverse=True)
    return path.name[: len(path.name) - len(next((end for end in ends if path.name.lower().endswith(end)), ""))]


def kind_of(path: Path) -> Kind | None:
    """A file's kind by its ending, and DICOM also by the mark in the file; None: it cannot be read here.

    Raises:
        OSError: the ending is unknown, and the file cannot be read.
    """
    name = path.name.lower()
    by_name = next((kind for kind, ends in ENDINGS.items() if name.endswith(ends)), None)
    return by_name or ("dicom" if path.is_file() and _marked(path) else None)


def _marked(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_volume(path: Path, *, labels: bool = False) -> Volume:
    """The volume in a NIfTI file, a picture, a DICOM file, or a folder with one DICOM series.

    Args:
        labels: the file is a label map: a palette's numbers are kept instead of its colours.

    Raises:
        UserFault: it is unreadable, damaged, or more than one 3-D volume. The message names the file.
    """
    kind = kind_of(path)
    if kind == "nifti":
        return read_nifti(path, labels=labels)
    return read_picture(path, labels=labels) if kind == "picture" else read_dicom(path, labels=labels)


def read_nifti(path: Path, *, labels: bool = False) -> Volume:
    """The volume in a NIfTI file, with its axes as stored. Floats become float32, whole numbers stay.

    Raises:
        UserFault: it is unreadable, truncated, not 3-D, complex, or its header states two positions.
    """
    with readable(path):
        file = nifti.opened(path)
        affine = nifti.affine_of(path, file)
        values = _values(path, file, labels)
    return Volume(values, affine, spacing_of(affine), nifti.guessed(file))


def read_picture(path: Path, *, labels: bool = False) -> Volume:
    """A picture as (H, W, 1) or (H, W, 1, 3), turned by its EXIF mark. Depth is kept, transparency is dropped.

    Args:
        labels: keep a palette's numbers instead of its colours.

    Raises:
        UserFault: it is unreadable or has several pages.
    """
    with readable(path):
        values = picture.pixels(path, labels=labels)
    return Volume(values[:, :, None])


def _values(path: Path, file: Any, labels: bool) -> NDArray[Any]:
    """(H, W, N), or (H, W, N, 3) from nibabel's red, green, blue records."""
    kind = file.get_data_dtype()
    whole = kind.fields or (np.issubdtype(kind, np.integer) and (file.dataobj.slope, file.dataobj.inter) == (1, 0))
    raw = np.asarray(file.dataobj) if whole else file.get_fdata(caching="unchanged", dtype=np.float32)
    return nifti.channels(_three_axes(path, raw), path, labels=labels)


def _three_axes(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    """A single slice gets a third axis. Further axes of length one are dropped."""
    space = values
    while space.ndim > 3 and space.shape[-1] == 1:
        space = space[..., 0]
    if space.ndim == 2:
        space = space[..., None]
    if space.ndim != 3 or not space.size:
        raise UserFault(
            expected=f"a 3-D volume in {path}", came=f"shape {values.shape}", do="split it into 3-D volumes"
        )
    return space
