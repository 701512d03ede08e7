"""Reads a DICOM series by pydicom: classic (one slice per file) or enhanced (all frames in one file)."""

import filecmp
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.filereader import read_file_meta_info

from pfedsam.data.geometry import Volume, spacing_of
from pfedsam.data.headers import LOOKED_AT, enhanced, frames, misplaced, size_of, slices_of
from pfedsam.data.readable import readable
from pfedsam.data.slices import affine_of, check_alike, flat_spacing, order
from pfedsam.data.stored import class_numbers, comparable, intensities
from pfedsam.data.values import require_room
from pfedsam.errors import UserFault

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"


def read_dicom(path: Path, *, labels: bool = False) -> Volume:
    """The one series in a folder, or a file's image. Intensities are rescaled, MONOCHROME1 is inverted.

    Declared padding (PixelPaddingValue) gets the lowest real value of the series. Slices are ordered along the normal
    of their plane by ImagePositionPatient. Compressed files need the matching pydicom plugin.

    Args:
        labels: the file is a label map: its numbers are read as stored.

    Raises:
        UserFault: no DICOM image, several series, missing or double slices, or an unreadable file.
    """
    return read_series(files_of(path), labels=labels)


def files_of(path: Path) -> list[Path]:
    """The files of the one series in folder `path`, in the order of its volume. A single file is its own series.

    Raises:
        UserFault: no series, or several.
    """
    if path.is_file():
        return [path]
    headers = {
        file: head for file in sorted(path.iterdir()) if (head := dicom_header(file)) is not None and "Rows" in head
    }
    series = {str(head.get("SeriesInstanceUID", "")) for head in headers.values()}
    if len(series) != 1:
        raise UserFault(
            expected=f"one DICOM series in {path}",
            came=f"{len(series)} series in {len(headers)} files" if series else "no DICOM image",
            do="give a folder with one series",
        )
    return in_order(headers)


def dicom_header(path: Path) -> Any | None:
    """A DICOM file's data set without its pixels; None if the file is not DICOM or cannot be read."""
    try:
        if not path.is_file() or _deflated(path):
            return None
        head = pydicom.dcmread(path, stop_before_pixels=True)
        for tag in LOOKED_AT:  # pydicom reads a value when it is asked for it
            head.get(tag)
        return head
    except Exception:  # whatever the error, the file is not usable DICOM
        return None


def lacks_preamble(path: Path) -> bool:
    """Whether a file begins with the data of DICOM, in group 2 or 8, without the 128 bytes and the mark before it."""
    with path.open("rb") as file:
        start = file.read(4)
    return start[:2] in (b"\x02\0", b"\x08\0") and start[3:] == b"\0"


def _deflated(path: Path) -> bool:
    """Whether all of a file is packed (deflate). Its header alone could fill the memory, and hardly any device writes
    it."""
    return bool(read_file_meta_info(path).TransferSyntaxUID.is_deflated)


def unread(head: Any) -> tuple[str, str] | None:
    """The kind of an image that cannot be read here, and what to do; None if it can."""
    try:
        return _unread(head)
    except UserFault as fault:
        return f"more than fits: {fault.came}", fault.do
    except Exception:  # a damaged header raises nearly any exception
        return "values in its header that can't be read", "export it again from the archive (PACS), or leave it out"


def _unread(head: Any) -> tuple[str, str] | None:
    if str(head.get("SOPClassUID", "")) == WHOLE_SLIDE or "TotalPixelMatrixColumns" in head:
        return "a whole-slide image, which cannot be read here", "cut it into tiles (PNG) first"
    if frames(head) < 1:
        return f"{frames(head)} frames by its header", "export it again from the archive (PACS), or leave it out"
    if frames(head) > 1 and not placed(head):
        clip = f"a clip of {frames(head)} frames without geometry, which cannot be read here"
        return clip, "save its frames as pictures (PNG)"
    if wrong := misplaced(head):
        return wrong, "export it again from the archive (PACS), or leave it out"
    require_room(size_of(head), 4, "it")
    return None


