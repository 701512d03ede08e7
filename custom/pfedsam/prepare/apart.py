"""Whether names with several numbers identify patients. `P1S2`, `slide1_0_256`, `101a`, `p1_flip` may not."""

import re
from collections.abc import Sequence

from pfedsam.prepare.words import CLASSES, PLACES, SEPARATOR, TIMES, plain

RUN = re.compile(r"\d+|[^\W\d_]+")
HASH = 5  # a part of a name with this number of runs of letters and digits is random
TIME, KIND = re.compile(TIMES), re.compile(rf"{CLASSES}|{PLACES}")


def may_be_one(keys: Sequence[str]) -> list[str]:
    """Keys that share their first number. None if a single number differs in all keys, or if the keys are random.

    Args:
        keys: the candidates for patients.
    """
    every = sorted({plain(key): key for key in keys}.values())
    if sum(_is_random(key) for key in every) * 2 > len(every):
        return []
    numbers = [_numbers(plain(key)) for key in every]
    places = [[n[i] for n in numbers if len(n) > i] for i in range(max(map(len, numbers), default=0))]
    if not places or any(len(set(at)) == len(at) for at in places):
        return []
    shared = next(one for one in places[0] if places[0].count(one) > 1)
    return [key for key, n in zip(every, numbers, strict=True) if n[:1] == [shared]]


def _is_random(key: str) -> bool:
    return any(len(RUN.findall(part)) >= HASH for part in SEPARATOR.split(key))


def _numbers(key: str) -> list[tuple[str, str]]:
    """The numbers in a name, each with the letters before it. The number of a class or a date is not a patient."""
    found, before = list[tuple[str, str]](), ""
    for part in SEPARATOR.split(key):
        for run in [] if TIME.fullmatch(part) else RUN.findall(part):
            if run.isdigit() and not KIND.fullmatch(before):
                found.append((before, run))
                before = ""
            else:
                before += run
    return found
