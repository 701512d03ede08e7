"""Names: those that FLARE takes for a site and a job, and those of files that are being written."""

import contextlib
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from pfedsam.errors import UserFault

LONGEST = 64  # characters of a site's name: a certificate holds no longer one
RESERVED = frozenset({"server", "client", "all"})  # what FLARE itself calls the server, every site, everybody


def site_name(text: str) -> str:
    """`text`, where FLARE takes it for a site.

    FLARE's cells split a name at dots, its console reads a leading - as an option.

    Raises:
        UserFault: FLARE would refuse it, or take it for something else.
    """
    fits = re.fullmatch(rf"[A-Za-z0-9_][A-Za-z0-9_-]{{0,{LONGEST - 1}}}", text)
    if not fits or text.startswith("_admin_") or text.casefold() in RESERVED:
        raise UserFault(
            expected=f"a site's name of letters, digits, - and _, at most {LONGEST}, not beginning with -,"
            f" and none of {', '.join(sorted(RESERVED))}",
            came=repr(text),
            do="use the name that the site has in project.yml; there FLARE takes no other",
        )
    return text


def site_names(texts: list[str]) -> list[str]:
    """`texts`, where FLARE takes each for a site, and each is there once.

    Raises:
        UserFault: one is no site's name, or comes twice.
    """
    names = [site_name(text) for text in texts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserFault(expected="each site once", came=f"{', '.join(twice)} twice", do="name it once")
    return names


def job_name(text: str) -> str:
    """`text`, where FLARE takes it for the name of a job's folder.

    Raises:
        UserFault: FLARE would refuse it.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise UserFault(
            expected="a job folder's name of letters, digits, . - and _, at most 100, beginning with a letter or digit",
            came=repr(text),
            do="name another folder; FLARE takes no other name for a job",
        )
    return text


def one_name(text: str, what: str) -> str:
    """`text`, where it names one file or folder and leads nowhere else: it may come from a job or a message.

    Raises:
        UserFault: it is no such name; the message says of what.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", text):
        raise UserFault(
            expected=f"a {what}'s name of letters, digits, . - and _, at most 100, not beginning with .",
            came=repr(text),
            do="rename it",
        )
    return text


@contextlib.contextmanager
def beside(path: Path, ending: str = "") -> Iterator[Path]:
    """A place beside `path` that no other process has, for a file or folder that becomes `path` when it is whole.

    Nothing is left there afterwards. The name does not come from the process's number: in containers that share
    a folder every process may be number 1.

    Args:
        ending: what the name ends with, for a library that goes by it.
    """
    place = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.tmp{ending}")
    try:
        yield place
    finally:
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)
