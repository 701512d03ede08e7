"""Masks as a DICOM segmentation that refers to its series, with the facts on classes and patient."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import highdicom
import numpy as np
import pydicom
from highdicom.enum import SpecificCharacterSetValues
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom.charset import convert_encodings, decode_bytes, encode_string
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

import pfedsam
from pfedsam.data.dicom import frame_order, placed
from pfedsam.data.headers import enhanced, frames
from pfedsam.errors import UserFault
from pfedsam.predict.anonymous import anonymise, new_secret
from pfedsam.predict.scans import Scan

TISSUE = CodedConcept("85756007", "SCT", "Tissue")
LEARNED = CodedConcept("123109", "DCM", "Artificial Intelligence")
CODE = "SCT:10200004:Liver"
UTF_8 = "ISO_IR 192"
IDENTITY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
# what a segmentation states on patient and study; all of it may be empty
TYPE_2 = (*IDENTITY, "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName")
PATIENT = (  # what a segmentation states on the patient; other names, addresses and remarks are left out
    *IDENTITY,
    "IssuerOfPatientID",
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientBreedDescription",
    "PatientBreedCodeSequence",
)
TYPE_1 = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
SHARED = ("ImageOrientationPatient", "PixelSpacing")
NAMELESS = {0x0018, 0x0020, 0x0028, 0x5200}  # the groups of acquisition, position, pixels and frames
NEEDED = {*TYPE_1, "Modality", "ImageType"}


@dataclass(frozen=True)
class Classes:
    """The names of the masks' classes.

    Attributes:
        names: in order.
        codes: the code of a class by its name, as `code_of` reads it. A class without one is coded as tissue.
        anonymous: whether DICOM segmentations leave out the patient's identity.
        secret: what makes the new UIDs of anonymous segmentations.
    """

    names: list[str]
    codes: Mapping[str, str] = field(default_factory=dict)
    anonymous: bool = False
    secret: bytes = field(default_factory=new_secret, repr=False, compare=False)


def code_of(text: str) -> CodedConcept:
    """The code in `SCHEME:VALUE:MEANING`, such as `SCT:10200004:Liver`.

    Raises:
        UserFault: the form is wrong, or a part is longer than DICOM allows.
    """
    scheme, value, meaning = [part.strip() for part in [*text.split(":", 2), "", ""][:3]]
    if not (scheme and value and meaning):
        raise UserFault(expected="a code as SCHEME:VALUE:MEANING", came=repr(text), do=f"write it like {CODE}")
    if len(scheme) > 16 or len(meaning) > 64 or "\\" in text:
        raise UserFault(
            expected="a scheme of at most 16 characters and a meaning of at most 64, without a backslash",
            came=repr(text),
            do=f"shorten it; an example is {CODE}",
        )
    return CodedConcept(value, scheme, meaning)


def label_of(name: str) -> str:
    """A class's name as the label of a DICOM segment.

    Raises:
        UserFault: DICOM cannot hold it.
    """
    if not name.strip() or len(name) > 64 or "\\" in name or not name.isprintable():
        raise UserFault(
            expected="a class name of 1 to 64 printable characters without a backslash, as DICOM demands",
            came=repr(name),
            do="give other names (--names), or convert the series to NIfTI",
        )
    return name


def check_series(scan: Scan, classes: Classes) -> None:
    """Refuse a series to which a segmentation cannot refer, before anything is computed.

    Raises:
        UserFault: a required tag is missing or differs between slices, or a name or code is wrong.
    """
    sources = _sources(scan, classes)
    for tag in [*TYPE_1, *(["FrameOfReferenceUID"] if placed(sources[0]) else [])]:
        found = {str(source.get(tag) or "") for source in sources}
        if "" in found:
            raise UserFault(
                expected=f"a {tag} in each file of the series in {scan.files[0].parent}",
                came="none",
                do="de-identify with new UIDs instead of removing them, or convert the series to NIfTI",
            )
        if tag in ("StudyInstanceUID", "FrameOfReferenceUID") and len(found) > 1:
            raise UserFault(
                expected=f"one {tag} in the series in {scan.files[0].parent}",
                came=f"{len(found)}",
                do="put each into its own folder, or export the series again",
            )
    if len(sources) > 1 and enhanced(sources[0]):
        raise UserFault(
            expected=f"one enhanced file in the series in {scan.files[0].parent}",
            came=f"{len(sources)} enhanced files with one frame each, to which one segmentation can't refer",
            do="convert the series to NIfTI",
        )
    for source in sources:  # a small segmentation of all slices, which takes no time
        source.Rows = source.Columns = 1
    count = max(len(sources), frames(sources[0]))
    _built(sources, scan, np.zeros((count, 1, 1), np.uint8), classes, fractional=False)


def segmentation(scan: Scan, maps: NDArray[Any], classes: Classes, *, fractional: bool) -> Any:
    """The highdicom segmentation for maps of (classes, H, W, N).

    Raises:
        UserFault: the series lacks tags to which a segmentation must refer.
    """
    planes = np.moveaxis(maps, (3, 0), (0, 3))
    sources = _sources(scan, classes)
    if frames(sources[0]) > 1:  # its frames have their own order
        ordered = planes
        planes = np.empty_like(ordered)
        planes[frame_order(scan.files[0])] = ordered
    kept = planes if fractional else planes.astype(np.uint8)
    return _built(sources, scan, kept, classes, fractional=fractional)


def _built(sources: list[Any], scan: Scan, planes: NDArray[Any], classes: Classes, *, fractional: bool) -> Any:
    try:
        built = highdicom.seg.Segmentation(
            sources,
            planes,
            "FRACTIONAL" if fractional else "BINARY",
            [_segment(i + 1, name, classes.codes.get(name)) for i, name in enumerate(classes.names)],
            series_instance_uid=generate_uid(),
            series_number=max(1, int(sources[0].get("SeriesNumber") or 1) + 1000),
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="pfedsam",
            manufacturer_model_name="pfedsam",
            software_versions=pfedsam.__version__,
            device_serial_number="0",
            series_description="pfedsam probabilities" if fractional else "pfedsam segmentation",
            content_label="SEGMENTATION",
            specific_character_set=_characters(sources[0], [*classes.names, *classes.codes.values()]),
        )
        if classes.anonymous:
            anonymise(built, classes.secret)
        return built
    except UserFault:
        raise
    except Exception as error:  # with odd tags the library raises nearly any exception
        raise UserFault(
            expected=f"a series in {scan.files[0].parent} to which a DICOM segmentation can refer",
            came=_nameless(error, sources[0]),
            do="export it with all its tags, or convert it to NIfTI",
        ) from None


def _characters(source: Any, texts: Iterable[str]) -> Any:
    """The series' character set, or UTF-8 if highdicom does not know it or it cannot hold the texts.

    None if the series states none and ASCII is enough.
    """
    stated = source.get("SpecificCharacterSet")
    try:
        for one in [stated] if isinstance(stated, str) else stated or []:
            SpecificCharacterSetValues(one)
    except ValueError:
        return UTF_8
    return (stated or None) if all(text.isascii() or _holds(stated, text) for text in texts) else UTF_8


def _holds(stated: Any, text: str) -> bool:
    """Whether a text comes back from a stated character set as it was."""
    if not stated:
        return False
    sets = convert_encodings(stated)
    with warnings.catch_warnings(action="ignore"):  # where it cannot encode a letter, pydicom writes a question mark
        return bool(decode_bytes(encode_string(text, sets), sets, set()) == text)


def _nameless(error: Exception, source: Any) -> str:
    """The library's message, without its parts on the patient."""
    text = " ".join(str(error).split())
    own = {str(e.value).lower() for e in source if e.tag.group == 0x0010 and e.VR != "SQ"}
    parts = {part for value in own for part in value.replace("^", " ").split() if len(part) > 2}
    return type(error).__name__ if not text or any(part in text.lower() for part in parts) else text


