"""Identifies patients, so that no patient is in two splits. The report always states the rule in words."""

import hashlib
import hmac
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

from pfedsam.errors import UserFault
from pfedsam.names import alike, spelling
from pfedsam.prepare.apart import without_zeros
from pfedsam.prepare.cores import place_of, places
from pfedsam.prepare.found import Case, Dropped
from pfedsam.prepare.grouping import Grouping, by_file, by_level, grouped
from pfedsam.prepare.words import pattern_of


def by_pattern(cases: Sequence[Case], pattern: str) -> tuple[list[Case], list[Dropped], str]:
    """Patients by the first group of `pattern` in the file name, else in the path. Other cases are left out.

    Raises:
        UserFault: it is not a regular expression, or has no group. Or patients differ only in leading zeros.
    """
    rule = pattern_of(pattern, "--patient", "for the patient")
    kept, dropped = [], []
    for case in cases:
        found = rule.search(PurePath(case.name).name) or rule.search(case.shown)
        if found is not None and found.group(1):
            kept.append(replace(case, patient=found.group(1)))
        else:
            dropped.append(Dropped(case.shown, f"the name does not fit --patient {pattern}", "widen the pattern"))
    _check_zeros(kept)
    words = f"Patients are identified by the group of --patient {pattern} in the file name, else in the path"
    some = f", such as {kept[0].patient} in {kept[0].shown}" if kept else ""
    return kept, dropped, f"{words}{some}."


def _check_zeros(cases: Sequence[Case]) -> None:
    first: dict[str, Case] = {}
    for case in cases:
        other = first.setdefault(without_zeros(case.patient), case)
        if spelling(other.patient) != spelling(case.patient):
            raise UserFault(
                expected="patients by --patient that differ in more than leading zeros",
                came=f"{other.patient} in {other.shown} and {case.patient} in {case.shown}",
                do="write each patient's number in one way, or put 0* before the brackets, such as --patient"
                " 'P0*([0-9]+)'; if they are two patients, put more of their names into the brackets",
            )


