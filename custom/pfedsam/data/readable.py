"""Damaged files: what a library raises over one becomes a fault that names it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfedsam.errors import UserFault


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
