"""A DICOM segmentation without its patient: the basic application level confidentiality profile of DICOM PS3.15.

The tables below are what Annex E, Table E.1-1 (2024b) says of the attributes that a segmentation of ours has. A test
holds them to the whole table. Nothing else of the source gets into such a segmentation, private attributes included.
"""

import hashlib
import hmac
import secrets
import uuid
from typing import Any

from highdicom.sr.coding import CodedConcept
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

STANDARD = "1.2.840.10008."  # the UIDs of the standard itself, such as those of classes of objects
EMPTIED = {  # action Z; the last is free text that the table does not list
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "PositionReferenceIndicator",
}
REMOVED = {  # action X; the last is free text that the table does not list
    "InstanceCreationDate",
    "InstanceCreationTime",
    "SeriesDate",
    "SeriesTime",
    "SeriesDescription",
    "ContributionDateTime",
    "ContributionDescription",
    "ContentDescription",
}
REPLACED = {"ContentDate": "19000101", "ContentTime": "000000", "DeviceSerialNumber": "0"}  # action D: must be there
PROFILE = CodedConcept("113100", "DCM", "Basic Application Confidentiality Profile")
METHOD = "pfedsam: basic profile of DICOM PS3.15 2024b, Annex E"


def new_secret() -> bytes:
    """What makes the new UIDs of one call. It is kept nowhere, so nobody can lead them back."""
    return secrets.token_bytes(32)


def new_uid(uid: str, secret: bytes) -> str:
    """The UID in the place of another. With one secret, each UID has one; another secret gives others."""
    mark = hmac.new(secret, uid.encode(), hashlib.sha256).digest()
    return f"2.25.{uuid.UUID(bytes=mark[:16], version=4).int}"


def anonymise(segmentation: Any, secret: bytes) -> None:
    """Take the patient out of a finished segmentation, and state that and how it was done."""
    _clean(segmentation, secret, {})
    segmentation.file_meta.MediaStorageSOPInstanceUID = segmentation.SOPInstanceUID
    segmentation.remove_private_tags()
    segmentation.PatientIdentityRemoved = "YES"
    segmentation.DeidentificationMethod = METHOD
    segmentation.DeidentificationMethodCodeSequence = [PROFILE]
    segmentation.LongitudinalTemporalInformationModified = "REMOVED"


def is_anonymous(head: Any) -> bool:
    """Whether a DICOM header is of a segmentation that `anonymise` has treated."""
    return bool(head.get("DeidentificationMethod") == METHOD)


def _clean(data: Dataset, secret: bytes, seen: dict[int, DataElement]) -> None:
    """Treat each attribute by its tables, also within sequences, and give each UID its new one.

    Args:
        seen: what is done already. highdicom puts one item into several sequences.
    """
    for own in list(data):
        if id(own) in seen:
            continue
        seen[id(own)] = own
        if own.keyword in REMOVED:
            del data[own.tag]
        elif own.keyword in EMPTIED:
            own.value = ""
        elif own.keyword in REPLACED:
            own.value = REPLACED[own.keyword]
        elif own.VR == "UI" and own.value and not str(own.value).startswith(STANDARD):
            own.value = new_uid(str(own.value), secret)
        elif own.VR == "SQ":
            for item in own.value:
                _clean(item, secret, seen)
