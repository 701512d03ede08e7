"""Faults that are the user's to mend: shown as one message, never as a traceback."""

from collections.abc import Callable
from functools import partial


class UserFault(ValueError):
    """A wrong file, setting or environment, told in three parts.

    Args:
        expected: what the program needed.
        came: what it found instead.
        do: what the user can do about it.
    """

    def __init__(self, *, expected: str, came: str, do: str) -> None:
        super().__init__(f"expected {expected}; came {came}; to mend it: {do}")
        self.expected, self.came, self.do = expected, came, do

    def __reduce__(self) -> tuple[Callable[[], "UserFault"], tuple[()]]:
        """So that it comes whole out of another process."""
        return partial(type(self), expected=self.expected, came=self.came, do=self.do), ()


class ClassesDiffer(UserFault):
    """A site's masks give the job's numbers another meaning: training on would mix the classes of all sites."""
