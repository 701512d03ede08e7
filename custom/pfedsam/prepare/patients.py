"""How patients are told apart, so that no patient sits in two splits; the rule is always said in words."""

import hashlib
import hmac
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from pfedsam.errors import UserFault
from pfedsam.prepare.found import Case, Dropped
from pfedsam.prepare.words import IMAGE as IMAGE_FOLDER
from pfedsam.prepare.words import MASK as MASK_FOLDER

SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing"}
SLICE_END = re.compile(r"(?P<rest>.*?\d.*?)[ _.-]+(?:slice|sl|s|z|frame|img|image|tile)?[ _-]?\d{1,4}", re.IGNORECASE)
ENOUGH = 3  # patients that three splits need


def by_pattern(cases: Sequence[Case], pattern: str) -> tuple[list[Case], list[Dropped], str]:
    """Patients by the first captured group of `pattern` in the file name; a name without it is left out.

    Raises:
        UserFault: no regular expression, or none with a group.
    """
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise UserFault(
            expected="a regular expression for --patient", came=f"{pattern!r} ({error})", do="mend it"
        ) from None
    if not rule.groups:
        raise UserFault(
            expected="a group (...) in --patient that catches the patient", came=pattern, do="put brackets around it"
        )
    kept, dropped = [], []
    for case in cases:
        found = rule.search(PurePath(case.name).name) or rule.search(case.name)
        if found is not None and found.group(1):
            kept.append(replace(case, patient=found.group(1)))
        else:
            dropped.append(Dropped(case.name, f"the name does not fit --patient {pattern}", "widen the pattern"))
    return kept, dropped, f"Patients were told apart by what --patient {pattern} catches in the file name."


def by_issuer(ids: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """The patient of each (PatientID, issuer), and remarks: by the ID alone, as some series leave the issuer out.

    An ID that two issuers give out is two patients, if each of its series names one; else all of it is one patient,
    for a series without an issuer may be of either.
    """
    issuers: dict[str, set[str]] = defaultdict(set)
    for one, issuer in ids:
        issuers[one].add(issuer)
    several = {one for one, found in issuers.items() if one and len(found) > 1}
    apart = {one for one in several if "" not in issuers[one]}
    patients = [f"{one} ({issuer})" if one in apart else one for one, issuer in ids]
    remarks = []
    if apart:
        remarks.append(
            f"{len(apart)} PatientID(s) come from several issuers: by PatientID, each with its issuer is a patient."
        )
    if joined := several - apart:
        remarks.append(
            f"{len(joined)} PatientID(s) have an issuer in some series only: by PatientID, all series of such an ID are"
            " one patient, whatever their issuer; where they are several, write IssuerOfPatientID into each series."
        )
    return patients, remarks


def by_themselves(cases: Sequence[Case]) -> tuple[list[Case], str]:
    """Patients by DICOM's PatientID; else by the sub-folder; else by the name without a slice number.

    Files whose names say nothing are each a patient of their own. A rule that leaves fewer than three patients
    is not used: three splits need as many.
    """
    named = [PurePath(case.name) for case in cases if not case.patient]
    if not named:
        return list(cases), "Patients were told apart by PatientID in the DICOM files."
    keys, words = _keys(named)
    rest = iter(keys)
    told = [case if case.patient else replace(case, patient="name:" + next(rest)) for case in cases]
    return told, words if len(named) == len(
        cases
    ) else f"Patients were told apart by PatientID where a DICOM file has it. Else: {words}"


def _keys(names: list[PurePath]) -> tuple[list[str], str]:
    folders = [_folder(name) for name in names]
    if all(folders) and len(set(folders)) >= ENOUGH:
        some = ", ".join(sorted(set(folders))[:ENOUGH])
        return folders, f"Each outermost sub-folder was taken as one patient ({some} and so on)."
    stems = [_stem(name) for name in names]
    cut = [m["rest"] if (m := SLICE_END.fullmatch(stem)) else stem for stem in stems]
    if len(set(stems)) > len(set(cut)) >= ENOUGH:
        return (
            cut,
            f"A name's last number was taken as a slice number, the rest as the patient ({stems[0]} is of {cut[0]}).",
        )
    return (
        stems,
        "Each file name was taken as a patient of its own; if a patient has several, say --patient REGEX.",
    )


def _folder(name: PurePath) -> str:
    kept = [
        part
        for part in name.parts[:-1]
        if not (MASK_FOLDER.fullmatch(p := part.casefold()) or IMAGE_FOLDER.fullmatch(p) or p in SPLIT_WORDS)
    ]
    return kept[0] if kept else ""


def _stem(name: PurePath) -> str:
    return name.name.split(".nii")[0] if ".nii" in name.name else name.stem


def pseudonym(patient: str, salt: bytes) -> str:
    """A group name that does not give the patient away: keyed by a salt that is drawn anew for each output."""
    return "p-" + hmac.new(salt, patient.encode(), hashlib.sha256).hexdigest()[:12]
