"""Finds patients by folder and file names. If the names are ambiguous, the user is asked."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from pfedsam.errors import UserFault
from pfedsam.names import alike, spelling
from pfedsam.prepare.apart import also_below, evened, in_several, is_slice, may_be_one, owner
from pfedsam.prepare.cores import (
    ODD,
    ROLES,
    SLICE,
    SORTS,
    core,
    cores,
    fits,
    has_number,
    person,
    several_dates,
    stem_of,
    surnames,
    undated,
    unsliced,
)
from pfedsam.prepare.words import OWNERS, some_of

ENOUGH = 3  # patients needed for three splits
FEW, MANY = 10, 40  # fewer than FEW "patients" with over MANY files each may be something else: slices or classes
SMALL = 12  # up to this number, folders of plain words may be classes; more may be surnames
CROWD = 3  # so many folders for each word that begins them, or more, are groups of patients
ZEROS = "write each patient's number in one way, or use 0* before the brackets, such as --patient 'P0*([0-9]+)'; else "
SUBJECT = re.compile(  # BIDS and the Cancer Genome Atlas
    r"(?:^|[/_])(sub-[A-Za-z0-9]+(?=[/_.]|$)|TCGA[-_][A-Z0-9]{2}[-_][A-Z0-9]{4}(?=[-_/.]|$))"
)
NUMBERED = re.compile(rf"(?:{OWNERS}|case|id|s)?[-_ ]?\d+")


@dataclass(frozen=True)
class Grouping:
    """The patient of each file, None if unknown, and the rule in words."""

    keys: list[str | None]
    words: str


def grouped(names: Sequence[PurePath], among: int | None = None) -> Grouping:
    """Patients by BIDS's `sub-` or TCGA's barcode, else by the outermost folder that distinguishes them, else by names.

    Args:
        names: paths below the user's folder.
        among: the site's number of files; a few odd files are left out without a question.

    Raises:
        UserFault: the names do not show what the patients are.
    """
    found = _grouped(names, among)
    _check_zeros(names, found.keys, among)
    keyed = ((name, key) for name, key in zip(names, found.keys, strict=True) if key)
    if some := several_dates((part, key) for name, key in keyed for part in (*name.parts[:-1], stem_of(name))):
        raise _question(names, f"{' and '.join(some)}, which may be two persons' dates of birth")
    return found


def _grouped(names: Sequence[PurePath], among: int | None) -> Grouping:
    subjects = [m[1] if (m := SUBJECT.search(name.as_posix())) else None for name in names]
    rest = [name for name, subject in zip(names, subjects, strict=True) if subject is None]
    rule = _said("The part of a path that begins with sub- or TCGA- is the patient", names, subjects)
    if not rest:
        return Grouping(subjects, rule)
    try:
        found = _by_folder(rest) or _by_name(rest)
    except UserFault:
        if len(rest) > ODD * (among or len(names)):
            raise
        found = Grouping([None] * len(rest), "The patients of the other files are unknown.")
    same = iter(alike(key for key in found.keys if key is not None))  # `P1` and `p1` are one patient
    keys = [None if key is None else next(same) for key in found.keys]
    if len(rest) == len(names):
        return Grouping(keys, found.words)
    others = iter(keys)
    return Grouping([next(others) if one is None else one for one in subjects], f"{rule} Else: {found.words}")


def _check_zeros(names: Sequence[PurePath], keys: Sequence[str | None], among: int | None) -> None:
    """A question if patients are one when all numbers have the same leading zeros."""
    even, some = evened(names)
    if not some:
        return
    try:
        again = _grouped(even, among).keys
    except UserFault:
        raise _question(names, f"numbers with and without leading zeros ({some})", ZEROS) from None
    first: dict[str, str] = {}
    for key, own in zip(again, keys, strict=True):
        if key and own and first.setdefault(spelling(key), own) != own:
            raise _question(names, f"{first[spelling(key)]} and {own}, which differ only in leading zeros", ZEROS)


def by_level(names: Sequence[PurePath]) -> Grouping:
    """Each folder is a patient, as the user says: the outermost folder that is not common to all and names no role."""
    levels = _levels(names, SORTS)
    if not all(levels):
        levels = _levels(names, None)
    if again := [one for one in also_below(levels) if not one.isdigit()]:
        raise UserFault(
            expected="--patient folder only if no patient's folder is also inside another folder",
            came=f"folders that are beside others and also inside others ({some_of(again)})",
            do="use --patient REGEX with the patient in brackets, such as --patient '(?:^|/)(P[0-9]+)/'",
        )
    keys = [level[0] if level else None for level in levels]
    return Grouping(keys, _said("Each folder is a patient (--patient folder)", names, keys))


def by_file(names: Sequence[PurePath]) -> Grouping:
    """Each file is a patient, as the user says."""
    keys = [name.as_posix() for name in names]
    return Grouping(list(keys), _said("Each image is a patient (--patient each)", names, keys))


def _by_folder(names: Sequence[PurePath]) -> Grouping | None:
    """By the outermost level of folders with numbers in their names; None if folders show nothing."""
    levels = _levels(names, SORTS)
    for depth in range(max(map(len, levels), default=0)):
        here = [level[depth] if len(level) > depth else None for level in levels]
        found = sorted({key for key in here if key is not None})
        lacking = here.count(None) / len(names)
        if lacking >= 1 - ODD:
            return None
        if lacking > ODD:
            raise _question(names, f"{here.count(None)} of {len(names)} files outside the folders {some_of(found)}")
        within: dict[str, set[str]] = defaultdict(set)
        for level in levels:
            if len(level) > depth + 1:
                within[level[depth]].add(level[depth + 1])
        below = sorted(set[str]().union(*within.values()))
        if again := also_below([list(map(core, _numbered(level[depth:]))) for level in levels]):
            raise _question(names, f"folders that are beside others and also inside others ({some_of(again)})")
        numbered = 2 * sum(map(has_number, found)) > len(found)
        if numbered and (again := in_several(within) or in_several(_people(names, levels, depth))):
            raise _question(names, f"{some_of(again)} in several of {len(found)} folders ({some_of(found)})")
        if not numbered:
            if (below and _may_be_surnames(within)) or (not below and _are_doubtful(names, levels, found)):
                raise _question(names, f"{len(found)} folders ({some_of(found)}), which may be patients or classes")
        elif len(found) >= ENOUGH:
            if len(found) <= 5 and len(below) >= 3 * len(found) and not all(map(_is_patient, found)):
                some = f"{len(found)} folders ({some_of(found)}), and in them {len(below)} ({some_of(below)})"
                raise _question(names, some)
            keys = _undated([_folder(level, depth) for level in levels])
            if 2 * sum(map(is_slice, found)) > len(found):
                raise _question(names, f"{len(found)} folders ({some_of(found)}), which may be slices")
            return _with_enough("Each folder at one level is a patient", names, keys)
        elif not below or any(map(_is_patient, found)):
            raise _question(names, f"{len(found)} folder(s) that may be patients ({some_of(found)})")
    return None


def _people(names: Sequence[PurePath], levels: Sequence[Sequence[str]], depth: int) -> dict[str, set[str]]:
    """By folder at this depth, what in the paths below it may name a person."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, level in zip(names, levels, strict=True):
        stem = stem_of(name)
        if len(level) > depth and (who := owner("/".join([*level[depth + 1 :], stem])) or person(stem)):
            found[level[depth]].add(who)
    return found


