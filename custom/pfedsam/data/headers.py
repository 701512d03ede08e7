"""What a DICOM file says of its slices: where they are, and whether that can be.

A slice is a classic file, or a frame of an enhanced file with its geometry in functional groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOOKED_AT: tuple[str, ...] = ("Modality", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
LOOKED_AT += ("PatientID", "IssuerOfPatientID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")
NEAREST, FARTHEST = 1e-4, 1e4  # mm: no scanner's pixels or slices are closer or farther apart
SKEW = 0.05  # by which two directions may miss unit length and right angle


@dataclass(frozen=True)
class SliceHeader:
    """One slice, as its header describes it.

    Attributes:
        name: for messages.
        size: rows, columns and samples per pixel.
        spacing: (row, column) in mm; empty if not stated.
        orientation: ImageOrientationPatient; empty if not stated.
        position: ImagePositionPatient; empty if not stated.
        step: the stated distance to the next slice, else the thickness, else 1; in mm.
    """

    name: str
    size: tuple[int, int, int]
    spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    step: float

    @property
    def placed(self) -> bool:
        """Whether it states its position."""
        return bool(self.position and self.orientation)

    @property
    def normal(self) -> NDArray[np.float64]:
        """The unit vector across its plane, towards the left, posterior, superior."""
        return np.cross(self.orientation[:3], self.orientation[3:])


def frames(head: Any) -> int:
    """How many frames a file has; 1 if it does not say."""
    return int(head.get("NumberOfFrames") or 1)


def size_of(head: Any) -> tuple[int, int, int, int]:
    """Frames, rows, columns and samples per pixel."""
    return frames(head), int(head.Rows), int(head.Columns), int(head.get("SamplesPerPixel") or 1)


def enhanced(head: Any) -> bool:
    """Whether a file states a position for each frame in its functional groups."""
    if len(head.get("PerFrameFunctionalGroupsSequence") or ()) < frames(head):
        return False
    return all(group(head, i, "PlanePositionSequence") is not None for i in range(frames(head)))


def slices_of(path: Path, head: Any) -> list[SliceHeader]:
    """The slices of a file, in the order of its frames."""
    if not enhanced(head):
        return [_slice(path.name, head, [head])]
    names = [path.name] if frames(head) == 1 else [f"frame {i + 1} of {path.name}" for i in range(frames(head))]
    return [frame_slice(name, head, i) for i, name in enumerate(names)]


def frame_slice(name: str, head: Any, index: int) -> SliceHeader:
    """The slice that a frame's functional groups describe."""
    kinds = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    return _slice(name, head, [found for kind in kinds if (found := group(head, index, kind)) is not None])


def group(head: Any, index: int, kind: str) -> Any | None:
    """A frame's functional group: its own, else the one shared by all frames; None if there is neither."""
    own = head.get("PerFrameFunctionalGroupsSequence") or []
    shared = head.get("SharedFunctionalGroupsSequence") or []
    places = [*own[index : index + 1], *shared[:1]]
    return next((found[0] for place in places if (found := place.get(kind))), None)


def _slice(name: str, head: Any, places: Sequence[Any]) -> SliceHeader:
    def numbers(tag: str) -> tuple[float, ...]:
        found: Any = next((value for place in places if (value := place.get(tag))), ())
        return tuple(float(x) for x in np.atleast_1d(found))

    size = (int(head.Rows), int(head.Columns), int(head.get("SamplesPerPixel") or 1))
    step = numbers("SpacingBetweenSlices") or numbers("SliceThickness") or (1.0,)
    spacing = numbers("PixelSpacing") or numbers("ImagerPixelSpacing")
    return SliceHeader(
        name, size, spacing, numbers("ImageOrientationPatient"), numbers("ImagePositionPatient"), step[0]
    )


def misplaced(head: Any) -> str | None:
    """What is wrong with the numbers by which an image states its place; None if nothing is, or it states none."""
    try:
        slices = slices_of(Path("it"), head)
    except Exception:  # pydicom reads a number when it is asked for it, and raises nearly any exception
        return "numbers in its header that can't be read"
    return next((wrong for one in slices if (wrong := _misplaced(one)) is not None), None)


def _misplaced(one: SliceHeader) -> str | None:
    for tag, found, count in (
        ("PixelSpacing", one.spacing, 2),
        ("ImageOrientationPatient", one.orientation, 6),
        ("ImagePositionPatient", one.position, 3),
    ):
        if found and (len(found) != count or not np.isfinite(found).all()):
            return f"a {tag} of {len(found)} numbers instead of {count}" if len(found) != count else f"no finite {tag}"
    if not all(NEAREST <= side <= FARTHEST for side in one.spacing) or not abs(one.step) <= FARTHEST:
        return f"a spacing outside {NEAREST:g} to {FARTHEST:g} mm"
    if one.orientation:
        rows = np.reshape(one.orientation, (2, 3))
        if not np.allclose(rows @ rows.T, np.eye(2), rtol=0, atol=SKEW):
            return "an ImageOrientationPatient that is no pair of perpendicular directions"
    return None
