"""Reads a DICOM-SEG onto the voxels of its series: frame by frame if possible, else as a volume."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from nibabel import orientations
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from pfedsam.data.dicom import dicom_header
from pfedsam.data.geometry import Affine, Volume
from pfedsam.data.readable import readable
from pfedsam.data.slices import LPS_TO_RAS
from pfedsam.data.volume import kind_of
from pfedsam.errors import UserFault
from pfedsam.prepare.segframes import CLOSE, NEAR, slices_drawn_on

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
STORAGE = ("1.2.840.10008.5.1.4.1.1.66.4", LABEL_MAP)  # Segmentation, Label Map Segmentation
Lost = Counter[tuple[int, int]]  # voxels by (lower class, class on top of it)
BACKGROUND = ("125040", "DCM")  # the code of a label map's background segment


def is_segmentation(path: Path) -> bool:
    """Whether a file is a DICOM-SEG."""
    head = dicom_header(path) if kind_of(path) == "dicom" else None
    return head is not None and str(head.get("SOPClassUID", "")) in STORAGE


def segment_labels(head: Any) -> dict[int, str]:
    """Each segment's number and label in a DICOM-SEG's data set, without a label map's background.

    A segment without a label is named by its number. Two such segments are two structures.
    """
    return {
        int(s.SegmentNumber): str(s.get("SegmentLabel") or "").strip() or f"segment {int(s.SegmentNumber)}"
        for s in head.get("SegmentSequence", [])
        if s.get("SegmentNumber") is not None and not _is_background(s, head)
    }


def _is_background(segment: Any, head: Any) -> bool:
    """By the file's padding value (0 if it states none), or by the segment's code."""
    if str(head.get("SOPClassUID", "")) != LABEL_MAP:
        return False
    types = segment.get("SegmentedPropertyTypeCodeSequence") or []
    codes = {(code.get("CodeValue"), code.get("CodingSchemeDesignator")) for code in types}
    return int(segment.SegmentNumber) == int(head.get("PixelPaddingValue") or 0) or BACKGROUND in codes


def number_labels(heads: Iterable[dict[int, str]]) -> dict[str, int]:
    """A class number for each segment label, in the order of the lowest number in any file, then by name.

    Labels that differ only in upper and lower case are one structure.
    """
    lowest, spelt = dict[str, int](), dict[str, None]()
    for labels in heads:
        for number, label in labels.items():
            spelt[label] = None
            lowest[label.casefold()] = min(number, lowest.get(label.casefold(), number))
    order = {label: i for i, label in enumerate(sorted(lowest, key=lambda k: (lowest[k], k)), 1)}
    return {label: order[label.casefold()] for label in sorted(spelt, key=lambda k: (order[k.casefold()], k))}


def read_segmentation(
    path: Path,
    source: Volume,
    files: Sequence[Path],
    *,
    classes: dict[str, int],
    covered: Lost | None = None,
) -> NDArray[np.uint8]:
    """The class of each voxel of `source`, (H, W, N), from the segments' labels. Fractions count from one half.

    A frame goes onto the slice that it names, else onto the slice at its position. If a frame has neither, as
    on a rotated grid, the segments are placed as a volume.

    Args:
        source: the volume of the series; `files` are its slices in order.
        classes: label to class number; 0 leaves a segment out.
        covered: if given, the higher class counts where two overlap, and the voxels are added here by (lower class,
            class on top of it). None: that is a fault.

    Raises:
        UserFault: it is unreadable, does not fit the series' voxels, or has two classes on one voxel.
    """
    with readable(path):
        file = highdicom.seg.segread(path)
        labels = segment_labels(file)
        numbers = sorted(labels)
        if not numbers:
            return np.zeros(source.values.shape[:3], np.uint8)
        found = _drawn(path, file, source, files, numbers)
        own = np.array([classes[labels[n]] for n in numbers], dtype=np.uint8)
    top = np.asarray((found * own).max(-1), dtype=np.uint8)
    lost, sizes = _lost(found, own, top)
    if covered is not None:
        covered.update(lost)
    elif lost:
        raise _overlap(path, lost, classes, sizes)
    return top


def _drawn(path: Path, file: Any, source: Volume, files: Sequence[Path], numbers: list[int]) -> NDArray[np.bool_]:
    """Where each segment is, (H, W, N, segments).

    Raises:
        UserFault: the frames name no image, and the image has no position.
    """
    targets = slices_drawn_on(path, file, source, files)
    if targets is not None:
        return _by_frame(file, targets, numbers, source.values.shape[:3])
    if source.affine is not None:
        return _by_place(path, file, source, numbers) >= 0.5
    raise UserFault(
        expected=f"frames in {path} that name their source image",
        came="frames without DerivationImageSequence, and an image without a position",
        do="export the segmentation with references to its source images, or the mask as PNG",
    )


def _lost(found: NDArray[np.bool_], own: NDArray[np.uint8], top: NDArray[np.uint8]) -> tuple[Lost, dict[int, int]]:
    """The voxels that a class loses to a higher one, by both classes; and how many voxels each class has."""
    sizes, lost = dict[int, int](), Lost()
    for number in sorted({*own.tolist()} - {0}):
        drawn = found[..., own == number].any(-1)
        sizes[number] = int(drawn.sum())
        lost.update((number, above) for above in top[drawn & (top > number)].tolist())
    return lost, sizes


def _overlap(path: Path, lost: Lost, classes: dict[str, int], sizes: dict[int, int]) -> UserFault:
    """The fault of segments on one voxel. Its remedy has the largest class below.

    Args:
        lost: voxels of two classes, by both.
        sizes: voxels of each class.
    """
    names = {number: label for label, number in reversed(classes.items()) if number}
    order = ",".join(f"{names[n]}={i}" for i, n in enumerate(sorted(names, key=lambda n: (-sizes.get(n, 0), n)), 1))
    pairs = ", ".join(f"{names[one]} and {names[other]}" for one, other in sorted(lost))
    return UserFault(
        expected=f"at most one segment per voxel in {path}",
        came=f"segments that overlap in {sum(lost.values())} voxel(s): {pairs}",
        do=f"say which is on top by giving it the highest number: --labels {order}; one not named there is left out",
    )


def _by_frame(
    file: Any, targets: Sequence[tuple[int | None, int]], numbers: list[int], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """(H, W, N, segments), each frame on its slice, segments in the order of `numbers`."""
    whole = np.zeros((*shape, len(numbers)), bool)
    half = float(file.get("MaximumFractionalValue") or 1) / 2
    for frame, (segment, slice_) in zip(file.get_stored_frames(), targets, strict=True):
        if segment is None:  # a label map
            whole[:, :, slice_] = frame[..., None] == np.array(numbers)
        elif segment in numbers:
            whole[:, :, slice_, numbers.index(segment)] = frame >= half
    return whole


def _by_place(path: Path, file: Any, source: Volume, numbers: list[int]) -> NDArray[Any]:
    """(H, W, N, segments) on the source's voxels, segments in the order of `numbers`."""
    values, affine = _turned(*_volume(path, file, numbers), source)
    assert source.affine is not None
    relation = np.linalg.inv(source.affine) @ affine
    offset = np.rint(relation[:3, 3]).astype(int)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(values.shape[:3]) - 1)
    off = np.abs(apply_affine(relation, corners) - corners - offset)
    if off[0].max() > CLOSE or off.max() >= NEAR:
        raise UserFault(
            expected=f"segments on the voxels of their series in {path}",
            came="segments on another grid",
            do="resample the segmentation onto its series, or export it again",
        )
    return _laid(path, values, offset, source.values.shape[:3])


