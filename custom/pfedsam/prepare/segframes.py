"""Finds the slice on which each frame of a DICOM-SEG was drawn: the slice it names, else the slice at its position."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfedsam.data.dicom import dicom_header, frame_order
from pfedsam.data.geometry import Affine, Volume
from pfedsam.data.headers import SliceHeader, enhanced, frame_slice, frames, group, slices_of
from pfedsam.data.slices import LPS_TO_RAS, alike, parallel
from pfedsam.errors import UserFault

Instance = tuple[str, int]  # SOPInstanceUID and frame number; 0 for a file with one slice
NEAR = 0.5  # of a voxel: a frame and the slice that it names are closer than this
CLOSE = 0.1  # of a voxel: a frame that names no slice is at most this far from its slice


@dataclass(frozen=True)
class Frame:
    """One frame, as its functional groups describe it. `sources` are the slices that it names."""

    segment: int | None
    sources: frozenset[Instance]
    place: SliceHeader

    def fits(self, one: SliceHeader) -> bool:
        """Whether its pixels have the directions and size of this slice, as far as both files state them."""
        own = self.place
        turned = own.orientation and one.orientation and not parallel(own.orientation, one.orientation)
        wider = own.spacing and one.spacing and not alike(own.spacing, one.spacing)
        return not (turned or wider)


def slices_drawn_on(
    path: Path, file: Any, source: Volume, files: Sequence[Path]
) -> list[tuple[int | None, int]] | None:
    """For each frame its segment (None in a label map) and the index of its slice in `source`.

    The result is None if a frame has no slice, or if two frames of one segment share a slice.

    Args:
        path: of the segmentation, for the message.
        files: the slices of `source` in order, or its single enhanced file.

    Raises:
        UserFault: a frame states another position than the slice that it names.
    """
    slices = _slices(files)
    if (file.Rows, file.Columns) != next(iter(slices.values())).size[:2]:
        return None
    drawn = [_frame(file, i) for i in range(frames(file))]
    if (found := _named(path, drawn, source, slices) or _met(drawn, source, slices)) is None:
        return None
    laid = [(frame.segment, i) for frame, i in zip(drawn, found, strict=True)]
    return laid if len(set(laid)) == len(drawn) else None


def _slices(files: Sequence[Path]) -> dict[Instance, SliceHeader]:
    """A series' slices in order."""
    heads = [dicom_header(file) for file in files]
    if len(heads) == 1 and heads[0] is not None and enhanced(heads[0]):
        own, uid = slices_of(files[0], heads[0]), str(heads[0].get("SOPInstanceUID"))
        one = len(own) == 1
        found = {(uid, 0 if one else i + 1): own[i] for i in frame_order(files[0])}
    else:
        found = {(str(h.get("SOPInstanceUID")), 0): slices_of(f, h)[0] for f, h in zip(files, heads, strict=True) if h}
    return found


def _frame(file: Any, index: int) -> Frame:
    segment = group(file, index, "SegmentIdentificationSequence")
    derived = group(file, index, "DerivationImageSequence")
    named = derived.get("SourceImageSequence", []) if derived is not None else []
    return Frame(
        None if segment is None else int(segment.ReferencedSegmentNumber),
        frozenset(
            (str(s.ReferencedSOPInstanceUID), int(n))
            for s in named
            for n in np.atleast_1d(s.get("ReferencedFrameNumber") or 0)
        ),
        frame_slice("", file, index),
    )


def _named(path: Path, drawn: list[Frame], source: Volume, slices: dict[Instance, SliceHeader]) -> list[int] | None:
    """By reference: each frame names one slice of the series and has its direction and spacing."""
    index = {instance: i for i, instance in enumerate(slices)} | {
        (uid, 1): i for i, (uid, number) in enumerate(slices) if number == 0
    }
    known = list(slices.values())
    found = []
    for frame in drawn:
        places = {index[s] for s in frame.sources if s in index}
        if len(places) != 1 or len(frame.sources) != 1:
            return None
        (place,) = places
        one = known[place]
        if not frame.fits(one):
            return None
        if _apart(frame, one, source):
            here, there = _told(frame.place.position), _told(one.position)
            raise UserFault(
                expected=f"each frame in {path} at the position of the slice that it names",
                came=f"a frame at {here} that names {one.name} at {there}",
                do="export the segmentation again: its references or its positions are wrong",
            )
        found.append(place)
    return found


def _met(drawn: list[Frame], source: Volume, slices: dict[Instance, SliceHeader]) -> list[int] | None:
    """By position: each frame is on one slice of the series."""
    known = list(slices.values())
    if source.affine is None or not all(frame.place.placed for frame in drawn) or not all(one.placed for one in known):
        return None
    places = np.stack([_voxel(one.position, source.affine) for one in known])
    found = []
    for frame in drawn:
        off = np.abs(places - _voxel(frame.place.position, source.affine)).max(1)
        nearest = int(off.argmin())
        if off[nearest] > CLOSE or not frame.fits(known[nearest]):
            return None
        found.append(nearest)
    return found


def _apart(frame: Frame, one: SliceHeader, source: Volume) -> bool:
    """Whether both state their positions, and these differ by half a voxel or more."""
    if source.affine is None or not frame.place.position or not one.position:
        return False
    places = [_voxel(position, source.affine) for position in (frame.place.position, one.position)]
    return bool(np.abs(places[0] - places[1]).max() >= NEAR)


def _voxel(position: Sequence[float], affine: Affine) -> NDArray[np.float64]:
    """The voxel of an ImagePositionPatient in the volume: row, column and slice."""
    return np.linalg.solve(affine, LPS_TO_RAS @ [*position, 1.0])[:3]


def _told(place: Sequence[float]) -> str:
    return ", ".join(f"{x:g}" for x in place) + " mm"
