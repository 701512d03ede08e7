"""Reading a DICOM-SEG onto the voxels of its series: by place where both say it, else by the slices it refers to."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from nibabel import orientations
from numpy.typing import NDArray

from pfedsam.data.dicom import slices_last
from pfedsam.data.geometry import Affine, Volume
from pfedsam.data.readable import readable
from pfedsam.errors import UserFault

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
STORAGE = ("1.2.840.10008.5.1.4.1.1.66.4", LABEL_MAP)  # Segmentation, Label Map Segmentation
BACKGROUND = ("125040", "DCM")  # what a label map's segment of no tissue is coded as


def segment_labels(head: Any) -> dict[int, str]:
    """Each segment's number and label, as a DICOM-SEG's data set names them; a label map's background is none."""
    return {
        int(s.SegmentNumber): str(s.get("SegmentLabel", "")).strip()
        for s in head.get("SegmentSequence", [])
        if s.get("SegmentNumber") is not None and not _is_background(s, head)
    }


def _is_background(segment: Any, head: Any) -> bool:
    """By the value that the file pads with (0 where it does not say), or by the segment's code."""
    if str(head.get("SOPClassUID", "")) != LABEL_MAP:
        return False
    types = segment.get("SegmentedPropertyTypeCodeSequence") or []
    codes = {(code.get("CodeValue"), code.get("CodingSchemeDesignator")) for code in types}
    return int(segment.SegmentNumber) == int(head.get("PixelPaddingValue") or 0) or BACKGROUND in codes


def class_numbers(heads: Iterable[dict[int, str]]) -> dict[str, int]:
    """A class number a segment label: in the order of the lowest number that any file gives it, then by name."""
    lowest: dict[str, int] = {}
    for labels in heads:
        for number, label in labels.items():
            lowest[label] = min(number, lowest.get(label, number))
    return {label: i + 1 for i, label in enumerate(sorted(lowest, key=lambda k: (lowest[k], k)))}


def read_segmentation(
    path: Path, source: Volume, files: Sequence[Path], *, classes: dict[str, int]
) -> NDArray[np.uint8]:
    """The class of each voxel of `source`, (H, W, N), from the segments' labels; fractions count from a half.

    Args:
        source: the series' volume as read, `files` its slices in order.
        classes: label to class number.

    Raises:
        UserFault: unreadable, not on the series' voxels, or two segments on one voxel.
    """
    with readable(path):
        file = highdicom.seg.segread(path)
        labels = segment_labels(file)
        numbers = sorted(labels)
        if not numbers:
            return np.zeros(source.values.shape[:3], np.uint8)
        placed = source.affine is not None
        planes = _by_place(path, file, source, numbers) if placed else _by_reference(file, files, numbers)
        found = planes >= 0.5
        numbered = found * np.array([classes[labels[n]] for n in numbers], dtype=np.uint8)
    if ((found.sum(-1) > 1) & (numbered.max(-1) != np.where(found, numbered, 255).min(-1))).any():
        raise UserFault(
            expected=f"at most one segment on a voxel in {path}", came="segments that overlap", do="export them apart"
        )
    return np.asarray(numbered.max(-1), dtype=np.uint8)


def _by_place(path: Path, file: Any, source: Volume, numbers: list[int]) -> NDArray[Any]:
    """(H, W, N, segments) on the source's voxels, the segments in the order of `numbers`."""
    drawn = file.get_volume(segment_numbers=numbers, combine_segments=False, dtype=np.float32)
    values, affine = _turned(*slices_last(drawn), source)
    assert source.affine is not None
    relation = np.linalg.inv(source.affine) @ affine
    offset = np.rint(relation[:3, 3]).astype(int)
    several = np.array(values.shape[:3]) > 1  # a single slice does not say how far the next would be
    if np.abs((relation[:3, :3] - np.eye(3))[:, several]).max() > 0.02 or np.abs(relation[:3, 3] - offset).max() > 0.1:
        raise UserFault(
            expected=f"segments on the voxels of their series in {path}",
            came="another grid",
            do="resample the segmentation onto its series, or export it again",
        )
    return _laid(path, values, offset, source.values.shape[:3])


def _turned(values: NDArray[Any], affine: Affine, source: Volume) -> tuple[NDArray[Any], Affine]:
    """The same voxels with axes that run as the source's do."""
    change = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.io_orientation(source.affine)
    )
    turned = affine @ orientations.inv_ornt_aff(change, values.shape[:3])
    return np.asarray(orientations.apply_orientation(values, change)), np.asarray(turned)


def _laid(path: Path, values: NDArray[Any], offset: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """`values` at `offset` in an empty volume of `shape`; nothing marked may lie outside."""
    whole = np.zeros((*shape, values.shape[-1]), values.dtype)
    start, stop = np.maximum(offset, 0), np.minimum(offset + values.shape[:3], shape)
    inside = values[tuple(slice(a - o, max(a, b) - o) for a, b, o in zip(start, stop, offset, strict=True))]
    if np.count_nonzero(inside >= 0.5) != np.count_nonzero(values >= 0.5):
        raise UserFault(
            expected=f"segments inside their series in {path}", came="some outside it", do="check what it was drawn on"
        )
    whole[tuple(slice(a, max(a, b)) for a, b in zip(start, stop, strict=True))] = inside
    return whole


def _by_reference(file: Any, files: Sequence[Path], numbers: list[int]) -> NDArray[Any]:
    """(H, W, N, segments) of the slices that the segmentation says it was drawn on, in the order of `numbers`."""
    uids = [str(pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID) for f in files]
    planes = file.get_pixels_by_source_instance(
        uids,
        segment_numbers=numbers,
        combine_segments=False,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    return np.moveaxis(np.asarray(planes), 0, 2)
