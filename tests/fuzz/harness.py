"""What every fuzz target has in common: its own folder, an alarm against hangs, and hostile bytes and values."""

import math
import resource
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pfedsam.errors import UserFault
from pfedsam.quiet import quietly

SECONDS = 20.0  # of CPU; an example that takes longer hangs
MEGABYTES = 1500  # by which no example may raise the process's peak
ODD_NUMBERS = (0, -1, 1, 2**15, 2**31 - 1, 2**31, 2**63, 10**400, -(10**30), 1e-300, 1e300, math.nan, math.inf)
ODD_TEXTS = (
    "",
    "\0",
    "../../x",
    "a/b",
    "\ud800",
    "²",
    "x" * 300,
    "-inf",
    "1e999",
    "\uff19",
    "=cmd()",
    "\x1b[2J",
    "None",
)


class HungError(BaseException):
    """An example takes too long. No `except Exception` of a reader may swallow it."""


@dataclass(frozen=True)
class Target:
    """A property: what is drawn, and what is done with it in an empty folder. It ends in a value or a `UserFault`.

    Attributes:
        examples: how many the tests run. `make fuzz` runs as many as its minutes allow.
    """

    name: str
    drawn: st.SearchStrategy[Any]
    done: Callable[[Any, Path], object]
    examples: int

    def check(self, value: Any) -> None:
        """Do it with one value, in bounded time and memory."""
        with in_bounds(), fresh() as folder, quietly(), suppress(UserFault):
            self.done(value, folder)


def explore(target: Target, chosen: settings, check: Callable[[Any], None] | None = None) -> None:
    """Check a target's examples. The first one that fails is made as small as it can be, and raised."""
    check = check or target.check

    def example(value: Any) -> None:
        check(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hypothesis's own: an example of 100 kB is long to print
        chosen(given(target.drawn)(example))()


@contextmanager
def in_bounds() -> Iterator[None]:
    """Raise if the block takes too long, or too much memory."""

    def ring(*_: object) -> None:
        raise HungError(f"more than {SECONDS:g} seconds")

    before, old = peak(), signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
    assert peak() - before < MEGABYTES, f"{peak() - before:.0f} MB more than before"


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def fresh() -> Iterator[Path]:
    """An empty folder that is deleted afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def json_like(*, keys: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[Any]:
    """Values as JSON has them, with odd numbers and texts among them."""
    leaf = (
        st.none()
        | st.booleans()
        | st.sampled_from(ODD_NUMBERS)
        | st.integers()
        | st.floats()
        | st.sampled_from(ODD_TEXTS)
        | st.text(max_size=20)
    )
    names = st.text(max_size=12) | st.sampled_from(ODD_TEXTS) if keys is None else keys
    return st.recursive(leaf, lambda below: st.lists(below, max_size=4) | st.dictionaries(names, below, max_size=4))


def changed(source: dict[str, Any]) -> st.SearchStrategy[Any]:
    """A JSON object with one to three entries, at any depth, replaced, left out, or added."""
    paths = [path for path, _ in _entries(source)]
    edit = st.tuples(st.sampled_from(paths), st.sampled_from(["put", "put", "drop", "add"]), json_like())
    return st.lists(edit, min_size=1, max_size=3).map(lambda edits: _edited(source, edits))


def _entries(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield (*above, key), inner
        yield from _entries(inner, (*above, key))


def _edited(source: dict[str, Any], edits: list[tuple[tuple[Any, ...], str, Any]]) -> dict[str, Any]:
    copy = _copied(source)
    for path, how, value in edits:
        at: Any = copy
        for key in path[:-1]:
            at = at.get(key) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at.pop(path[-1], None) if how == "drop" else at.__setitem__(path[-1] if how == "put" else "more", value)
    return copy


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def mutated(source: bytes, header: int = 512) -> st.SearchStrategy[bytes]:
    """The bytes with one to six edits, most of them in the first `header` ones."""
    at = st.integers(0, min(header, len(source))) | st.integers(0, len(source))
    piece = st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 4, b"\0" * 8, b"\xff" * 8, b"\x7f\xff"])
    edit = st.tuples(at, st.sampled_from(["put", "put", "put", "insert", "cut", "end", "repeat"]), piece)
    return st.lists(edit, min_size=1, max_size=6).map(lambda edits: _rewritten(source, edits))


def _rewritten(source: bytes, edits: list[tuple[int, str, bytes]]) -> bytes:
    for at, how, piece in edits:
        after = {"put": at + len(piece), "cut": at + len(piece), "end": len(source)}.get(how, at)
        new = {"cut": b"", "end": b"", "repeat": source[at : at + 64] * 3}.get(how, piece)
        source = source[:at] + new + source[after:]
    return source
