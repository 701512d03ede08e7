"""Draws train, val and test by patient. One seed always gives the same splits, and no split is empty."""

import math
import random
from collections.abc import Iterable, Sequence

from pfedsam.data.datalist import SPLITS
from pfedsam.errors import UserFault

SHARES = (0.7, 0.1, 0.2)


def parse_shares(text: str) -> tuple[float, float, float]:
    """The shares of train, val and test in `0.7,0.1,0.2` or `70,10,20`. Their sum is 1.

    Raises:
        UserFault: these are not three positive numbers.
    """
    try:
        train, val, test = (float(part) for part in text.split(","))
        total = train + val + test
    except ValueError:
        train = val = test = total = 0
    if not 0 < min(train, val, test) <= total < math.inf:
        raise UserFault(
            expected="three shares above zero, such as 0.7,0.1,0.2",
            came=text,
            do="give one share each for train, val and test",
        )
    return train / total, val / total, test / total


def drawn(
    patients: Iterable[str], shares: tuple[float, float, float], *, seed: int, known_by: str, lost: Sequence[str] = ()
) -> dict[str, str]:
    """The split of each patient. Every split has at least one patient.

    Args:
        known_by: how patients were identified, for the message.
        lost: why there may be fewer than the user expects: what is left out, and copies.

    Raises:
        UserFault: fewer than three patients.
    """
    order = sorted(set(patients))
    if len(order) < len(SPLITS):
        raise UserFault(
            expected="at least three patients, one for each split",
            came=(f"{len(order)} ({known_by})", *lost),
            do="mend what is named above, add patients, or identify them with --patient REGEX"
            if lost
            else "add patients, or identify them with --patient REGEX",
        )
    random.Random(seed).shuffle(order)
    val, test = (max(1, round(share * len(order))) for share in shares[1:])
    while val + test >= len(order):  # train keeps one
        val, test = (val - 1, test) if val >= test else (val, test - 1)
    names = ["val"] * val + ["test"] * test + ["train"] * (len(order) - val - test)
    return dict(zip(order, names, strict=True))
