"""Combines DICOM files into series, and finds the series on which each DICOM-SEG was drawn."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pfedsam.data.dicom import dicom_header, holds_volume, placed, shared_uids, unread
from pfedsam.data.headers import SliceHeader, misplaced, slices_of
from pfedsam.data.readable import readable
from pfedsam.data.slices import make_volume, scattered
from pfedsam.errors import UserFault
from pfedsam.prepare.dicomseg import STORAGE, segment_labels
from pfedsam.prepare.found import Case, Dropped, Reason, of_series, reason
from pfedsam.prepare.patients import by_issuer
from pfedsam.prepare.walk import File


@dataclass(frozen=True)
class Series:
    """One series, or one of its files that is an image on its own, as its headers describe it.

    Attributes:
        instances: the files by SOPInstanceUID; of identical copies the first.
        slices: by SOPInstanceUID, if each file of the series is one slice. Empty for a file that stands alone: an
            image without geometry (X-rays), or an enhanced file with several frames.
        fault: why it cannot be used with any mask, and what to do.
    """

    uid: str
    files: list[File]
    instances: dict[str, File]
    frame: str
    patient: str
    issuer: str
    slices: dict[str, SliceHeader] = field(default_factory=dict)
    placed: bool = True
    fault: Reason | None = None

    @property
    def name(self) -> str:
        """The folder that contains the series, or its file."""
        one = self.files[0]
        return one.name if len(self.files) == 1 else str(Path(one.name).parent)


@dataclass(frozen=True)
class Segmentation:
    """One DICOM-SEG: its segments' labels, and the instances to which it refers, by series."""

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
    """Series and segmentations from DICOM files, by their headers. Other files are left out with the reason."""
    stack, alone = Stack(), list[Series]()
    joined: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for file in files:
        try:
            with readable(file.path):
                one = _read(file)
        except UserFault as fault:
            one = Dropped(file.name, *reason(fault))
        if isinstance(one, Dropped):
            stack.dropped.append(one)
        elif isinstance(one, Segmentation):
            stack.segmentations.append(one)
        else:
            joined[one.uid, one.patient].append(one) if one.slices else alone.append(one)
    stack.series.extend(one for parts in joined.values() for one in _joined(parts))
    stacked_uids = {uid for uid, _ in joined}
    for one in alone:
        if one.uid in stacked_uids and not one.placed and one.fault is None:
            lost = "a slice without ImagePositionPatient in a series whose other slices have it"
            stack.dropped.append(Dropped(one.name, lost, "export the series again with its geometry"))
        else:
            stack.series.append(one)
    patients, notes = by_issuer([(one.patient, one.issuer) for one in stack.series])
    faults = shared_uids({uid: file.path for uid, file in one.instances.items()} for one in stack.series)
    series = [
        replace(one, patient=patient, fault=one.fault or (reason(faults[i]) if i in faults else None))
        for i, (one, patient) in enumerate(zip(stack.series, patients, strict=True))
    ]
    return replace(stack, series=series, notes=notes)


def matched(stack: Stack) -> tuple[list[Case], list[Series], list[Dropped]]:
    """Cases, series without a segmentation, and segmentations that fit no series or share one.

    A segmentation belongs to the series of the instances that it names, else to the series that it names. If it names
    none, it belongs to the only series in its frame of reference.
    """
    claims: dict[int, list[Segmentation]] = defaultdict(list)
    cases, dropped = [], []
    for one in stack.segmentations:
        fits = _fitting(one, stack.series)
        if len(fits) != 1:
            why = f"that fits {len(fits)} series" if fits else "whose series is not in the folder"
            do = "put the one series on which it was drawn beside it"
            dropped.append(Dropped(one.file.name, f"a DICOM-SEG {why}", do))
        elif missing := _missing(one, stack.series[fits[0]]):
            why = f"drawn on {missing} slice(s) of its series ({stack.series[fits[0]].name}) that are not in the folder"
            dropped.append(Dropped(one.file.name, why, "export the whole series again"))
        else:
            claims[fits[0]].append(one)
    for i, rivals in claims.items():
        series, count = stack.series[i], len(rivals)
        if count == 1:
            files = tuple(file.path for file in series.files)
            cases.append(Case(series.name, files, (rivals[0].file.path,), series.patient))
            continue
        whys = [(series.name, f"a series with {count} segmentations")]
        whys += [(one.file.name, f"one of {count} DICOM-SEG files for one series") for one in rivals]
        do = "keep only the one to learn from; if they show different structures, export these as segments of one file"
        dropped += [Dropped(name, why, do) for name, why in whys]
    return cases, [one for i, one in enumerate(stack.series) if i not in claims], dropped