def by_issuer(ids: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """The patient of each (PatientID, issuer), and remarks. Some series do not state the issuer.

    An ID from two issuers means two patients, if every series of it names an issuer. Otherwise all series of
    the ID are one patient, because a series without an issuer may belong to either.
    """
    issuers: dict[str, set[str]] = defaultdict(set)
    ids = list(zip(alike(one for one, _ in ids), (issuer for _, issuer in ids), strict=True))
    for one, issuer in ids:
        issuers[one].add(issuer)
    several = {one for one, found in issuers.items() if one and len(found) > 1}
    apart = {one for one in several if "" not in issuers[one]}
    patients = [f"{one} ({issuer})" if one in apart else one for one, issuer in ids]
    remarks = []
    if apart:
        remarks.append(
            f"{len(apart)} PatientID(s) come from several issuers: each PatientID with its issuer is a patient."
        )
    if joined := several - apart:
        remarks.append(
            f"{len(joined)} PatientID(s) have an issuer in some series only: all series of such an ID are one patient."
            " If they are several patients, write IssuerOfPatientID into each series."
        )
    return patients, remarks


def told_apart(cases: Sequence[Case], said: str | None = None) -> tuple[list[Case], list[Dropped], str]:
    """The cases with their patients, cases without a known patient, and the rule in words.

    The patient comes from the datalist or DICOM's PatientID, else from folder and file names. One in two spellings,
    such as `P1` and `p1`, is one patient, in the first spelling.

    Args:
        said: `folder`, `each` or a pattern, if the user says what a patient is. Then nothing else counts.

    Raises:
        UserFault: the names do not show what the patients are.
    """
    kept, dropped, words = by_pattern(cases, said) if said not in (None, "folder", "each") else _told(cases, said)
    if said != "each":
        patients = alike(case.patient for case in kept)
        kept = [replace(case, patient=patient) for case, patient in zip(kept, patients, strict=True)]
    return kept, dropped, words


def _told(cases: Sequence[Case], said: str | None) -> tuple[list[Case], list[Dropped], str]:
    """The same, without a pattern, in the files' own spellings."""
    nameless = [case for case in cases if said or not case.patient]
    if not nameless:
        by = "the column group of the datalist" if any(c.split for c in cases) else "PatientID in the DICOM files"
        return list(cases), [], f"Patients are identified by {by}."
    found = _by_names(nameless, said, len(cases))
    _check_homes(nameless, found.keys)
    keys = dict(zip(nameless, found.keys, strict=True))
    known = _known(keys, [case for case in cases if case not in keys])
    kept, dropped = [], []
    for case in cases:
        if case not in keys:
            kept.append(case)
        elif (key := keys[case]) is None:
            why = "it is outside the folders that identify patients"
            dropped.append(Dropped(case.shown, why, "put it into its patient's folder, or use --patient REGEX"))
        else:
            kept.append(replace(case, patient=known.get(spelling(key), "name:" + key)))
    if len(nameless) == len(cases):
        return kept, dropped, found.words
    words = "Patients are identified by PatientID if a DICOM file has it, or another one in the same patient's folder."
    return kept, dropped, f"{words} Otherwise: {found.words}"


def _by_names(cases: Sequence[Case], said: str | None, among: int) -> Grouping:
    """The grouping by the paths below the given folders. These folders count if the user says so."""
    names, whole = ([PurePath(name) for name in paths] for paths in ([c.name for c in cases], [c.shown for c in cases]))
    if said is None:
        return grouped(names, among)
    if said == "each":
        return by_file(whole)
    found = by_level(names)
    return found if any(found.keys) else by_level(whole)


def _check_homes(cases: Sequence[Case], keys: Sequence[str | None]) -> None:
    """UserFault if one patient is in several of the folders that the user gave."""
    first: dict[str, Case] = {}
    for case, key in zip(cases, keys, strict=True):
        if key is not None and (other := first.setdefault(spelling(key), case)).home != case.home:
            raise UserFault(
                expected="each patient in one of the given folders, because names may repeat in another one",
                came=f"{key} in {other.shown} and in {case.shown}",
                do="use --patient folder, if each given folder is one patient; otherwise --patient REGEX, which is"
                " searched in the file name, then in such a path: '(.+/[0-9]+)' makes them two patients, '([0-9]+)'"
                " makes them one",
            )


def _known(keys: Mapping[Case, str | None], others: Sequence[Case]) -> dict[str, str]:
    """The PatientID of each key that has one: the key itself, or the only one below the folder that gave the key.

    Args:
        keys: of the cases without a PatientID.
        others: the cases with one.

    Raises:
        UserFault: a key has several, or differs from a PatientID only in leading zeros.
    """
    below, like = defaultdict[tuple[str, ...], set[str]](set), defaultdict[str, set[str]](set)
    for other in others:
        like[without_zeros(other.patient)].add(spelling(other.patient))
        for place in places(PurePath(other.name)):
            below[place].add(spelling(other.patient))
    found, one_of = defaultdict[str, set[str]](set), dict[str, Case]()
    for case, key in keys.items():
        if key is not None:
            found[spelling(key)] |= below.get(place_of(PurePath(case.name), key) or (), set())
            one_of.setdefault(spelling(key), case)
    for key, case in one_of.items():
        ids = found[key] | like.get(without_zeros(key), set())
        if len(ids) > 1 or not ids <= found[key] | {key}:
            raise _doubt(case, keys[case] or key, len(ids))
        found[key] = ids
    first = {spelling(other.patient): other.patient for other in reversed(others)}
    return {key: first[one] for key, ids in found.items() for one in ids}


def _doubt(case: Case, key: str, count: int) -> UserFault:
    return UserFault(
        expected="one PatientID for the patient of a file without one",
        came=f"{count} that may be {key}'s, for {case.shown}",
        do="write PatientID into the file, if it is DICOM; otherwise put the file into a folder named by the PatientID,"
        " or use --patient REGEX",
    )


def pseudonym(patient: str, salt: bytes) -> str:
    """A group name that does not reveal the patient. Its key is a salt that is drawn anew for each output."""
    return "p-" + hmac.new(salt, patient.encode(), hashlib.sha256).hexdigest()[:12]