def _segment(number: int, name: str, code: str | None) -> Any:
    how = highdicom.AlgorithmIdentificationSequence("pfedsam", LEARNED, pfedsam.__version__)
    kind = code_of(code) if code else TISSUE
    return highdicom.seg.SegmentDescription(number, label_of(name), TISSUE, kind, "AUTOMATIC", how)


def _sources(scan: Scan, classes: Classes) -> list[Any]:
    """The headers to which the segmentation refers. Tags that de-identification removed are present and empty.

    The slices' directions and spacings differ only by rounding. The first slice's values are used for all.
    """
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in scan.files]
    for source in sources:
        for tag in SHARED:
            if tag in source and sources[0].get(tag):
                source[tag].value = sources[0][tag].value
        if "ImagePositionPatient" in source:
            _space(source, sources)
        for own in list(source):
            telling = own.tag.group not in NAMELESS and own.keyword not in NEEDED
            if (own.tag.group == 0x0010 and own.keyword not in PATIENT) or (classes.anonymous and telling):
                del source[own.tag]
        if classes.anonymous:
            source.StudyID = ""
        for tag in TYPE_2:
            if tag not in source or not _valid(tag, source[tag].value):
                setattr(source, tag, "")
    return sources


def _space(source: Any, sources: Sequence[Any]) -> None:
    """State the distance of the slices, by their positions. Some scanners state the gap between them, or nothing."""
    places = [np.array(one.ImagePositionPatient, float) for one in sources[:2]]
    if len(places) > 1:
        across = np.cross(*np.array(source.ImageOrientationPatient, float).reshape(2, 3))
        source.SpacingBetweenSlices = f"{abs((places[1] - places[0]) @ across):.6g}"
        source.SliceThickness = source.get("SliceThickness") or f"{np.linalg.norm(places[1] - places[0]):.6g}"
        return
    source.SliceThickness = source.get("SliceThickness") or ""
    if source.SliceThickness:
        source.SpacingBetweenSlices = source.SliceThickness


def _valid(tag: str, value: Any) -> bool:
    """Whether a segmentation can state this value. highdicom refuses odd dates and sexes."""
    if tag == "PatientSex":
        return value in ("M", "F", "O")
    kind = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}.get(tag)
    try:
        return kind is None or kind(value or "") is not None
    except Exception:
        return False