def _volume(path: Path, file: Any, numbers: list[int]) -> tuple[NDArray[Any], Affine]:
    """The segments as (H, W, N, segments), and their affine to RAS mm."""
    try:
        drawn = file.get_volume(segment_numbers=numbers, combine_segments=False, dtype=np.float32)
    except (RuntimeError, ValueError, AttributeError):
        raise UserFault(
            expected=f"frames in {path} that name their slice, are at slices of their series, or form an even grid",
            came="none of these",
            do="export the segmentation with references to its source images, or as NIfTI on the series' grid",
        ) from None
    affine = (LPS_TO_RAS @ np.asarray(drawn.affine))[:, [1, 2, 0, 3]]  # highdicom counts slices first
    return np.moveaxis(np.asarray(drawn.array), 0, 2), affine


def _turned(values: NDArray[Any], affine: Affine, source: Volume) -> tuple[NDArray[Any], Affine]:
    """The same voxels with axes in the directions of the source's axes."""
    change = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.io_orientation(source.affine)
    )
    turned = affine @ orientations.inv_ornt_aff(change, values.shape[:3])
    return np.asarray(orientations.apply_orientation(values, change)), np.asarray(turned)


def _laid(path: Path, values: NDArray[Any], offset: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """`values` at `offset` in an empty volume of `shape`. Marked voxels must be inside it."""
    whole = np.zeros((*shape, values.shape[-1]), values.dtype)
    start, stop = np.maximum(offset, 0), np.minimum(offset + values.shape[:3], shape)
    inside = values[tuple(slice(a - o, max(a, b) - o) for a, b, o in zip(start, stop, offset, strict=True))]
    if np.count_nonzero(inside >= 0.5) != np.count_nonzero(values >= 0.5):
        raise UserFault(
            expected=f"segments inside their series in {path}",
            came="some outside it",
            do="find the series on which they were drawn",
        )
    whole[tuple(slice(a, max(a, b)) for a, b in zip(start, stop, strict=True))] = inside
    return whole
