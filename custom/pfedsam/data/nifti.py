"""NIfTI by nibabel: the header is checked before anything else is read, and positions are in millimetres."""

import logging
from math import prod
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from numpy.typing import NDArray

from pfedsam.data.geometry import Affine, apart, spacing_of
from pfedsam.data.values import opaque
from pfedsam.errors import UserFault

NIFTI = (".nii", ".nii.gz")
MILLIMETRES = {1: 1000.0, 3: 0.001}  # by code of xyzt_units: metres, microns; any other code counts as millimetres
BYTES = 2**31  # most bytes of a volume's voxels, as its file stores them
PIXELS = b"pfedsam: spacing in pixels"  # the description of a volume whose source knows no millimetres
FOLDED = 1e-3  # a voxel's volume as a share of its sides' product; below this the affine is flat
TILTED = 0.25  # with a tilted gantry, slice distance and affine step may differ by this share

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it logs small repairs; real errors raise


def opened(path: Path) -> Any:
    """nibabel's image, without reading its voxels.

    Raises:
        UserFault: the voxels are too many, or complex.
    """
    file: Any = nibabel.load(path)
    if (size := prod(file.shape) * file.get_data_dtype().itemsize) > BYTES:
        raise UserFault(
            expected=f"a volume of at most {BYTES // 10**6} million bytes in {path}",
            came=f"{' x '.join(map(str, file.shape))} voxels of {size // 10**6} million bytes by its header",
            do="cut it into parts; if it is smaller, its header is damaged: export it again",
        )
    if file.get_data_dtype().kind == "c":
        raise UserFault(
            expected=f"real numbers in {path}",
            came="complex ones",
            do="save the magnitude as a separate volume",
        )
    return file


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
