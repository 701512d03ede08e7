"""What of a name may be the patient: the name without side, sequence, date or slice, and the words that begin names."""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import PurePath

from pfedsam.names import alike, spelling
from pfedsam.prepare.apart import KIND, is_before_patient, is_slice
from pfedsam.prepare.words import (
    CLASSES,
    DATE,
    GENERIC,
    IMAGE_WORDS,
    MASK_WORDS,
    MODALITIES,
    OWNERS,
    PLACES,
    SEPARATOR,
    SIDES,
    SPLITS,
    SURE_SIDES,
    SURE_SLICES,
    TIMES,
    words,
)

ODD = 0.1  # share of files that may be elsewhere
PEOPLE, EACH = 3, 3  # names of at least so many people, at most so many of each on average: then a year is a date
ROLES = re.compile(rf"{MASK_WORDS}|{IMAGE_WORDS}|{SPLITS}|{MODALITIES}|{SIDES}|anat|perf|func|derivatives|{GENERIC}")
SORTS = re.compile(rf"{CLASSES}|{TIMES}|{PLACES}|(?:{SURE_SLICES})[-_ ]?\d+")
SLICE = re.compile(r"(?P<rest>.*?\d.*?)[ _.-]+(?P<word>slice|sl|s|z|frame|img|image|tile)?[ _-]?\d{1,4}", re.IGNORECASE)
VIEW = re.compile(rf"(?P<rest>.*\d.*?)[ _.-]+(?:{SIDES}|{TIMES}|{MODALITIES}|{IMAGE_WORDS})", re.IGNORECASE)
SIDE = re.compile(rf"(?P<rest>.+?)[ _.-]+(?:{SURE_SIDES})", re.IGNORECASE)
FIRST = re.compile(rf"(?:{SURE_SIDES}|{MODALITIES})[ _.-]+(?P<rest>.*\d.*)", re.IGNORECASE)
DAY_AFTER = re.compile(rf"(?P<rest>.*[^\W\d_].*?)[ _.-]+(?:{DATE})")  # Meier_Hans_20200101
YEAR_AFTER = re.compile(r"(?P<rest>.*[^\W\d_].*?)[ _.-]+(?:19|20)\d\d(?:[-_.]?(?:0[1-9]|1[0-2]))?")
DATED = re.compile(rf"(?:{TIMES})[ _.-]+(?P<rest>.*[^\W\d_].*)", re.IGNORECASE)
EYE = re.compile(r"(?P<rest>.*\d)[lr]", re.IGNORECASE)
COUNTER = re.compile(r"(?P<rest>.*?)[ _.-]*\(?\d+\)?")
OWNER = re.compile(OWNERS)


def fits(folder: str, *patterns: re.Pattern[str]) -> bool:
    """Whether a folder's name, or each word of it, fits one of the patterns."""
    name = spelling(folder)
    return any(_fits(name, words(name), pattern) for pattern in patterns)


def _fits(name: str, parts: Sequence[str], pattern: re.Pattern[str]) -> bool:
    return pattern.fullmatch(name) is not None or (
        any(pattern.fullmatch(part) for part in parts)
        and all(pattern.fullmatch(part) or ROLES.fullmatch(part) for part in parts)
    )


def has_number(name: str) -> bool:
    return any(map(str.isdigit, name))


def stem_of(name: PurePath) -> str:
    """The file name without its ending. `.nii.gz` counts as one ending."""
    end = spelling(name.name).find(".nii")
    return name.name[:end] if end >= 0 else name.stem


def cores(stems: Sequence[str]) -> list[str]:
    """Names without side, date and sequence. `01L` and `01R` are one patient if both exist."""
    found = [core(stem) for stem in stems]
    eyes: dict[str, set[str]] = defaultdict(set)
    for one in found:
        if m := EYE.fullmatch(one):
            eyes[m["rest"]].add(one[-1].casefold())
    return undated([m["rest"] if (m := EYE.fullmatch(one)) and len(eyes[m["rest"]]) > 1 else one for one in found])


def core(stem: str) -> str:
    """A name without side, sequence and whole date."""
    dated = DAY_AFTER.fullmatch(stem)
    stem = stem if dated is None or fits(dated["rest"], ROLES) else dated["rest"]
    while m := VIEW.fullmatch(stem) or SIDE.fullmatch(stem) or FIRST.fullmatch(stem):
        stem = m["rest"]
    dated = DATED.fullmatch(stem)
    return stem if dated is None or fits(dated["rest"], ROLES) else dated["rest"]


