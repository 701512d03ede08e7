"""The bounds of a number: declared once beside its default, and checked in the same way everywhere."""

import math
from dataclasses import dataclass, field
from typing import Any

from pfedsam.errors import UserFault

KEY = "bounds"  # in a dataclass field's metadata


@dataclass(frozen=True)
class Bounds:
    """The range of a finite number.

    Attributes:
        least, most: the ends.
        above, below: whether the number must differ from `least`, or from `most`.
    """

    least: float
    most: float
    above: bool = False
    below: bool = False

    def __str__(self) -> str:
        low = f"above {self.least}" if self.above else f"of {self.least} or more"
        return f"{low} and {'below' if self.below else 'at most'} {self.most}"

    def hold(self, name: str, value: float) -> None:
        """Check that a number is within the bounds.

        Raises:
            UserFault: it is outside, or not finite. The message has its `name`.
        """
        low = self.least < value if self.above else self.least <= value
        high = value < self.most if self.below else value <= self.most
        if not (low and high and math.isfinite(value)):
            raise UserFault(expected=f"{name} {self}", came=str(value), do="correct the value")


def number(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with a default and with bounds for each number in its value.

    Args:
        default: a number or None. Or `dict` or `list`, for an empty default.
        least, above: the lower bound, one of the two.
        most, below: the upper bound, one of the two.
    """
    low, high = least if above is None else above, most if below is None else below
    if low is None or high is None:
        raise TypeError("expected a lower and an upper bound for a number")
    bounds = {KEY: Bounds(low, high, above is not None, below is not None)}
    if callable(default):
        return field(default_factory=default, metadata=bounds)
    return field(default=default, metadata=bounds)


def parse_count(text: str, what: str, most: int = 100_000) -> int:
    """The whole number in 1..`most` that a text holds, such as an environment variable.

    Args:
        what: what it counts, for the message.

    Raises:
        UserFault: it holds none.
    """
    if not text.strip().isdecimal() or not 1 <= int(text) <= most:
        raise UserFault(
            expected=f"a whole number of {what}, from 1 to {most}", came=repr(text), do="correct it or leave it out"
        )
    return int(text)
