"""Patients by folder and file names: what is said there is taken, what could be otherwise is asked."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from pfedsam.errors import UserFault
from pfedsam.prepare.words import (
    CLASSES,
    GENERIC,
    IMAGE_WORDS,
    MASK_WORDS,
    MODALITIES,
    PLACES,
    SIDES,
    SPLITS,
    TIMES,
    plain,
    words,
)

ENOUGH = 3  # patients that three splits need
FEW, MANY = 10, 40  # so few patients, with so many files each, may be something else: slices, or classes
ODD = 0.1  # share of files that may lie elsewhere
SMALL = 12  # so many folders of plain words may be classes; more may be surnames
SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)(?=[/_.]|$)")  # BIDS
NUMBERED = re.compile(r"(?:p|pt|pat|patient|patid|case|subj|subject|sub|id|s)?[-_ ]?\d+")
ROLES = re.compile(rf"{MASK_WORDS}|{IMAGE_WORDS}|{SPLITS}|{MODALITIES}|{SIDES}|anat|perf|func|derivatives|{GENERIC}")
SORTS = re.compile(rf"{CLASSES}|{TIMES}|{PLACES}")
SLICE = re.compile(r"(?P<rest>.*?\d.*?)[ _.-]+(?P<word>slice|sl|s|z|frame|img|image|tile)?[ _-]?\d{1,4}", re.IGNORECASE)
VIEW = re.compile(rf"(?P<rest>.*\d.*?)[ _.-]+(?:{SIDES}|{TIMES}|{MODALITIES}|{IMAGE_WORDS})", re.IGNORECASE)
SIDE = re.compile(r"(?P<rest>.+?)[ _.-]+(?:left|right|od|os|ou)", re.IGNORECASE)
EYE = re.compile(r"(?P<rest>.*\d)[lr]", re.IGNORECASE)
COUNTER = re.compile(r"(?P<rest>.*?)[ _.-]*\(?\d+\)?")


@dataclass(frozen=True)
class Grouping:
    """The patient of each file, None where it cannot be told, and the rule in words."""

    keys: list[str | None]
    words: str


def grouped(names: Sequence[PurePath]) -> Grouping:
    """Patients by BIDS's `sub-`; else by the outermost folder that tells patients apart; else by file names.

    Args:
        names: paths below the folder that the user gave.

    Raises:
        UserFault: names do not show what the patients are.
    """
    subjects = [m[1] if (m := SUBJECT.search(name.as_posix())) else None for name in names]
    rest = [name for name, subject in zip(names, subjects, strict=True) if subject is None]
    if not rest:
        return Grouping(
            list(subjects), _said(f"Each {subjects[0]} and the like in a path is a patient", names, subjects)
        )
    found = _by_folder(rest) or _by_name(rest)
    if len(rest) == len(names):
        return found
    keys = iter(found.keys)
    return Grouping(
        [next(keys) if subject is None else subject for subject in subjects],
        f"Where a path holds sub- and a name, that is the patient. Else: {found.words}",
    )


def by_level(names: Sequence[PurePath]) -> Grouping:
    """Each folder as a patient, as the user says: the outermost that is not common to all and names no role."""
    levels = _levels(names, SORTS)
    if not all(levels):
        levels = _levels(names, None)
    keys = [level[0] if level else None for level in levels]
    return Grouping(keys, _said("Each folder is a patient, as --patient folder says", names, keys))


def by_file(names: Sequence[PurePath]) -> Grouping:
    """Each file as a patient of its own, as the user says."""
    keys = [name.as_posix() for name in names]
    return Grouping(list(keys), _said("Each image is a patient of its own, as --patient each says", names, keys))


def _by_folder(names: Sequence[PurePath]) -> Grouping | None:
    """By the outermost level of folders whose names have numbers; None where folders say nothing."""
    levels = _levels(names, SORTS)
    for depth in range(max(map(len, levels), default=0)):
        keys = [level[depth] if len(level) > depth else None for level in levels]
        found = sorted({key for key in keys if key is not None})
        lacking = keys.count(None) / len(names)
        if lacking >= 1 - ODD:
            return None
        if lacking > ODD:
            raise _question(names, f"{keys.count(None)} of {len(names)} files lie outside the folders {_some(found)}")
        below = sorted({level[depth + 1] for level in levels if len(level) > depth + 1})
        if sum(any(map(str.isdigit, key)) for key in found) * 2 <= len(found):
            if not below and (len(found) > SMALL or _repeat(names, levels) or _alone(names)):
                raise _question(names, f"{len(found)} folders ({_some(found)}), which may be patients or classes")
        elif len(found) >= ENOUGH:
            if len(found) <= 5 and len(below) >= 3 * len(found) and not all(map(NUMBERED.fullmatch, map(plain, found))):
                raise _question(
                    names, f"{len(found)} folders ({_some(found)}) with {len(below)} in them ({_some(below)})"
                )
            return _checked(Grouping(keys, _said("Each folder at one level is a patient", names, keys)), names)
        elif not below or any(NUMBERED.fullmatch(plain(key)) for key in found):
            raise _question(names, f"{len(found)} folder(s) that may be patients ({_some(found)})")
    return None


def _by_name(names: Sequence[PurePath]) -> Grouping:
    stems = [stem_of(name) for name in names]
    cores = _cores(stems)
    homes: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name, core in zip(names, cores, strict=True):
        homes[core].add(tuple(part for part in name.parts[:-1] if not _fits(part, ROLES)))
    if sum(len(where) > 1 for where in homes.values()) > ODD * len(homes):
        raise _question(names, f"file names that occur in several folders (such as {cores[0]})")
    cut = [_core(m["rest"]) if (m := _slice(core)) else core for core in cores]
    groups, marked = set(cut), any((m := SLICE.fullmatch(core)) and m["word"] for core in cores)
    if len(set(cores)) > len(groups) >= ENOUGH:
        keys = list[str | None](cut)
        return _checked(
            Grouping(keys, _said("A name's last number is a slice, the rest the patient", names, keys)), names
        )
    if len(set(cores)) > len(groups) and (marked or all(re.search(r"\d$", group) for group in groups)):
        raise _question(
            names, f"{len(groups)} patient(s) if the last number of a name is a slice ({_some(sorted(groups))})"
        )
    if strange := _prefixes(cores):
        raise _question(names, f"names that begin with {_some(strange)} and end with a number")
    own = len(set(cores)) == len(set(stems))
    rule = "Each file name is a patient" if own else "A name without its side, date or sequence is the patient"
    keys = list[str | None](cores)
    return Grouping(keys, _said(rule, names, keys) + " If a patient has several, say --patient REGEX.")


def _levels(names: Sequence[PurePath], sorts: re.Pattern[str] | None) -> list[list[str]]:
    """The folders of each file that may be patients, outermost first, without those that all files share."""
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
    """Whether a folder's name, or each word of it, is such a word."""
    name = plain(folder)
    parts = words(name)
    return pattern.fullmatch(name) is not None or (
        any(pattern.fullmatch(part) for part in parts)
        and all(pattern.fullmatch(part) or ROLES.fullmatch(part) for part in parts)
    )