def told(cases: list[Case], left: list[Dropped], stack: Stack) -> tuple[list[Case], list[Dropped]]:
    """The usable cases, and what is left out. If a series has a fault, that fault is the reason."""
    faults, apart = {one.files[0].path: one.fault for one in stack.series if one.fault}, _scattered(stack.series)
    lost = [Dropped(case.shown, *fault) for case in cases if (fault := faults.get(case.image[0]))]
    reasons = {
        name: reason
        for one in stack.series
        if (reason := one.fault or apart.get(one.files[0].path))
        for name in (one.name, of_series(one.name, one.files[0].path))
    }
    named = [Dropped(drop.file, *reasons[drop.file]) if drop.file in reasons else drop for drop in left]
    return [case for case in cases if case.image[0] not in faults], lost + named


def _scattered(series: Iterable[Series]) -> dict[Path, Reason]:
    """By file, why a slice has no mask, if an exporter gave each slice of a volume its own SeriesInstanceUID."""
    lone = [one for one in series if len(one.slices) == 1]
    return scattered({s.files[0].path: ((s.frame, s.patient), next(iter(s.slices.values()))) for s in lone})


def _read(file: File) -> Series | Segmentation | Dropped:
    """What a DICOM file is, by its header."""
    head = dicom_header(file.path)
    if head is not None and str(head.get("SOPClassUID", "")) in STORAGE:
        return _segmentation(file, head)
    why = _unusable(head)
    return _series(file, head) if why is None else Dropped(file.name, *why)


def _series(file: File, head: Any) -> Series:
    tags = ("SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "PatientID", "IssuerOfPatientID")
    uid, instance, frame, patient, issuer = (str(head.get(tag) or "").strip() for tag in tags)
    fault = unread(head)
    where = fault is None and placed(head)
    stacks = where and not holds_volume(head)
    slices = {instance: slices_of(file.path, head)[0]} if stacks else {}
    return Series(uid, [file], {instance: file}, frame, patient, issuer, slices, placed=where, fault=fault)


def _joined(parts: list[Series]) -> list[Series]:
    """The files of one SeriesInstanceUID as one series, or as one per folder if only that gives volumes."""
    folders: dict[Path, list[Series]] = defaultdict(list)
    for part in parts:
        folders[part.files[0].path.parent].append(part)
    together = _one(parts)
    if len(folders) == 1 or _is_volume(together):
        return [together]
    each = [_one(some) for some in folders.values()]
    return each if all(map(_is_volume, each)) else [together]


def _one(parts: list[Series]) -> Series:
    return replace(
        parts[0],
        files=[p.files[0] for p in parts],
        instances={uid: file for p in reversed(parts) for uid, file in p.instances.items()},
        slices={uid: place for p in parts for uid, place in p.slices.items()},
        issuer=next((p.issuer for p in parts if p.issuer), ""),
    )


def _is_volume(one: Series) -> bool:
    return make_volume(list(one.slices.values()), one.files[0].path.parent)


def _segmentation(file: File, head: Any) -> Segmentation:
    series = {
        str(referred.SeriesInstanceUID): {
            str(i.ReferencedSOPInstanceUID) for i in referred.get("ReferencedInstanceSequence", [])
        }
        for referred in head.get("ReferencedSeriesSequence", [])
    }
    return Segmentation(file, segment_labels(head), series, str(head.get("FrameOfReferenceUID") or ""))


def _fitting(one: Segmentation, series: list[Series]) -> list[int]:
    by_instance = [i for i, s in enumerate(series) if s.instances.keys() & one.instances]
    by_series = [i for i, s in enumerate(series) if s.uid in one.series]
    by_frame = [i for i, s in enumerate(series) if one.frame and s.frame == one.frame]
    return by_instance or by_series or ([] if one.series else by_frame)


def _missing(one: Segmentation, series: Series) -> int:
    """How many of the slices that a segmentation names are missing; 0 for an image without geometry."""
    return len(one.series.get(series.uid, set()) - series.instances.keys()) if series.placed else 0


def _unusable(head: Any) -> Reason | None:
    """Why a DICOM file is not a slice of a series, and what to do; None if it is one."""
    again = "export it again from the archive (PACS)"
    if head is None:
        return "named or marked as DICOM, but not readable as DICOM", again
    if str(head.get("Modality", "")) == "RTSTRUCT":
        return "contours (RTSTRUCT), which cannot be read here", "export them as DICOM-SEG or NIfTI masks"
    if "Rows" not in head or "Columns" not in head:
        return (
            "a DICOM file without an image (no Rows and Columns)",
            "nothing, if it is a report or a plan; otherwise " + again,
        )
    if not head.get("SeriesInstanceUID") or not head.get("SOPInstanceUID"):
        return "no SeriesInstanceUID or SOPInstanceUID, so its series is unknown", again
    if wrong := misplaced(head):
        return wrong, again
    return None
