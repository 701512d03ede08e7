"""Names: those that FLARE allows for sites and jobs, those of unfinished files, and how any is shown."""

import contextlib
import logging
import os
import re
import shutil
import unicodedata
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from urllib.parse import quote

from pfedsam.errors import UserFault, one_line, shortened

LONGEST_LINE = 16_000  # most characters of another's log message. Our choice: our longest fault has 12 000
LONGEST = 64  # most characters of a site's name, as in a certificate
RUN_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}"  # of a run, a study, or another file or folder that is named
RESERVED = frozenset({"server", "client", "all"})  # what FLARE itself calls the server, every site, everybody


def spelling(name: str) -> str:
    """A name in one spelling, so that two that a person takes for one are equal: composed letters, no capitals."""
    return unicodedata.normalize("NFC", name).casefold()


def alike(names: Iterable[str]) -> list[str]:
    """The names. Of two that a person takes for one, each has the spelling that comes first."""
    first: dict[str, str] = {}
    return [first.setdefault(spelling(name), name) for name in names]


def in_ascii(path: Path) -> str:
    """A path in ASCII, whatever bytes its names have."""
    return quote(os.fsencode(path))


def shown(record: logging.LogRecord) -> bool:
    """A filter of our log lines: each is shown. A name or a reason in one can neither rewrite a terminal nor begin a
    line of its own. Only the line breaks of the message itself stay."""
    if isinstance(record.args, Mapping):
        record.args = {key: _as_shown(value) for key, value in record.args.items()}
    else:
        record.args = tuple(map(_as_shown, record.args or ()))
    lines = record.getMessage().split("\n")
    record.msg, record.args = _apart("\n".join(map(one_line, lines))), None
    return True


def aligned(record: logging.LogRecord) -> bool:
    """A filter of everybody's log lines: each is shown, and only its first line begins at the margin.

    FLARE logs texts of sites as they come. A line at the margin looks like a message of its own, and a long one drives
    older lines out of the log's files. So the middle of a long one is left out. Our own lines have passed `shown`.
    """
    if record.exc_info and not record.exc_text:
        told = shortened(logging.Formatter().formatException(record.exc_info), LONGEST_LINE)
        record.exc_text = "\n".join(map(_indented, told.split("\n")))
    if record.name == "pfedsam":
        return True
    try:
        first, *more = shortened(record.getMessage(), LONGEST_LINE).split("\n")
    except (TypeError, ValueError):  # the arguments do not fit the message; logging tells of it
        return True
    first = one_line(first) if first.startswith("[") else _apart(one_line(first))
    record.msg, record.args = "\n".join([first, *map(_indented, more)]), None
    return True


def _indented(line: str) -> str:
    return f"  {_apart(one_line(line)).removeprefix('  ')}"


def _as_shown(value: object) -> object:
    return one_line(str(value)) if isinstance(value, str | PurePath | BaseException) else value


def _apart(text: str) -> str:
    """`text` without the mark at which FLARE moves a bracket, and what is in it, to the beginning of a log line."""
    return text.replace("]: ", "] : ")


def site_name(text: str) -> str:
    """`text`, if FLARE allows it as a site's name.

    FLARE's cells split a name at dots, and its console reads a leading - as an option.

    Raises:
        UserFault: FLARE would refuse it or misread it.
    """
    fits = re.fullmatch(rf"[A-Za-z0-9_][A-Za-z0-9_-]{{0,{LONGEST - 1}}}", text)
    if not fits or text.startswith("_admin_") or text.casefold() in RESERVED:
        raise UserFault(
            expected=f"a site's name of letters, digits, - and _, at most {LONGEST}, not beginning with -,"
            f" and none of {', '.join(sorted(RESERVED))}",
            came=repr(text),
            do="use the name that the site has in project.yml, which follows this rule",
        )
    return text


def site_names(texts: list[str]) -> list[str]:
    """`texts`, if FLARE allows each as a site's name and none is there twice.

    Raises:
        UserFault: one is not allowed, or is there twice.
    """
    names = [site_name(text) for text in texts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserFault(expected="each site once", came=f"{', '.join(twice)} twice", do="name it once")
    return names


def job_name(text: str) -> str:
    """`text`, if FLARE allows it as a job folder's name.

    Raises:
        UserFault: FLARE would refuse it.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise UserFault(
            expected="a job folder's name of letters, digits, . - and _, at most 100, beginning with a letter or digit",
            came=repr(text),
            do="choose another folder name, because FLARE allows no other for a job",
        )
    return text


def one_name(text: str, what: str) -> str:
    """`text`, if it names one file or folder and is no path. It may come from a job or a message.

    Args:
        what: what it names, for the message.

    Raises:
        UserFault: it does not.
    """
    if not re.fullmatch(RUN_NAME, text):
        raise UserFault(
            expected=f"a {what}'s name of letters, digits, . - and _, at most 100, not beginning with .",
            came=repr(text[:200]),
            do="rename it",
        )
    return text


def back_name(run: str) -> str:
    """A new name for a run that goes back: `run`, and a mark that nobody has used."""
    return f"{re.sub(r'-back[0-9a-f]{6}$', '', run)[:80]}-back{uuid.uuid4().hex[:6]}"


def unfinished(folder: Path) -> list[Path]:
    """Files in a folder that a killed process was writing by way of `beside`."""
    return sorted(path for path in folder.glob(".*.tmp") if path.is_file())


@contextlib.contextmanager
def beside(path: Path, ending: str = "") -> Iterator[Path]:
    """A path beside `path` that no other process uses, for a file or folder that becomes `path` once complete.

    Nothing is left there afterwards, unless the process is killed (`unfinished`). The name does not use the process's
    number: in containers that share a folder every process may be number 1.

    Args:
        ending: the end of the name, for a library that reads it.
    """
    short = os.fsencode(path.name)[:100].decode(errors="ignore")  # a disk counts bytes, not characters
    place = path.with_name(f".{short}.{uuid.uuid4().hex}.tmp{ending}")
    try:
        yield place
    finally:
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)
