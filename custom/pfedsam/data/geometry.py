"""Volumes with their position in the patient, arranged in one way whatever their stored orientation.

Axes are permuted and flipped, never resampled: a label volume can be restored voxel for voxel.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from pfedsam.data.planes import CHOICES, PLANES, STORED
from pfedsam.errors import UserFault

Affine = NDArray[np.float64]
COARSE = 1.5  # a slice is coarse if its steps are this many times the distance to the next slice


@dataclass(frozen=True)
class Volume:
    """An image or a label map with its position.

    Attributes:
        values: (H, W, N), or (H, W, N, 3) of red, green, blue; a picture has N = 1.
        affine: (4, 4), from (row, column, slice) to millimetres towards right, anterior, superior; None if the file
            does not state its position (pictures).
        spacing: (row, column, slice) in mm; 1 if the file does not know millimetres.
        guessed: the file states no position, so `affine` is the reader's guess, good for the plane `stored` alone.
    """

    values: NDArray[Any]
    affine: Affine | None = None
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    guessed: bool = False


def oriented(volume: Volume, plane: str) -> Volume:
    """`volume` with its slices arranged for `plane`. Pictures, and any volume for `stored`, are unchanged.

    Args:
        plane: axial: rows to posterior, columns to the patient's left, slices to superior; coronal: rows to
            inferior, columns to left, slices to posterior; sagittal: rows to inferior, columns to posterior,
            slices to left. `stored`: along the last axis of the file.

    Raises:
        UserFault: the plane is unknown.
    """
    layout = laid(volume.affine, volume.values.shape[:3], plane)
    if layout.change is None or layout.affine is None:
        return volume
    values = orientations.apply_orientation(volume.values, layout.change)
    return Volume(values, layout.affine, spacing_of(layout.affine))


@dataclass(frozen=True)
class Layout:
    """A stored volume's arrangement in a plane. Its slices can be read one by one, as `oriented` gives them.

    Attributes:
        shape: (H, W, N) in the plane.
        affine: (4, 4), from (row, column, slice) in the plane to mm; None if the file states no position.
        change: nibabel's orientation array from the stored axes to the plane's; None if nothing changes.
    """

    shape: tuple[int, int, int]
    affine: Affine | None
    change: NDArray[Any] | None

    def slice(self, stored: Any, index: int) -> NDArray[Any]:
        """Slice `index`, (H, W), of an array with the stored volume's axes. Other slices are not read."""
        if self.change is None:
            return np.asarray(stored[:, :, index])
        axis = int(np.flatnonzero(self.change[:, 0] == 2)[0])
        place: list[Any] = [slice(None)] * 3
        place[axis] = index if self.change[axis, 1] > 0 else self.shape[2] - 1 - index
        flat = np.asarray(stored[tuple(place)])
        return np.asarray(orientations.apply_orientation(flat, np.delete(self.change, axis, 0)))


def laid(affine: Affine | None, shape: tuple[int, ...], plane: str) -> Layout:
    """The layout in `plane` of a volume stored in `shape`. A volume without a position stays as stored.

    Raises:
        UserFault: the plane is unknown.
    """
    change = _change(affine, plane)
    height, width, depth = shape
    if change is None or affine is None:
        return Layout((height, width, depth), affine, None)
    height, width, depth = (shape[int(axis)] for axis in np.argsort(change[:, 0]))
    return Layout((height, width, depth), affine @ orientations.inv_ornt_aff(change, shape), change)


def placeless(spacing: tuple[float, float, float], plane: str) -> Affine:
    """The affine to write for a volume without a position, so that `plane` reads it unchanged."""
    affine = np.diag([*spacing, 1.0])
    if plane == STORED:
        return affine
    towards = dict(zip("RLAPSI", np.repeat(np.eye(3), 2, 0) * np.tile([1, -1], 3)[:, None], strict=True))
    for axis, code in enumerate(PLANES[plane]):
        affine[:3, axis] = towards[code] * spacing[axis]
    return affine


