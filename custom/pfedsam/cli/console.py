"""What a verb shows on the console: log lines, progress, JSON."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pfedsam.errors import one_line
from pfedsam.shipped import presets

T = TypeVar("T")


def of_a_job(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of each verb that reads a job: the job, and the changes to it."""
    parser.add_argument("job", type=Path, help=f"a settings file, a job folder, or one of {', '.join(presets())}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--rounds", type=int, help="change the number of rounds")


def tell() -> None:
    """Show this package's own messages on the console, and no other package's."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for handler in logging.getLogger().handlers:
        handler.addFilter(logging.Filter("pfedsam"))
    logging.getLogger("pfedsam").setLevel(logging.INFO)


def tracked(things: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """`things`, with a progress bar on stderr. Without a terminal no bar is shown.

    Args:
        total: how many there are, if `things` has no length.
    """
    with _progress() as bar:
        yield from bar.track(things, total=total, description=what)


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar like that of `tracked`. The caller reports how many of `total` are done."""
    with _progress() as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def show(*lines: str, error: bool = False) -> None:
    """Print lines for a person. A control character or a line break in one, as in a file's name, becomes an escape.

    Args:
        error: on stderr instead of stdout.
    """
    print("\n".join(map(one_line, lines)), file=sys.stderr if error else sys.stdout)


def say(answer: dict[str, Any]) -> None:
    """Print one JSON object on stdout, for scripts. It has control characters as JSON's escapes."""
    text = json.dumps(answer, indent=2, ensure_ascii=False)
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))