def _cores(stems: Sequence[str]) -> list[str]:
    """Names without side, date, sequence; `01L` and `01R` are of one where both are there."""
    cores = [_core(stem) for stem in stems]
    eyes: dict[str, set[str]] = defaultdict(set)
    for core in cores:
        if m := EYE.fullmatch(core):
            eyes[m["rest"]].add(core[-1].casefold())
    return [m["rest"] if (m := EYE.fullmatch(core)) and len(eyes[m["rest"]]) > 1 else core for core in cores]


def _core(stem: str) -> str:
    while m := VIEW.fullmatch(stem) or SIDE.fullmatch(stem):
        stem = m["rest"]
    return stem


def _slice(core: str) -> re.Match[str] | None:
    """The number of a slice; none where the word before it is a class or the like, which no patient is called."""
    found = SLICE.fullmatch(core)
    if found is None or found["word"]:
        return found
    return None if SORTS.fullmatch(words(plain(found["rest"]))[-1]) else found


def _prefixes(cores: Sequence[str]) -> list[str]:
    """Words without a number that begin several names each, and may be surnames."""
    begun = [m["rest"] for core in cores if (m := COUNTER.fullmatch(core)) and m["rest"]]
    strange = Counter(b for b in begun if not re.search(r"\d", b) and not _fits(b, ROLES) and not _fits(b, SORTS))
    several = sorted(b for b, count in strange.items() if count > 1)
    return several if len(several) > 1 and len(set(cores)) > len(several) else []


def _repeat(names: Sequence[PurePath], levels: Sequence[Sequence[str]]) -> bool:
    homes: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name, level in zip(names, levels, strict=True):
        homes[stem_of(name)].add(tuple(level))
    return sum(len(where) > 1 for where in homes.values()) > ODD * len(homes)


def _alone(names: Sequence[PurePath]) -> bool:
    """Whether file names would make each file a patient of its own."""
    cut = {_core(m["rest"]) if (m := _slice(core)) else core for core in _cores([stem_of(name) for name in names])}
    return len(cut) == len({stem_of(name) for name in names})


def _checked(found: Grouping, names: Sequence[PurePath]) -> Grouping:
    patients = {key for key in found.keys if key is not None}
    if len(patients) < FEW and len(names) > MANY * len(patients):
        raise _question(names, f"only {len(patients)} ({_some(sorted(patients))}): {found.words}")
    return found


def _question(names: Sequence[PurePath], understood: str) -> UserFault:
    return UserFault(
        expected="names that show which files are of one patient",
        came=f"{understood}, in {len(names)} files such as {names[0].as_posix()}",
        do="say which it is: --patient folder, if each folder is a patient; --patient each, if each image is;"
        " or --patient REGEX with the patient in brackets, searched in the file name, then in the path, such as"
        " --patient '([^/]+)/images/'",
    )


def _said(rule: str, names: Sequence[PurePath], keys: Sequence[str | None]) -> str:
    """The rule with its numbers and an example."""
    known = [(name, key) for name, key in zip(names, keys, strict=True) if key is not None]
    if not known:
        return rule + ": none of the files."
    name, key = known[0]
    return f"{rule}: {len({k for _, k in known})} patients of {len(known)} files, such as {key} of {name.as_posix()}."


def _some(found: Sequence[str]) -> str:
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def stem_of(name: PurePath) -> str:
    """The file name without its ending, `.nii.gz` counted as one."""
    return name.name.split(".nii")[0] if ".nii" in name.name else name.stem
