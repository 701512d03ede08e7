"""Finds patients by folder and file names. If the names are ambiguous, the user is asked."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from pfedsam.errors import UserFault
from pfedsam.names import alike, spelling
from pfedsam.prepare.apart import KIND, is_before_patient, is_slice, may_be_one, no_patients
from pfedsam.prepare.words import (
    CLASSES,
    DATE,
    GENERIC,
    IMAGE_WORDS,
    MASK_WORDS,
    MODALITIES,
    OWNERS,
    PLACES,
    SIDES,
    SPLITS,
    SURE_SIDES,
    SURE_SLICES,
    TIMES,
    some_of,
    words,
)

ENOUGH = 3  # patients needed for three splits
FEW, MANY = 10, 40  # fewer than FEW "patients" with over MANY files each may be something else: slices or classes
ODD = 0.1  # share of files that may be elsewhere
SMALL = 12  # up to this number, folders of plain words may be classes; more may be surnames
SUBJECT = re.compile(  # BIDS and the Cancer Genome Atlas
    r"(?:^|[/_])(sub-[A-Za-z0-9]+(?=[/_.]|$)|TCGA[-_][A-Z0-9]{2}[-_][A-Z0-9]{4}(?=[-_/.]|$))"
)
NUMBERED = re.compile(rf"(?:{OWNERS}|case|id|s)?[-_ ]?\d+")
ROLES = re.compile(rf"{MASK_WORDS}|{IMAGE_WORDS}|{SPLITS}|{MODALITIES}|{SIDES}|anat|perf|func|derivatives|{GENERIC}")
SORTS = re.compile(rf"{CLASSES}|{TIMES}|{PLACES}|(?:{SURE_SLICES})[-_ ]?\d+")
SLICE = re.compile(r"(?P<rest>.*?\d.*?)[ _.-]+(?P<word>slice|sl|s|z|frame|img|image|tile)?[ _-]?\d{1,4}", re.IGNORECASE)
VIEW = re.compile(rf"(?P<rest>.*\d.*?)[ _.-]+(?:{SIDES}|{TIMES}|{MODALITIES}|{IMAGE_WORDS})", re.IGNORECASE)
SIDE = re.compile(rf"(?P<rest>.+?)[ _.-]+(?:{SURE_SIDES})", re.IGNORECASE)
FIRST = re.compile(rf"(?:{SURE_SIDES}|{MODALITIES})[ _.-]+(?P<rest>.*\d.*)", re.IGNORECASE)
DAY_AFTER = re.compile(rf"(?P<rest>.*[^\W\d_].*?)[ _.-]+(?:{DATE})")  # Meier_Hans_20200101
DATED = re.compile(rf"(?:{TIMES})[ _.-]+(?P<rest>.*[^\W\d_].*)", re.IGNORECASE)
EYE = re.compile(r"(?P<rest>.*\d)[lr]", re.IGNORECASE)
COUNTER = re.compile(r"(?P<rest>.*?)[ _.-]*\(?\d+\)?")


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


def by_level(names: Sequence[PurePath]) -> Grouping:
    """Each folder is a patient, as the user says: the outermost folder that is not common to all and names no role."""
    levels = _levels(names, SORTS)
    if not all(levels):
        levels = _levels(names, None)
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
        if sum(map(_has_number, found)) * 2 <= len(found):
            if (below and _may_be_surnames(within)) or (not below and _are_doubtful(names, levels, found)):
                raise _question(names, f"{len(found)} folders ({some_of(found)}), which may be patients or classes")
        elif len(found) >= ENOUGH:
            if len(found) <= 5 and len(below) >= 3 * len(found) and not all(map(_is_patient, found)):
                some = f"{len(found)} folders ({some_of(found)}), and in them {len(below)} ({some_of(below)})"
                raise _question(names, some)
            keys = [_folder(level, depth) for level in levels]
            inside = [[*level[depth + 1 :], _stem(name)] for level, name in zip(levels, names, strict=True)]
            if doubt := no_patients(keys, ["/".join(parts) for parts in inside]):
                raise _question(names, doubt)
            return _with_enough("Each folder at one level is a patient", names, keys)
        elif not below or any(map(_is_patient, found)):
            raise _question(names, f"{len(found)} folder(s) that may be patients ({some_of(found)})")
    return None


def _folder(level: Sequence[str], depth: int) -> str | None:
    """The patient by a file's folders: at this depth, or below it if the folder there is a plain word."""
    deeper = [part for part in level[depth:] if _has_number(part)]
    return _core((deeper or level[depth:])[0]) if len(level) > depth else None