def undated(names: Sequence[str]) -> list[str]:
    """The names without the year at their end, as in `Meier_2021`, if several people have one.

    `pic_1999` and `pic_2000` may be counted. So are many names of few people.
    """
    hits = {name: m["rest"] for name in set(names) if (m := YEAR_AFTER.fullmatch(name))}
    rests = {name: rest for name, rest in hits.items() if not fits(rest, ROLES, SORTS)}
    people = len(set(map(spelling, rests.values())))
    clear = people >= PEOPLE and len(rests) <= EACH * people
    return [rests.get(name, name) for name in names] if clear else [*names]


def unsliced(name: str) -> str:
    """The name without the number of a slice, unless the rest is no patient: a class, a slice, or `slice_1_patient`."""
    if (found := SLICE.fullmatch(name)) is None:
        return name
    rest = found["rest"]
    if is_slice(rest) or is_before_patient(rest):
        return name
    classy = fits(rest, SORTS) or KIND.fullmatch(words(spelling(rest))[-1])
    return name if classy and not found["word"] else core(rest)


def surnames(names: Sequence[str], each: float = float("inf")) -> list[str]:
    """Words without a number that begin several names and may be surnames: of `Meier_1` and of `Meier_oben`.

    A word alone is none if nearly all names begin with it, as with `pic_1`, or if first names may follow it.

    Args:
        each: with this number of names for each word, or more, the words are groups of patients: `HC_01`, `PD_01`.
    """
    every = list(dict.fromkeys(alike(names)))
    rests = [m["rest"] if (m := COUNTER.fullmatch(name)) else name for name in every]
    rests = ["" if has_number(rest) or fits(rest, ROLES, SORTS) else rest for rest in rests]
    phrases = [rest if rest != name else _first_word(name) for name, rest in zip(every, rests, strict=True)]
    shared = set.intersection(*(set(words(spelling(name))) for name in every)) if every else set[str]()
    heads = [_first_word(rest, shared) for rest in rests]
    return _repeated(every, phrases, each) or _repeated(every, heads, each)


def _repeated(names: Sequence[str], begun: Sequence[str], each: float) -> list[str]:
    by_word: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, word in zip(names, begun, strict=True):
        if word:
            by_word[spelling(word)].append((word, name))
    several = [those for those in by_word.values() if len(those) > 1]
    if len(several) == 1:
        (those,), others = several, sum(map(len, by_word.values())) - len(several[0])
        alone = others <= ODD * len(names) or OWNER.fullmatch(spelling(those[0][0]))
        if alone or not any(_says_no_more(*one) for one in those):
            return []
    return [] if sum(map(len, by_word.values())) >= each * len(by_word) else sorted(those[0][0] for those in several)


def _says_no_more(word: str, name: str) -> bool:
    """Whether a name says only a number, a date or the like besides a word. `Meier_Hans` says more than `Meier`."""
    found, own = COUNTER.fullmatch(name), words(spelling(word))
    rest = words(spelling(found["rest"] if found else name))
    return all(part in own or fits(part, ROLES, SORTS) for part in rest)


def _first_word(name: str, shared: Collection[str] = ()) -> str:
    """The first word of a name without a number that is no role, class, time or place. Empty: there is none."""
    parts = [] if has_number(name) else words(spelling(name))
    return next((part for part in parts if part not in shared and not fits(part, ROLES, SORTS)), "")


def places(name: PurePath) -> set[tuple[str, ...]]:
    """The paths that end with a part of a name or with its beginning, without folders that say no patient.

    `dicom/P1_ct/a` is at `P1`, at `P1_ct` and at `P1_ct/a`.
    """
    trail = _trail(name)
    return {(*trail[:i], begun) for i, part in enumerate(trail) for begun in _beginnings(part)}


def place_of(name: PurePath, key: str) -> tuple[str, ...] | None:
    """The path up to the part of a name that gave the key. None: no part begins with it."""
    trail, key = _trail(name), spelling(key)
    return next(((*trail[:i], key) for i, part in enumerate(trail) if key in _beginnings(part)), None)


def _trail(name: PurePath) -> list[str]:
    folders = [part for part in name.parts[:-1] if not fits(part, ROLES, SORTS)]
    return [spelling(core(part)) for part in (*folders, stem_of(name))]


def _beginnings(part: str) -> list[str]:
    return [*(part[: cut.start()] for cut in SEPARATOR.finditer(part)), part]