def unusable(file: Path, head: Any | None) -> UserFault | None:
    """The fault of a file by its header: not DICOM, or an image that cannot be read here; None if there is none."""
    if head is None:
        return UserFault(expected=f"a readable file at {file}", came="no or damaged DICOM", do="export it again")
    if why := unread(head):
        return UserFault(expected=f"a slice or a volume in {file}", came=why[0], do=why[1])
    return None


def read_series(files: Sequence[Path], *, labels: bool = False) -> Volume:
    """The volume of one series' files, in any order; see `read_dicom`."""
    return read_in_order(files, labels=labels)[0]


def read_in_order(files: Sequence[Path], *, labels: bool = False) -> tuple[Volume, Sequence[Path]]:
    """The volume of one series' files, and the files in the order of its slices; see `read_dicom`."""
    with readable(files[0]):
        heads = _heads(files)
        whole = len(heads) == 1 and enhanced(heads[files[0]])
        if not whole:
            _check_one_frame(heads)
        where, once = files[0] if whole else files[0].parent, _once(heads)
        slices = [one for file in once for one in slices_of(file, heads[file])]
        ordered = order(slices, where)
        check_alike(slices)
        _check_one_patient(heads)
        if not labels:
            _check_one_white(heads)
            _check_one_depth(heads)
        require_room([len(slices), *slices[0].size], 4, str(where))
        affine = affine_of([slices[i] for i in ordered], where)
        found = [frame for file in once for frame in _pixels(file, labels)]
        frames_of = found if labels else comparable(found)
        values = np.stack([frames_of[i] for i in ordered], axis=2)
        spacing = flat_spacing(slices[0]) if affine is None else spacing_of(affine)
        return Volume(values, affine, spacing), once if whole else [once[i] for i in ordered]


def _heads(files: Sequence[Path]) -> dict[Path, Any]:
    heads = {}
    for file in files:
        heads[file] = dicom_header(file)
        if fault := unusable(file, heads[file]):
            raise fault
    return heads


def placed(head: Any) -> bool:
    """Whether an image states its position in the patient. An X-ray does not."""
    return "ImagePositionPatient" in head or enhanced(head)


def holds_volume(head: Any) -> bool:
    """Whether a file contains all slices of a volume, so that no other file belongs to it."""
    return frames(head) > 1 and enhanced(head)


def volumes(heads: dict[Path, Any]) -> list[dict[Path, Any]]:
    """The headers of a series, one group per volume."""
    apart = [{file: head} for file, head in heads.items() if holds_volume(head)]
    rest = {file: head for file, head in heads.items() if not holds_volume(head)}
    return [*apart, *([rest] if rest else [])]


def in_order(heads: dict[Path, Any]) -> list[Path]:
    """The files along the normal of their plane, by ImagePositionPatient. Copies of a file count once.

    Raises:
        UserFault: a file is unusable, one of several states no position, or two different files have one
            SOPInstanceUID.
    """
    if fault := next(filter(None, (unusable(file, head) for file, head in heads.items())), None):
        raise fault
    once = _once(heads)
    return [once[i] for i in order([slices_of(file, heads[file])[0] for file in once], once[0].parent)]


def _once(heads: dict[Path, Any]) -> list[Path]:
    """The files, without those that are copies of another."""
    by_uid: dict[str, list[Path]] = defaultdict(list)
    for file, head in heads.items():
        by_uid[str(head.get("SOPInstanceUID") or file)].append(file)
    for uid, files in by_uid.items():
        if others := [file for file in files[1:] if not _copies(files[0], file)]:
            raise _shared_uid(uid, [files[0], *others])
    return [files[0] for files in by_uid.values()]


def shared_uids(series: Iterable[Mapping[str, Path]]) -> dict[int, UserFault]:
    """By index, the fault of each series that shares a SOPInstanceUID with a different file of another.

    Args:
        series: the file of each SOPInstanceUID.
    """
    first: dict[str, tuple[Path, int]] = {}
    faults: dict[int, UserFault] = {}
    for i, files in enumerate(series):
        for uid, file in files.items():
            other, j = first.setdefault(uid, (file, i))
            if i != j and not _copies(other, file):
                fault = _shared_uid(uid, [other, file])
                faults = {j: fault, i: fault} | faults
    return faults


