"""Faults that the user can mend: shown as one message, never as a traceback."""

from collections.abc import Callable
from functools import partial


class UserFault(ValueError):
    """A wrong file, setting or environment. Its message has three parts.

    Args:
        expected: what the program needed.
        came: what it found instead.
        do: what the user can do about it. If the message has several lines, this starts one.
    """

    def __init__(self, *, expected: str, came: str, do: str) -> None:
        super().__init__(f"expected {expected}; came {came}" + ("\n" if "\n" in came else "; ") + f"to mend it: {do}")
        self.expected, self.came, self.do = expected, came, do

    def __reduce__(self) -> tuple[Callable[[], "UserFault"], tuple[()]]:
        """What another process needs to pass the fault on unchanged."""
        return partial(type(self), expected=self.expected, came=self.came, do=self.do), ()


class Diverged(UserFault):
    """A site cannot train on from the server's model: it is not near the last one, or the training diverged."""


class ClassesDiffer(UserFault):
    """A site's masks give the job's class numbers another meaning. Training would mix the classes of all sites."""
