"""Faults that the user can mend: shown as one message, never as a traceback."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

LONGEST = 4000  # most characters of a part of a message


class UserFault(ValueError):
    """A wrong file, setting or environment. Its message has three parts.

    A file's name or a foreign text in a part cannot begin a line of its own: control characters become escapes.

    Args:
        expected: what the program needed.
        came: what it found instead. Several lines are a tuple.
        do: what the user can do about it. If the message has several lines, this starts one.
    """

    def __init__(self, *, expected: str, came: str | tuple[str, ...], do: str) -> None:
        came = "\n".join(map(one_line, (came,) if isinstance(came, str) else came))
        expected, came, do = (shortened(text, LONGEST) for text in (one_line(expected), came, one_line(do)))
        super().__init__(f"expected {expected}; came {came}" + ("\n" if "\n" in came else "; ") + f"to mend it: {do}")
        self.expected, self.came, self.do = expected, came, do

    def __reduce__(self) -> tuple[Callable[[], "UserFault"], tuple[()]]:
        """What another process needs to pass the fault on unchanged."""
        return partial(type(self), expected=self.expected, came=tuple(self.came.split("\n")), do=self.do), ()


def one_line(text: str) -> str:
    """`text` of somebody else for a message, on one line: control characters and line breaks become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason(error: OSError) -> str:
    """Why the system refused, in short."""
    return error.strerror or str(error) or type(error).__name__


def unread(path: Path, error: OSError) -> UserFault:
    """A fault of a file that is there and cannot be read now: to take it for missing would lose what it holds."""
    return UserFault(expected=f"to read {path}", came=reason(error), do="start the job again once the file can be read")


def shortened(text: str, most: int) -> str:
    """A text that a terminal and a log can hold: a file's cell or a message may be of any length."""
    keep = (most - 5) // 2
    return text if len(text) <= most else f"{text[:keep]} ... {text[-keep:]}"


class Diverged(UserFault):
    """A site cannot train on from the server's model: it is not near the last one, or the training diverged."""


class ClassesDiffer(UserFault):
    """A site's masks give the job's class numbers another meaning. Training would mix the classes of all sites."""
