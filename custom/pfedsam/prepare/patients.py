"""How patients are told apart, so that no patient sits in two splits; the rule is always said in words."""

import hashlib
import hmac
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from pfedsam.prepare.found import Case, Dropped
from pfedsam.prepare.grouping import by_file, by_level, grouped
from pfedsam.prepare.words import pattern_of


def by_pattern(cases: Sequence[Case], pattern: str) -> tuple[list[Case], list[Dropped], str]:
    """Patients by the first captured group of `pattern` in the file name, else in the path; others are left out.

    Raises:
        UserFault: no regular expression, or none with a group.
    """
    rule = pattern_of(pattern, "--patient", "that catches the patient")
    kept, dropped = [], []
    for case in cases:
        found = rule.search(PurePath(case.name).name) or rule.search(case.name)
        if found is not None and found.group(1):
            kept.append(replace(case, patient=found.group(1)))
        else:
            dropped.append(Dropped(case.name, f"the name does not fit --patient {pattern}", "widen the pattern"))
    words = f"Patients were told apart by what --patient {pattern} catches in the file name, else in the path"
    some = f", such as {kept[0].patient} of {kept[0].name}" if kept else ""
    return kept, dropped, f"{words}: {len({case.patient for case in kept})} patients of {len(kept)} files{some}."


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


def told_apart(cases: Sequence[Case], said: str | None = None) -> tuple[list[Case], list[Dropped], str]:
    """The cases with their patients, those of which none is known, and how patients were told apart.

    By the datalist or DICOM's PatientID, else by folder and file names.

    Args:
        said: `folder`, `each` or a pattern, where the user says what is a patient; then nothing else counts.

    Raises:
        UserFault: names do not show what the patients are.
    """
    if said not in (None, "folder", "each"):
        return by_pattern(cases, said)
    nameless = [case for case in cases if said or not case.patient]
    if not nameless:
        by = "the column group of the datalist" if any(c.split for c in cases) else "PatientID in the DICOM files"
        count = len({case.patient for case in cases})
        return list(cases), [], f"Patients were told apart by {by}: {count} patients of {len(cases)} images."
    names = [PurePath(case.name) for case in nameless]
    found = grouped(names, len(cases)) if said is None else by_level(names) if said == "folder" else by_file(names)
    keys = dict(zip(nameless, found.keys, strict=True))
    known = {case.patient.casefold(): case.patient for case in cases if case not in keys}
    kept, dropped = [], []
    for case in cases:
        if case not in keys:
            kept.append(case)
        elif (key := keys[case]) is None:
            why = "it lies outside the folders that tell patients apart"
            dropped.append(Dropped(case.name, why, "put it into its patient's folder, or say --patient REGEX"))
        else:
            kept.append(replace(case, patient=known.get(key.casefold(), "name:" + key)))
    if len(nameless) == len(cases):
        return kept, dropped, found.words
    return kept, dropped, f"Patients were told apart by PatientID where a DICOM file has it. Else: {found.words}"


def pseudonym(patient: str, salt: bytes) -> str:
    """A group name that does not give the patient away: keyed by a salt that is drawn anew for each output."""
    return "p-" + hmac.new(salt, patient.encode(), hashlib.sha256).hexdigest()[:12]