def _has_number(name: str) -> bool:
    return any(map(str.isdigit, name))


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
    stems = [_stem(name) for name in names]
    cores = _cores([*dict.fromkeys(stems)])
    each = len(set(map(_unsliced, cores))) == len(cores)
    return each or len(found) > SMALL or _recur(stems, levels)


def _recur(names: Sequence[str], folders: Sequence[Sequence[str]]) -> bool:
    """Whether many names occur in several folders."""
    homes: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name, folder in zip(names, folders, strict=True):
        homes[name].add(tuple(folder))
    return sum(len(where) > 1 for where in homes.values()) > ODD * len(homes)


def _by_name(names: Sequence[PurePath]) -> Grouping:
    stems = [_stem(name) for name in names]
    cores = _cores(stems)
    if _recur(cores, [[part for part in name.parts[:-1] if not _fits(part, ROLES)] for name in names]):
        raise _question(names, f"file names that occur in several folders (such as {cores[0]})")
    cut = [_unsliced(core) for core in cores]
    groups, marked = sorted(set(cut)), any((m := SLICE.fullmatch(core)) and m["word"] for core in cores)
    if len(set(cores)) > len(groups) >= ENOUGH:
        return _with_enough("The last number of a name is a slice, the rest is the patient", names, cut)
    if len(set(cores)) > len(groups) and (marked or all(group[-1:].isdigit() for group in groups)):
        raise _question(names, f"{len(groups)} patient(s) if the last number of a name is a slice ({some_of(groups)})")
    if 2 * sum(map(is_slice, cores)) > len(cores):
        raise _question(names, "names of slices without a patient")
    if strange := _prefixes(cores):
        raise _question(names, f"names of which several begin with {some_of(strange)} each")
    _check_apart(names, cores)
    own = len(set(cores)) == len(set(stems))
    rule = "Each file name is a patient" if own else "A name without its side, date or sequence is the patient"
    return Grouping([*cores], _said(rule, names, cores) + " If a patient has several files, use --patient REGEX.")


def _levels(names: Sequence[PurePath], sorts: re.Pattern[str] | None) -> list[list[str]]:
    """The folders of each file that may be patients, outermost first, without the folders common to all files."""
    levels = [
        [part for part in name.parts[:-1] if not _fits(part, ROLES) and not (sorts and _fits(part, sorts))]
        for name in names
    ]
    while True:
        first, count = Counter(level[0] for level in levels if level).most_common(1)[0] if any(levels) else ("", 0)
        inside = {level[1] for level in levels if level[:1] == [first] and len(level) > 1}
        if not count or not (count == len(names) or (count >= (1 - ODD) * len(names) and len(inside) >= ENOUGH)):
            return levels
        levels = [level[1:] if level[:1] == [first] else level for level in levels]


def _fits(folder: str, pattern: re.Pattern[str]) -> bool:
    """Whether a folder's name, or each word of it, fits the pattern."""
    name = spelling(folder)
    parts = words(name)
    return pattern.fullmatch(name) is not None or (
        any(pattern.fullmatch(part) for part in parts)
        and all(pattern.fullmatch(part) or ROLES.fullmatch(part) for part in parts)
    )


