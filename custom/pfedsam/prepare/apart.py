"""Whether names with numbers identify patients. `P1S2`, `slide1_0_256`, `101a`, `p1_flip`, `slice_3` may not."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath

from pfedsam.names import spelling
from pfedsam.prepare.words import (
    CLASSES,
    MODALITIES,
    OWNED,
    OWNERS,
    PLACES,
    SEPARATOR,
    SIDES,
    SLICES,
    TIMES,
)

RUN = re.compile(r"\d+|[^\W\d_]+")
HASH = 5  # a part of a name with this number of runs of letters and digits is random
TIME, KIND = re.compile(TIMES), re.compile(rf"{CLASSES}|{PLACES}")
VIEW = re.compile(rf"{SIDES}|{MODALITIES}|pre|post")  # of one patient: OD001 and OS001, flair001 and t2001
GLUED_VIEW = re.compile(rf"^(?:{VIEW.pattern})(?=\d)")
BARE_SLICE = re.compile(rf"(?:\D*[ _.-])?(?:{SLICES})[ _-]?\d+")
BEFORE_PATIENT = re.compile(rf"(?:.*[ _.-])?(?:(?P<sure>{OWNERS})(?:[ _.-]?(?:id|no|nr|number))?|{OWNED})")
PATIENT = re.compile(rf"(?:^|[ _.-])(?:{OWNERS})[ _.-]?\d")
OWNER = re.compile(rf"(?:^|[ /_.-])(?:{OWNERS}|{OWNED})[ _.-]?\d+")
TOKEN = re.compile(r"[^ _.\-/]+")
ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
MANY = 6  # folders of which most have a file of one kind
SEVERAL = 3  # numbers that repeat beside one that never does, and may then be the patients' own


def may_be_one(keys: Sequence[str]) -> list[str]:
    """Keys that share a number, or a random part. None if no number repeats, so that each key may be a patient.

    A number that all keys have and that never repeats may be the patient's or an accession's. If another one repeats
    beside it, and has several values, that one may be the patient's.

    Args:
        keys: the candidates for patients.
    """
    every = sorted({spelling(key): key for key in keys}.values())
    random = [_random(spelling(key)) for key in every]
    if sum(map(bool, random)) * 2 > len(every):
        return _sharing(every, random)
    numbers = [_numbers(spelling(key)) for key in every]
    places = [[n[i] for n in numbers if len(n) > i] for i in range(max(map(len, numbers), default=0))]
    own = any(len(set(at)) == len(at) == len(every) for at in places)
    repeats = (i for i, at in enumerate(places) if (SEVERAL if own else 1) <= len(set(at)) < len(at))
    place = next(repeats, None)
    return [] if place is None else _sharing(every, [tuple(n[place : place + 1]) for n in numbers])


def is_slice(name: str) -> bool:
    """Whether a name is that of a slice and says no patient: `slice_3`, `ax03`, `scan_z7`."""
    return BARE_SLICE.fullmatch(spelling(name)) is not None


def is_before_patient(name: str) -> bool:
    """Whether a number behind the name is the patient's: `slice_3_patient`. In `P1_case` the patient has been named."""
    found = BEFORE_PATIENT.fullmatch(spelling(name))
    return found is not None and bool(found["sure"] or not PATIENT.search(spelling(name)))


def also_below(levels: Sequence[Sequence[str]]) -> list[str]:
    """The outermost folders whose names are also below others of them: `P1`, if there is `M6/P1` too.

    Numbers do not count if each outermost folder has folders in it: `1/2` may be an examination of patient 1.

    Args:
        levels: the folders of each file, outermost first.
    """
    first = {spelling(level[0]): level[0] for level in levels if level}
    even = all(len(level) > 1 for level in levels)
    paths = {tuple(map(spelling, level)) for level in levels if len(level) > 1}
    pairs = ((path[0], part) for path in paths for part in path[1:])
    below = {inner for outer, inner in pairs if inner != outer and not (even and (outer + inner).isdigit())}
    return sorted(first[name] for name in first.keys() & below)


