"""Finds what can be predicted below a folder: pictures, NIfTI volumes and DICOM series."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfedsam.data.dicom import (
    dicom_header,
    holds_volume,
    in_order,
    lacks_preamble,
    placed,
    shared_uids,
    unusable,
    volumes,
)
from pfedsam.data.headers import frames, slices_of
from pfedsam.data.nifti import NIFTI
from pfedsam.data.picture import PICTURES
from pfedsam.data.readable import LINKED, closed, hindrance, may_be_image
from pfedsam.data.slices import make_volume, scattered
from pfedsam.data.volume import Kind, kind_of, stem_of
from pfedsam.errors import UserFault
from pfedsam.layout import PREDICTED

NO_IMAGE = ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG")  # DICOM modalities without an image


@dataclass(frozen=True)
class Scan:
    """One image to predict: a picture, a NIfTI volume or a DICOM series.

    Attributes:
        kind: the format of its files.
        files: one file, or a DICOM series' files in the order of the slices.
        name: its path below the output folder, without an ending.
        instances: the SOPInstanceUID of each DICOM file, in order.
        series: of DICOM slices that are one file each, the SeriesInstanceUID and the PatientID.
    """

    kind: Kind
    files: tuple[Path, ...]
    name: Path
    instances: tuple[str, ...] = field(default=(), repr=False, compare=False)
    series: tuple[str, str] | None = field(default=None, repr=False, compare=False)


def find_scans(source: Path, out: Path | None = None) -> Iterator[Scan | UserFault]:
    """The scans in file or folder `source`, sorted by path. Each unusable one is returned as a fault.

    Hidden files, hidden folders and everything below `out` are skipped. So are texts and documents. What else cannot be
    read, and may be an image, is a fault: a folder, a link to a folder, and files of other kinds together.

    Raises:
        UserFault: `source` does not exist or contains no image, or `out` is `source`.
    """
    if not source.exists():
        raise UserFault(expected=f"a file or folder at {source}", came="nothing", do="correct the path")
    if out is not None and out.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise UserFault(
            expected="a separate output folder", came=f"{out}, which contains the images", do="name another"
        )
    found: Scan | UserFault | None = None
    others: list[Path] = []
    for one in _folders(source, out):
        for found in [one] if isinstance(one, UserFault) else _in_folder(*one, source, others):
            yield found
    if found is None or others:
        fault = UserFault(
            expected=f"images in {source} of a kind that can be read ({', '.join((*PICTURES, *NIFTI))} or DICOM)",
            came=f"{len(others)} files of other kinds, such as {others[0]}" if others else "none",
            do="convert them, or leave them out if they are no images" if others else "correct the path",
        )
        if found is None:
            raise fault
        yield fault


def _folders(source: Path, out: Path | None) -> Iterator[tuple[Path, list[Path]] | UserFault]:
    """Each folder with its files, and the fault of each that cannot be searched."""
    if source.is_file():
        yield source.parent, [source]
        return
    own = out.resolve() if out else None
    refused: list[OSError] = []
    for top, below, names in os.walk(source, onerror=refused.append):
        below[:] = sorted(n for n in below if not n.startswith(".") and not _has_masks(Path(top, n), own))
        for link in (Path(top, name) for name in below if Path(top, name).is_symlink()):
            yield UserFault(expected=f"a folder at {link}", came=LINKED[0], do=LINKED[1])
        yield Path(top), [Path(top) / name for name in sorted(names) if not name.startswith(".")]
    for error in refused:
        came, do = closed(error)
        yield UserFault(expected=f"a folder that can be read at {error.filename}", came=came, do=do)


def _has_masks(folder: Path, own: Path | None) -> bool:
    """Whether a folder holds masks of `predict`: of this command or of an earlier one."""
    return folder.resolve() == own or (folder / PREDICTED).is_file()


def _in_folder(folder: Path, files: list[Path], source: Path, others: list[Path]) -> Iterator[Scan | UserFault]:
    """The scans among the files of a folder. Files of other kinds that may be images are added to `others`."""
    root = source if source.is_dir() else source.parent
    dicom = []
    for file in files:
        if hindered := hindrance(file):
            yield UserFault(expected=f"a file that can be read at {file}", came=hindered[0], do=hindered[1])
        elif (kind := kind_of(file)) == "dicom":
            dicom.append(file)
        elif kind:
            yield Scan(kind, (file,), file.relative_to(root).with_name(stem_of(file)))
        elif lacks_preamble(file):
            yield UserFault(
                expected=f"DICOM with its preamble in {file}",
                came="the data without the 128 bytes and DICM before it",
                do="export it again from the archive (PACS), or convert it with dcmconv of DCMTK",
            )
        elif may_be_image(file):
            others.append(file)
    if source.is_file():
        yield from _series(dicom, Path(), stem_of(source))
    else:
        yield from _series(dicom, folder.relative_to(root), Path(os.path.abspath(folder)).name)


def _series(files: list[Path], place: Path, alone: str) -> Iterator[Scan | UserFault]:
    """The scans in DICOM files of one folder.

    Args:
        place: the folder's, below the source.
        alone: the name of a series without others. With several series, each is named by its UID instead of a
            number: if a number moved to another series after a file was added, its old mask would seem to fit.
    """
    series: dict[str, dict[Path, Any]] = defaultdict(dict)
    for file in files:
        head = dicom_header(file)
        if head is not None and ("Rows" not in head or head.get("Modality") in NO_IMAGE):
            continue
        if fault := unusable(file, head) or _unnamed(file, head):
            yield fault
        elif head is not None:
            series[str(head.SeriesInstanceUID)][file] = head
    stacks = {uid: {file: head for file, head in heads.items() if placed(head)} for uid, heads in series.items()}
    several = sum(map(bool, stacks.values())) > 1
    lone = _scattered(list(stacks.values()))
    for uid, stack in stacks.items():
        if stack and next(iter(stack)) in lone:
            yield lone[next(iter(stack))]
            continue
        yield from (_flat(file, series[uid][file], place, stack) for file in series[uid] if file not in stack)
        groups = volumes(stack)
        for part in groups:
            short = f"series-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"
            name = place / short if several else place.parent / alone
            yield from _stack(part, name if len(groups) == 1 else place / stem_of(next(iter(part))))


def _scattered(stacks: list[dict[Path, Any]]) -> dict[Path, UserFault]:
    """By file, the fault of slices that are one series each but form a volume together."""
    lone = {
        file: ((str(head.get("FrameOfReferenceUID")), str(head.get("PatientID"))), slices_of(file, head)[0])
        for stack in stacks
        for file, head in (stack.items() if len(stack) == 1 else ())
        if frames(head) == 1
    }
    return {
        file: UserFault(expected=f"a series that contains the slice {file}", came=came, do=do)
        for file, (came, do) in scattered(lone).items()
    }


def twins(scans: Iterable[Scan]) -> dict[Path, UserFault]:
    """By a scan's first file, the fault of two different DICOM scans that share a SOPInstanceUID.

    A segmentation of one would also refer to the other.
    """
    dicom = [scan for scan in scans if scan.instances]
    faults = shared_uids(dict(zip(scan.instances, scan.files, strict=True)) for scan in dicom)
    return {dicom[i].files[0]: fault for i, fault in faults.items()}


def parts(scans: Iterable[Scan]) -> dict[Path, UserFault]:
    """By a scan's first file, the fault of DICOM scans that are parts of one volume in several folders.

    Each part would be scaled by its own brightness and get a mask of its own.
    """
    groups: dict[tuple[str, str], list[Scan]] = defaultdict(list)
    for scan in scans:
        if scan.series:
            groups[scan.series].append(scan)
    apart = [group for group in groups.values() if len({scan.instances for scan in group}) > 1 and _together(group)]
    return {
        scan.files[0]: UserFault(
            expected=f"all slices of the series of {scan.files[0]} in one folder",
            came=f"parts of one volume in {' and '.join(str(one.files[0].parent) for one in group)}",
            do="put the series' files into one folder",
        )
        for group in apart
        for scan in group
    }


def _together(group: list[Scan]) -> bool:
    """Whether scans with one SeriesInstanceUID form one volume, by their headers. Copies of a slice count once."""
    files = {uid: file for scan in group for uid, file in zip(scan.instances, scan.files, strict=True)}
    slices = [slices_of(file, dicom_header(file))[0] for file in files.values()]
    return make_volume(slices, group[0].files[0].parent)


def _unnamed(file: Path, head: Any) -> UserFault | None:
    if head.get("SeriesInstanceUID") and head.get("SOPInstanceUID"):
        return None
    return UserFault(
        expected=f"a SeriesInstanceUID and a SOPInstanceUID in {file}",
        came="none, so its series is unknown",
        do="export it again from the archive (PACS)",
    )


def _flat(file: Path, head: Any, place: Path, stack: dict[Path, Any]) -> Scan | UserFault:
    """An image without geometry, such as an X-ray, is a separate scan, unless others of its series have geometry."""
    if not stack:
        return Scan("dicom", (file,), place / stem_of(file), (str(head.SOPInstanceUID),))
    return UserFault(
        expected=f"a position in each slice of a series, also in {file}",
        came="no ImagePositionPatient, although other slices of the series have it",
        do="export the series again with its geometry",
    )


def _stack(heads: dict[Path, Any], name: Path) -> Iterator[Scan | UserFault]:
    try:
        files = tuple(in_order(heads))
        first = heads[files[0]]
        series = None if holds_volume(first) else (str(first.SeriesInstanceUID), str(first.get("PatientID") or ""))
        yield Scan("dicom", files, name, tuple(str(heads[file].SOPInstanceUID) for file in files), series)
    except UserFault as fault:
        yield fault