def _folder(level: Sequence[str], depth: int) -> str | None:
    """The patient by a file's folders: at this depth, or below it if the folder there is a plain word."""
    return core(_numbered(level[depth:])[0]) if len(level) > depth else None


def _numbered(folders: Sequence[str]) -> Sequence[str]:
    """The folders from the first with a number on; all of them if none has one."""
    return folders[next((i for i, folder in enumerate(folders) if has_number(folder)), 0) :]


def _undated(keys: Sequence[str | None]) -> list[str | None]:
    some = iter(undated([key for key in keys if key is not None]))
    return [None if key is None else next(some) for key in keys]


def _is_patient(name: str) -> bool:
    return NUMBERED.fullmatch(spelling(name)) is not None


def _may_be_surnames(within: Mapping[str, set[str]]) -> bool:
    """Whether folders of plain words that contain folders may be patients with their examinations."""
    inner = [name for names in within.values() for name in names]
    if all(_is_patient(name) and not name.isdigit() for name in inner):
        return False
    return len(set(inner)) < len(inner) or len(within) > SMALL or len(inner) < ENOUGH * len(within)


def _are_doubtful(names: Sequence[PurePath], levels: Sequence[Sequence[str]], found: Sequence[str]) -> bool:
    """Whether folders of plain words may be patients: they are many, share file names, or those identify no patient."""
    stems = [stem_of(name) for name in names]
    bare = cores([*dict.fromkeys(stems)])
    each = len(set(map(unsliced, bare))) == len(bare)
    return each or len(found) > SMALL or _recur(stems, levels)