def owner(path: str) -> str:
    """The first part of a path that names a patient or a part of one by number, such as `patient_1`. Empty: none."""
    hit = OWNER.search(spelling(path))
    return hit[0].strip(" /_.-") if hit else ""


def in_several(within: Mapping[str, Collection[str]]) -> list[str]:
    """The names in several folders, if these may be visits or rooms of the same patients: `T0`, `Q1` or `Raum 2`.

    None if the folders are named as patients. A number in a folder that is a number may count examinations. Names of
    which there are at most half as many as folders sort a patient's files, if each is in several, or in most of many.

    Args:
        within: by folder, the names in it.
    """
    if 2 * sum(map(bool, map(owner, within))) > len(within):
        return []
    inner = ((spelling(one), folder) for folder, names in within.items() for one in names if not is_slice(one))
    homes = Counter(name for name, folder in set(inner) if not (name + folder).isdigit())
    usual = [name for name, count in homes.items() if 2 * count > len(within) >= MANY]
    if 2 * len(usual) <= len(within):
        homes = Counter({name: count for name, count in homes.items() if name not in usual})
    again = sorted(name for name, count in homes.items() if count > 1)
    return [] if len(again) == len(homes) and 2 * len(again) <= len(within) else again


def without_zeros(name: str) -> str:
    """A name in one spelling, its numbers without leading zeros."""
    return ZEROS.sub("", spelling(name))


def evened(names: Sequence[PurePath]) -> tuple[list[PurePath], str]:
    """The names with the same leading zeros in words that differ only in these, and an example: `P1 and P01`.

    A word that is only a number is compared with those behind the same word, else with those as deep in the path.
    """
    longest: dict[tuple[object, str], str] = {}
    for name in names:
        for place, token in _tokens(name):
            longest[place] = max(longest.get(place, ""), token, key=lambda one: (len(one), spelling(one)))
    found, example = list[PurePath](), ""
    for name in names:
        pairs = [(token, longest[place]) for place, token in _tokens(name)]
        other = [pair for pair in pairs if spelling(pair[0]) != spelling(pair[1])]
        found.append(_with_words(name, [long for _, long in pairs]) if other else name)
        example = example or " and ".join(other[0] if other else ())
    return found, example


def _with_words(name: PurePath, tokens: Iterable[str]) -> PurePath:
    rest = iter(tokens)
    return PurePath(TOKEN.sub(lambda _: next(rest), name.as_posix()))


def _tokens(name: PurePath) -> Iterator[tuple[tuple[object, str], str]]:
    """The words of a path, each with what says which others it is compared with."""
    for depth, part in enumerate(name.parts):
        before: object = depth
        for token in TOKEN.findall(part):
            plain = without_zeros(token)
            kept = token if VIEW.fullmatch(spelling(token)) else ""  # T1 is not the patient T01
            yield ((before if plain.isdigit() else kept), plain), token
            before = plain


def _sharing(keys: Sequence[str], marks: Sequence[tuple[object, ...]]) -> list[str]:
    """The keys of the first mark that several have. An empty mark is none."""
    shared = next((one for one, count in Counter(marks).items() if one and count > 1), None)
    return [] if shared is None else [key for key, mark in zip(keys, marks, strict=True) if mark == shared]


def _random(key: str) -> tuple[str, ...]:
    """The parts of a name that look drawn at random."""
    return tuple(part for part in SEPARATOR.split(key) if len(RUN.findall(part)) >= HASH)


def _numbers(key: str) -> list[tuple[str, str]]:
    """The numbers in a name, each with the letters before it. The number of a class or a date is not a patient.

    A side or a sequence before a number does not count: `OD001` and `OS001` have the same one.
    """
    found, before = list[tuple[str, str]](), ""
    for part in SEPARATOR.split(key):
        for run in [] if TIME.fullmatch(part) else RUN.findall(GLUED_VIEW.sub("", part)):
            if run.isdigit() and not KIND.fullmatch(before):
                found.append(("" if VIEW.fullmatch(before) else before, run))
                before = ""
            else:
                before += run
    return found
