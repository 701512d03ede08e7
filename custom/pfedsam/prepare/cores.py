"""What of a name may be the patient: the name without side, sequence, date or slice, and the words that begin names."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePath

from pfedsam.names import alike, spelling
from pfedsam.prepare.apart import KIND, PATIENT, is_before_patient, is_slice
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
YEAR = re.compile(r"(?:19|20)\d\d")
LIFE = 10  # years: the dates of one patient's visits are nearer, dates of birth may not be
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
    """Words without a number that begin several names and may be surnames: of `Meier_1`, `Meier_oben`, `1_Meier_40x`.

    A word alone is none if nearly all names begin with it, as with `pic_1`, or if first names may follow it.

    Args:
        each: with this number of names for each word, or more, the words are groups of patients: `HC_01`, `PD_01`.
            That does not hold if a number comes first.
    """
    every = list(dict.fromkeys(alike(names)))
    shared = set.intersection(*(set(words(spelling(name))) for name in every)) if every else set[str]()
    each = float("inf") if any(has_number(words(name)[0]) for name in every if words(name)) else each
    rests = [_uncounted(name) for name in every]
    phrases = [_phrase(name, rest) for name, rest in zip(every, rests, strict=True)]
    return _repeated(every, phrases, each) or _repeated(every, [_first_word(rest, shared) for rest in rests], each)


def _phrase(name: str, rest: str) -> str:
    """All of a name before its last number; its first word if that has a number too, or if the name ends otherwise."""
    first = _first_word(rest)
    return rest if first and rest != name and not has_number(rest) else first


def _uncounted(name: str) -> str:
    return m["rest"] if (m := COUNTER.fullmatch(name)) else name


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
    """Whether a name says only a date or the like besides a word, or has a number inside. `Meier_Hans` says more."""
    own, rest = words(spelling(word)), words(spelling(_uncounted(name)))
    return any(map(has_number, rest)) or all(part in own or fits(part, ROLES, SORTS) for part in rest)


def _first_word(name: str, shared: Collection[str] = ()) -> str:
    """The first word of a name that has no number and is no role, class, time or place. Empty: there is none.

    Nor is there one in `P1_oben`, which names the patient, and a letter beside a number is none.
    """
    plain = spelling(name)
    if PATIENT.search(plain) or fits(plain, ROLES, SORTS):
        return ""
    parts = [part for part in words(plain) if not has_number(part) and (len(part) > 1 or not has_number(plain))]
    return next((part for part in parts if part not in shared and not fits(part, ROLES, SORTS)), "")


def person(stem: str) -> str:
    """What of a file's name may be a person's: words of letters, without dates and a last number. Empty: nothing."""
    rest = _uncounted(core(stem))
    parts = [part for part in words(spelling(rest)) if not fits(part, SORTS)]
    wordy = any(len(part) > 1 and not fits(part, ROLES) for part in parts) and not fits(rest, ROLES, SORTS)
    return "_".join(parts) if wordy and not any(map(has_number, parts)) else ""


def several_dates(named: Iterable[tuple[str, str]]) -> list[str]:
    """Two names of one person with dates so far apart that they may be dates of birth; none if no person has any.

    Args:
        named: parts of paths, each with its patient. A date counts only behind a word that is the patient.
    """
    first: dict[str, tuple[int, str]] = {}
    for stem, key in named:
        m = DAY_AFTER.fullmatch(stem)
        if m is None or has_number(key) or not person(key) or spelling(m["rest"]) != spelling(key):
            continue
        if year := YEAR.search(stem, m.end("rest")):
            own, other = (int(year[0]), stem), first.setdefault(spelling(key), (int(year[0]), stem))
            if abs(own[0] - other[0]) >= LIFE:
                return [other[1], own[1]]
    return []


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