def _recur(names: Sequence[str], folders: Sequence[Sequence[str]]) -> bool:
    """Whether many names occur in several folders."""
    homes: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name, folder in zip(names, folders, strict=True):
        homes[name].add(tuple(folder))
    return sum(len(where) > 1 for where in homes.values()) > ODD * len(homes)


def _by_name(names: Sequence[PurePath]) -> Grouping:
    stems = [stem_of(name) for name in names]
    bare = cores(stems)
    if _recur(bare, [[part for part in name.parts[:-1] if not fits(part, ROLES)] for name in names]):
        raise _question(names, f"file names that occur in several folders (such as {bare[0]})")
    cut = undated([unsliced(one) for one in bare])
    groups, marked = sorted(set(cut)), any((m := SLICE.fullmatch(one)) and m["word"] for one in bare)
    if len(set(bare)) > len(groups) >= ENOUGH:
        return _with_enough("The last number of a name is a slice, the rest is the patient", names, cut)
    if len(set(bare)) > len(groups) and (marked or all(group[-1:].isdigit() for group in groups)):
        raise _question(names, f"{len(groups)} patient(s) if the last number of a name is a slice ({some_of(groups)})")
    if 2 * sum(map(is_slice, bare)) > len(bare):
        raise _question(names, "names of slices without a patient")
    _check_apart(names, bare)
    _check_surnames(names, surnames(bare))
    own = len(set(bare)) == len(set(stems))
    rule = "Each file name is a patient" if own else "A name without its side, date or sequence is the patient"
    return Grouping([*bare], _said(rule, names, bare) + " If a patient has several files, use --patient REGEX.")


def _levels(names: Sequence[PurePath], sorts: re.Pattern[str] | None) -> list[list[str]]:
    """The folders of each file that may be patients, outermost first, without the folders common to all files."""
    levels = [
        [part for part in name.parts[:-1] if not fits(part, ROLES) and not (sorts and fits(part, sorts))]
        for name in names
    ]
    while True:
        first, count = Counter(level[0] for level in levels if level).most_common(1)[0] if any(levels) else ("", 0)
        inside = {level[1] for level in levels if level[:1] == [first] and len(level) > 1}
        if not count or not (count == len(names) or (count >= (1 - ODD) * len(names) and len(inside) >= ENOUGH)):
            return levels
        levels = [level[1:] if level[:1] == [first] else level for level in levels]


def _check_surnames(names: Sequence[PurePath], strange: Sequence[str]) -> None:
    if strange:
        raise _question(names, f"names of which several begin with {some_of(strange)}" + " each" * (len(strange) > 1))


def _check_apart(names: Sequence[PurePath], keys: Sequence[str]) -> None:
    if some := may_be_one(keys):
        raise _question(names, f"names such as {some_of(some)}, which may belong to one patient")


def _with_enough(rule: str, names: Sequence[PurePath], keys: Sequence[str | None]) -> Grouping:
    """The grouping, if it distinguishes patients and finds enough of them for the number of files."""
    patients = sorted({key for key in keys if key is not None})
    _check_apart(names, patients)
    _check_surnames(names, surnames(patients, each=CROWD))
    if len(patients) < FEW and len(names) > MANY * len(patients):
        raise _question(names, f"{rule}, only {len(patients)} patients ({some_of(patients)})")
    return Grouping([*keys], _said(rule, names, keys))


def _question(names: Sequence[PurePath], understood: str, first: str = "") -> UserFault:
    """The fault of unclear names. `first` is a remedy that comes before the usual ones."""
    return UserFault(
        expected="names that show which files belong to one patient",
        came=f"{understood}, in {len(names)} files such as {names[0].as_posix()}",
        do=f"{first}use --patient folder, if each folder is a patient; --patient each, if each image is a patient; or"
        " --patient REGEX with the patient in brackets, searched in the file name, then in the path, such as"
        " --patient '([^/]+)/images/'",
    )


def _said(rule: str, names: Sequence[PurePath], keys: Sequence[str | None]) -> str:
    """The rule with an example. It has no counts, because files may be left out later."""
    for name, key in zip(names, keys, strict=True):
        if key is not None:
            return f"{rule}, such as {key} in {name.as_posix()}."
    return rule + ": it fits no file."