def _cores(stems: Sequence[str]) -> list[str]:
    """Names without side, date and sequence. `01L` and `01R` are one patient if both exist."""
    cores = [_core(stem) for stem in stems]
    eyes: dict[str, set[str]] = defaultdict(set)
    for core in cores:
        if m := EYE.fullmatch(core):
            eyes[m["rest"]].add(core[-1].casefold())
    return [m["rest"] if (m := EYE.fullmatch(core)) and len(eyes[m["rest"]]) > 1 else core for core in cores]


def _core(stem: str) -> str:
    dated = DAY_AFTER.fullmatch(stem)
    stem = stem if dated is None or _fits(dated["rest"], ROLES) else dated["rest"]
    while m := VIEW.fullmatch(stem) or SIDE.fullmatch(stem) or FIRST.fullmatch(stem):
        stem = m["rest"]
    dated = DATED.fullmatch(stem)
    return stem if dated is None or _fits(dated["rest"], ROLES) else dated["rest"]


def _check_apart(names: Sequence[PurePath], keys: Sequence[str]) -> None:
    if some := may_be_one(keys):
        raise _question(names, f"names such as {some_of(some)}, which may belong to one patient")


def _unsliced(core: str) -> str:
    """The name without the number of a slice, unless the rest is no patient: a class, a slice, or `slice_1_patient`."""
    if (found := SLICE.fullmatch(core)) is None:
        return core
    rest = found["rest"]
    if is_slice(rest) or is_before_patient(rest):
        return core
    classy = _fits(rest, SORTS) or KIND.fullmatch(words(spelling(rest))[-1])
    return core if classy and not found["word"] else _core(rest)


def _prefixes(cores: Sequence[str]) -> list[str]:
    """Words without a number that begin several names each and may be surnames: of `Meier_1` and of `Meier_oben`."""
    begun = [m["rest"] if (m := COUNTER.fullmatch(core)) else _first_word(core) for core in set(cores)]
    strange = Counter(b for b in begun if b and not _has_number(b) and not _fits(b, ROLES) and not _fits(b, SORTS))
    several = sorted(b for b, count in strange.items() if count > 1)
    return several if len(several) > 1 and len(set(cores)) > len(several) else []


def _first_word(core: str) -> str:
    """The first word of a name without a number that is no role, class, time or place. Empty: there is none."""
    parts = [] if _has_number(core) else words(spelling(core))
    return next((part for part in parts if not _fits(part, ROLES) and not _fits(part, SORTS)), "")


def _with_enough(rule: str, names: Sequence[PurePath], keys: Sequence[str | None]) -> Grouping:
    """The grouping, if it distinguishes patients and finds enough of them for the number of files."""
    patients = sorted({key for key in keys if key is not None})
    _check_apart(names, patients)
    if len(patients) < FEW and len(names) > MANY * len(patients):
        raise _question(names, f"{rule}, only {len(patients)} patients ({some_of(patients)})")
    return Grouping([*keys], _said(rule, names, keys))


def _question(names: Sequence[PurePath], understood: str) -> UserFault:
    return UserFault(
        expected="names that show which files belong to one patient",
        came=f"{understood}, in {len(names)} files such as {names[0].as_posix()}",
        do="use --patient folder, if each folder is a patient; --patient each, if each image is a patient; or"
        " --patient REGEX with the patient in brackets, searched in the file name, then in the path, such as"
        " --patient '([^/]+)/images/'",
    )


def _said(rule: str, names: Sequence[PurePath], keys: Sequence[str | None]) -> str:
    """The rule with an example. It has no counts, because files may be left out later."""
    for name, key in zip(names, keys, strict=True):
        if key is not None:
            return f"{rule}, such as {key} in {name.as_posix()}."
    return rule + ": it fits no file."


def _stem(name: PurePath) -> str:
    """The file name without its ending. `.nii.gz` counts as one ending."""
    end = spelling(name.name).find(".nii")
    return name.name[:end] if end >= 0 else name.stem
