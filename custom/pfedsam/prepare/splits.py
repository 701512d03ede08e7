"""Train, val and test: drawn by patient, the same for the same seed, none empty."""

import math
import random
from collections.abc import Iterable

from pfedsam.data.datalist import SPLITS
from pfedsam.errors import UserFault

SHARES = (0.7, 0.1, 0.2)


def parse_shares(text: str) -> tuple[float, float, float]:
    """Shares of train, val and test out of `0.7,0.1,0.2` or `70,10,20`; they add up to 1.

    Raises:
        UserFault: not three positive numbers.
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
            do="give train, val and test their share",
        )
    return train / total, val / total, test / total


def drawn(patients: Iterable[str], shares: tuple[float, float, float], seed: int, known_by: str) -> dict[str, str]:
    """The split of each patient; every split has one at least.

    Args:
        known_by: how patients were told apart, for the fault.

    Raises:
        UserFault: fewer than three patients.
    """
    order = sorted(set(patients))
    if len(order) < len(SPLITS):
        raise UserFault(
            expected="three patients at least, one a split",
            came=f"{len(order)} ({known_by})",
            do="add patients, or tell them apart with --patient REGEX",
        )
    random.Random(seed).shuffle(order)
    val, test = (max(1, round(share * len(order))) for share in shares[1:])
    while val + test >= len(order):  # train keeps one
        val, test = (val - 1, test) if val >= test else (val, test - 1)
    names = ["val"] * val + ["test"] * test + ["train"] * (len(order) - val - test)
    return dict(zip(order, names, strict=True))