def restored(labels: NDArray[Any], affine: Affine | None, plane: str) -> NDArray[Any]:
    """The exact inverse of `oriented`, for `labels` (H, W, N, ...) found on its slices.

    Args:
        affine: the source's affine before `oriented`.
        plane: the plane given to `oriented`.
    """
    change = _change(affine, plane, back=True)
    return labels if change is None else np.asarray(orientations.apply_orientation(labels, change))


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """(row, column, slice) in mm."""
    row, column, depth = (float(x) for x in nibabel.affines.voxel_sizes(affine))
    return row, column, depth


def across(spacing: tuple[float, float, float], slices: int) -> bool:
    """Whether steps within slices are coarser than between them: the volume was taken in another plane."""
    return slices > 1 and max(spacing[:2]) > COARSE * spacing[2]


def check_cut(affine: Affine | None, shape: tuple[int, ...], plane: str, where: str) -> None:
    """Refuse a single slice that the plane would cut into pieces one pixel wide.

    Args:
        affine, shape: in the layout of `plane`.
        where: the file, for the message.

    Raises:
        UserFault: it would be cut, and another plane would keep it whole.
    """
    if affine is None or min(shape[:2]) > 1:
        return
    size = (shape[0], shape[1], shape[2])
    if whole := next((other for other in PLANES if min(laid(affine, size, other).shape[:2]) > 1), None):
        raise UserFault(
            expected=f"{plane} slices of several rows and columns in {where}",
            came=f"a single {whole} slice, which {plane} cuts into pieces of {shape[0]} x {shape[1]} pixels",
            do=f"use the plane {whole} (data.plane of the job, --plane of prepare and predict)",
        )


def check_placed(guessed: bool, plane: str, where: str) -> None:
    """Refuse a volume that states no position, unless it is taken as stored. Programs do not all guess the same left.

    Args:
        guessed: as in `Volume`.
        where: the file, for the message.

    Raises:
        UserFault: its position is a guess, and `plane` needs it.
    """
    if guessed and plane != STORED:
        raise UserFault(
            expected=f"a position in the header of {where}, so that {plane} slices can be found",
            came="none: qform_code and sform_code are 0, so nothing says where left is",
            do="write it there (nibabel: image.set_sform(affine, 1); a mask takes the affine of its image), or, if all"
            f" files are stored alike, take the plane {STORED} (data.plane of the job, --plane of prepare and predict)",
        )


def check_formats(image: Path, mask: Path, places: tuple[Affine | None, Affine | None]) -> None:
    """Refuse a NIfTI file and a picture as a pair: one counts along x and y, the other in rows and columns.

    No file states how they were turned, and on a square image a wrong guess would not show.

    Args:
        places: affines of image and mask; None for a picture.

    Raises:
        UserFault: only one of them states its position.
    """
    if (places[0] is None) != (places[1] is None):
        raise UserFault(
            expected=f"the mask {mask} in the format of its image {image}",
            came="one file that states the position of its voxels (affine), and one that does not",
            do="save both in one format: both as NIfTI with one affine, or both as pictures",
        )


def strayed(image: Affine | None, mask: Affine | None, shape: tuple[int, ...]) -> str | None:
    """How far a mask of the same `shape` is from its image, in words.

    None: each corner is within half of the image's smallest voxel side, or one of them states no position.
    """
    if image is None or mask is None:
        return None
    far = apart(image, mask, shape)
    if far <= min(spacing_of(image)) / 2:
        return None
    return f"the same size, but up to {far:#.3g} mm away by the headers (affine)"


def apart(one: Affine, other: Affine, shape: tuple[int, ...]) -> float:
    """The largest distance between the corners of a volume under two affines, in mm."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
    places = [nibabel.affines.apply_affine(affine, corners) for affine in (one, other)]
    return float(np.linalg.norm(places[0] - places[1], axis=1).max())


def _change(affine: Affine | None, plane: str, *, back: bool = False) -> NDArray[Any] | None:
    """nibabel's orientation array from a source's axes to a plane's, or back; None if nothing changes."""
    if plane not in CHOICES:
        raise UserFault(expected=f"a plane: {', '.join(PLANES)} or {STORED}", came=plane, do="choose one of them")
    if affine is None or plane == STORED:
        return None
    ends = orientations.io_orientation(affine), orientations.axcodes2ornt(PLANES[plane])
    return np.asarray(orientations.ornt_transform(*(reversed(ends) if back else ends)))
