"""Files that can't be opened, and damaged ones: what a library raises over one becomes a fault that names it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfedsam.errors import UserFault


def hindrance(path: Path) -> tuple[str, str] | None:
    """Why a path found in a folder can't be opened as a file, and what to do; None: it can."""
    if not path.is_file():
        return "a link that leads nowhere, or no plain file", "put the file itself there"
    if not os.access(path, os.R_OK):
        return "the file can't be read (no right to)", "give yourself the right to read it"
    return None


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever is raised while `path` is read comes out as one `UserFault` that names the file."""
    try:
        yield
    except UserFault:
        raise
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        text = " ".join((str(error) or type(error).__name__).replace(str(path), "it").split())
        raise UserFault(
            expected=f"a readable file at {path}", came=text, do="copy or export it again, or leave it out"
        ) from None
