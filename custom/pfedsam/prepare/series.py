"""DICOM files put together into series, and each DICOM-SEG to the series that it was drawn on."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pfedsam.data.dicom import header, placed
from pfedsam.prepare.dicomseg import STORAGE, segment_labels
from pfedsam.prepare.found import Case, Dropped
from pfedsam.prepare.patients import by_issuer
from pfedsam.prepare.walk import File


@dataclass(frozen=True)
class Series:
    """One series, or one image of a series without geometry (X-rays): what its headers say of it."""

    uid: str
    files: list[File]
    instances: set[str]
    frame: str
    patient: str
    issuer: str
    placed: bool = True

    @property
    def name(self) -> str:
        """The folder that holds it, or its file."""
        one = self.files[0]
        return one.name if len(self.files) == 1 else str(Path(one.name).parent)


@dataclass(frozen=True)
class Segmentation:
    """One DICOM-SEG: its segments' labels, and the instances that it refers to, by series."""

    file: File
    labels: dict[int, str]
    series: dict[str, set[str]]
    frame: str

    @property
    def instances(self) -> set[str]:
        return set[str]().union(*self.series.values())


@dataclass(frozen=True)
class Stack:
    """All DICOM files of the folders, and remarks in words."""

    series: list[Series] = field(default_factory=list)
    segmentations: list[Segmentation] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def stacked(files: Iterable[File]) -> Stack:
    """Series and segmentations out of DICOM files, by their headers; what is neither is left out with the reason."""
    stack, flat = Stack(), list[Series]()
    placed: dict[str, list[Series]] = defaultdict(list)
    for file in files:
        head = header(file.path)
        if head is not None and str(head.get("SOPClassUID", "")) in STORAGE:
            stack.segmentations.append(_segmentation(file, head))
        elif (why := _unusable(head)) is not None:
            stack.dropped.append(Dropped(file.name, *why))
        elif head is not None:
            one = _series(file, head)
            (placed[one.uid] if one.placed else flat).append(one)
    stack.series.extend(_joined(group) for group in placed.values())
    for one in flat:
        if one.uid in placed:
            stack.dropped.append(_unplaced(one))
        else:
            stack.series.append(one)
    patients, notes = by_issuer([(one.patient, one.issuer) for one in stack.series])
    named = [replace(one, patient=patient) for one, patient in zip(stack.series, patients, strict=True)]
    return replace(stack, series=named, notes=notes)


def matched(stack: Stack) -> tuple[list[Case], list[Series], list[Dropped]]:
    """Cases, series without a segmentation, and the segmentations that fit no series or share one.

    A segmentation belongs to the series of the instances that it names, else of the series UID, else to the
    only series in its frame of reference.
    """
    claims: dict[int, list[Segmentation]] = defaultdict(list)
    dropped = []
    for one in stack.segmentations:
        fits = _fitting(one, stack.series)
        if len(fits) == 1 and (lost := _lost(one, stack.series[fits[0]])):
            dropped.append(lost)
        elif len(fits) == 1:
            claims[fits[0]].append(one)
        else:
            dropped.append(_orphan(one, len(fits)))
    cases = [_case(stack.series[i], c[0]) for i, c in claims.items() if len(c) == 1]
    dropped += [_rival(one, len(c)) for c in claims.values() if len(c) > 1 for one in c]
    lone = [s for i, s in enumerate(stack.series) if i not in claims]
    dropped += [
        Dropped(stack.series[i].name, f"a series with {len(c)} segmentations", "leave the one to learn from")
        for i, c in claims.items()
        if len(c) > 1
    ]
    return cases, lone, dropped


def _series(file: File, head: Any) -> Series:
    tags = ("SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "PatientID", "IssuerOfPatientID")
    uid, instance, frame, patient, issuer = (str(head.get(tag) or "").strip() for tag in tags)
    return Series(
        uid,
        [file],
        {instance},
        frame,
        patient,
        issuer,
        placed=placed(head),
    )


def _joined(parts: list[Series]) -> Series:
    return replace(
        parts[0],
        files=[p.files[0] for p in parts],
        instances=set().union(*(p.instances for p in parts)),
        issuer=next((p.issuer for p in parts if p.issuer), ""),
    )


def _segmentation(file: File, head: Any) -> Segmentation:
    series = {
        str(referred.SeriesInstanceUID): {
            str(i.ReferencedSOPInstanceUID) for i in referred.get("ReferencedInstanceSequence", [])
        }
        for referred in head.get("ReferencedSeriesSequence", [])
    }
    return Segmentation(file, segment_labels(head), series, str(head.get("FrameOfReferenceUID") or ""))


def _fitting(one: Segmentation, series: list[Series]) -> list[int]:
    by_instance = [i for i, s in enumerate(series) if s.instances & one.instances]
    by_series = [i for i, s in enumerate(series) if s.uid in one.series]
    by_frame = [i for i, s in enumerate(series) if one.frame and s.frame == one.frame]
    return by_instance or by_series or by_frame


def _case(series: Series, segmentation: Segmentation) -> Case:
    files = tuple(file.path for file in series.files)
    return Case(series.name, files, segmentation.file.path, patient=series.patient)


def _unusable(head: Any) -> tuple[str, str] | None:
    """Why a DICOM file is no slice of a series, and what to do; None where it is one."""
    again = "export it again from the archive (PACS)"
    if head is None:
        return "named or marked as DICOM, but it can't be read as such", again
    if str(head.get("Modality", "")) == "RTSTRUCT":
        return "contours (RTSTRUCT), which are not read here", "export them as DICOM-SEG or NIfTI masks"
    if "Rows" not in head or "Columns" not in head:
        return (
            "a DICOM file without an image (no Rows and Columns)",
            "nothing, if it is a report or a plan; else " + again,
        )
    if not head.get("SeriesInstanceUID") or not head.get("SOPInstanceUID"):
        return "no SeriesInstanceUID or SOPInstanceUID, so its series is not known", again
    return None


def _unplaced(one: Series) -> Dropped:
    return Dropped(
        one.files[0].name,
        "a slice without ImagePositionPatient in a series that has it elsewhere",
        "export the series again with its geometry",
    )


def _orphan(one: Segmentation, fits: int) -> Dropped:
    why = f"a DICOM-SEG that fits {fits} series" if fits else "a DICOM-SEG whose series is not in the folder"
    return Dropped(one.file.name, why, "put exactly the series that it was drawn on beside it")


def _lost(one: Segmentation, series: Series) -> Dropped | None:
    """Why a segmentation can't be used with its series; None where each slice that it refers to is there."""
    missing = len(one.series.get(series.uid, set()) - series.instances)
    if not missing or not series.placed:
        return None
    return Dropped(
        one.file.name,
        f"drawn on {missing} slice(s) of its series ({series.name}) that are not in the folder",
        "export the whole series again",
    )


def _rival(one: Segmentation, count: int) -> Dropped:
    return Dropped(one.file.name, f"one of {count} DICOM-SEG files for one series", "leave the one to learn from")
