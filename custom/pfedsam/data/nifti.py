"""NIfTI by nibabel: the header is checked before anything else is read, and positions are in millimetres."""

import logging
from math import prod
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from nibabel.openers import ImageOpener
from numpy.typing import NDArray

from pfedsam.data.geometry import Affine, apart, spacing_of
from pfedsam.data.values import opaque, require_room
from pfedsam.errors import UserFault

NIFTI = (".nii", ".nii.gz")
MILLIMETRES = {1: 1000.0, 3: 0.001}  # by code of xyzt_units: metres, microns; any other code counts as millimetres
BEFORE = 2**24  # most bytes before the voxels; nibabel reads them at once, and a packed file may have any number
STARTS = {348: ("f4", 108), 540: ("i8", 168)}  # by a header's length: kind and place of the number of those bytes
PIXELS = b"pfedsam: spacing in pixels"  # the description of a volume whose source knows no millimetres
FOLDED = 1e-3  # a voxel's volume as a share of its sides' product; below this the affine is flat
TILTED = 0.25  # with a tilted gantry, slice distance and affine step may differ by this share

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it logs small repairs; real errors raise


def opened(path: Path) -> Any:
    """nibabel's image, without reading its voxels.

    Raises:
        UserFault: the voxels are too many, or complex.
    """
    _check_start(path)
    file: Any = nibabel.load(path)
    require_room(file.shape, file.get_data_dtype().itemsize, str(path))
    if file.get_data_dtype().kind == "c":
        raise UserFault(
            expected=f"real numbers in {path}",
            came="complex ones",
            do="save the magnitude as a separate volume",
        )
    return file


def _check_start(path: Path) -> None:
    """Refuse a file that says that its voxels begin far behind its header."""
    with ImageOpener(str(path)) as file:
        start = file.read(max(STARTS))
    for order in "<>":
        length = int.from_bytes(start[:4], "little" if order == "<" else "big")
        kind, place = STARTS.get(length, ("", 0))
        if kind and len(start) >= length and np.frombuffer(start, order + kind, 1, place)[0] > BEFORE:
            raise UserFault(
                expected=f"the voxels of {path} near its beginning",
                came=f"a header that puts more than {BEFORE // 2**20} MiB of other things before them",
                do="save it again without extensions, or export it again",
            )


def affine_of(path: Path, file: Any) -> Affine:
    """The affine from voxels to millimetres, after the header's unit.

    Raises:
        UserFault: it makes the voxels flat, or the header states two positions or sizes.
    """
    scale = np.diag([*[MILLIMETRES.get(int(file.header["xyzt_units"]) & 7, 1.0)] * 3, 1.0])
    affine = np.asarray(scale @ np.asarray(file.affine, dtype=np.float64))
    sides = spacing_of(affine)
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine)) > FOLDED * prod(sides):
        raise UserFault(
            expected=f"an affine that places the voxels of {path}",
            came="one that makes them flat",
            do="export the file again, or correct its header",
        )
    _check_forms(path, file, scale)
    _check_pixdim(path, file)
    return affine


def guessed(file: Any) -> bool:
    """Whether the header states no position, so that nibabel makes one up: from the middle, with x to the left."""
    return not (int(file.header["qform_code"]) or int(file.header["sform_code"]))


def unit(file: Any) -> Literal["mm", "px"]:
    """The unit of the spacing. NIfTI cannot say that a source knows no millimetres, so `prepare` writes a note."""
    return "px" if bytes(file.header["descrip"].tobytes()).startswith(PIXELS) else "mm"


def _check_forms(path: Path, file: Any, scale: Affine) -> None:
    """Refuse a header whose two positions differ. Programs differ in which of the two they follow."""
    (qform, q), (sform, s) = file.get_qform(coded=True), file.get_sform(coded=True)
    if not q or not s:
        return
    shape = (*file.shape, 1, 1)[:3]
    far = apart(scale @ sform, scale @ qform, shape)
    if far > min(spacing_of(scale @ sform)) / 2:
        raise UserFault(
            expected=f"one position of the voxels of {path}",
            came=f"two that are up to {far:.3g} mm apart: the header's sform (code {s}) and its qform (code {q})",
            do="find out which of the two is right and write it into both fields"
            " (nibabel: image.set_qform(image.get_sform()), or the other way round)",
        )


def _check_pixdim(path: Path, file: Any) -> None:
    told, meant = np.array(file.header.get_zooms()[:3]), np.array(spacing_of(file.affine))[: len(file.shape)]
    if (np.abs(told - meant) > TILTED * meant).any():
        raise UserFault(
            expected=f"one size for the voxels of {path}",
            came=f"{_sides(told)} by the header's pixdim and {_sides(meant)} by its affine",
            do="find out which of the two is right and export the file with it",
        )


def _sides(lengths: NDArray[Any]) -> str:
    return " x ".join(f"{length:.3g}" for length in lengths)


def channels(values: NDArray[Any], path: Path, *, labels: bool) -> NDArray[Any]:
    """nibabel's records of red, green, blue (and transparency) as (..., 3). Other values are unchanged."""
    names = values.dtype.names
    if names is None:
        return values
    stacked = np.stack([values[name] for name in names], axis=-1)
    return opaque(stacked, path, labels=labels) if "A" in names else stacked