def _copies(one: Path, other: Path) -> bool:
    """Whether two DICOM files have the same content, byte for byte or element for element."""
    return filecmp.cmp(one, other, shallow=False) or bool(pydicom.dcmread(one) == pydicom.dcmread(other))


def _shared_uid(uid: str, files: Sequence[Path]) -> UserFault:
    """The fault of different files with one SOPInstanceUID, as a careless de-identification leaves them."""
    folders = {file.parent for file in files}
    names = [file.name if len(folders) == 1 else str(file) for file in files]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return UserFault(
        expected=f"a separate SOPInstanceUID for each image in {files[0].parent}",
        came=f"{uid} in {len(files)} different files: {', '.join(names[:4])}{more}",
        do="export them again so that each image has its own UID; if a tool de-identified them, let it give each image"
        " a new one",
    )


def _check_one_frame(heads: dict[Path, Any]) -> None:
    if several := next((file for file, head in heads.items() if frames(head) > 1), None):
        count = frames(heads[several])
        if len(heads) == 1:
            raise UserFault(
                expected=f"a position for each frame in {several}",
                came=f"{count} frames without functional groups that state it",
                do="convert the volume to NIfTI, or save its frames as pictures (PNG)",
            )
        raise UserFault(
            expected=f"one frame in each of a series' {len(heads)} files, or all frames in one file",
            came=f"{count} frames in {several}",
            do="put that file into its own folder, or leave it out",
        )


def _check_one_patient(heads: dict[Path, Any]) -> None:
    """Refuse several patients in one series. The message does not contain the IDs, as it may be sent on."""
    first: dict[str, Path] = {}
    for file, head in heads.items():
        first.setdefault(str(head.get("PatientID") or "").strip(), file)
    if len(known := [file.name for patient, file in first.items() if patient]) > 1:
        raise UserFault(
            expected=f"one patient per series, so one PatientID in {next(iter(heads)).parent}",
            came=f"{len(known)}, such as in {' and '.join(known[:2])}",
            do="put each patient into a separate folder, with a separate SeriesInstanceUID",
        )


def _check_one_white(heads: dict[Path, Any]) -> None:
    """Refuse a series in which 0 means white in some slices and black in others: they have no common scale."""
    if len({head.get("PhotometricInterpretation") == "MONOCHROME1" for head in heads.values()}) > 1:
        raise UserFault(
            expected=f"one PhotometricInterpretation in all slices of {next(iter(heads)).parent}",
            came="slices whose 0 means white (MONOCHROME1) among others",
            do="export the series again with 0 as black (MONOCHROME2), or convert it to NIfTI",
        )


def _check_one_depth(heads: dict[Path, Any]) -> None:
    """Refuse slices with 0 as white and several depths: turned to bright is high, their values would not agree."""
    depths = {int(head.BitsStored) for head in heads.values() if head.get("PhotometricInterpretation") == "MONOCHROME1"}
    if len(depths) > 1:
        raise UserFault(
            expected=f"one BitsStored in all slices of {next(iter(heads)).parent}, whose 0 means white (MONOCHROME1)",
            came=" and ".join(map(str, sorted(depths))),
            do="export the series again with 0 as black (MONOCHROME2), or convert it to NIfTI",
        )


def _pixels(file: Path, labels: bool) -> Sequence[Any]:
    """A file's frames: `stored.Frame` of an image, (H, W) of a label map."""
    with readable(file):
        data = pydicom.dcmread(file)
        return [*class_numbers(file, data)] if labels else intensities(file, data)


def frame_order(file: Path) -> list[int]:
    """For each slice of an enhanced file's volume, the index of its frame, from 0."""
    return order(slices_of(file, dicom_header(file)), file)
