"""A folder that is there whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfedsam.errors import UserFault
from pfedsam.names import beside


def check_free(out: Path) -> None:
    """Refuse an `out` that a new folder could not take the place of.

    Raises:
        UserFault: it holds something, or is a mount point or a link.
    """
    if os.path.ismount(out) or out.is_symlink():
        raise UserFault(
            expected=f"a folder at {out} that can be put there whole",
            came="a link" if out.is_symlink() else "a mount point, which nothing can take the place of",
            do="name a folder inside it",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserFault(expected=f"an empty or no folder at {out}", came="one that holds files", do="name another")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when all has gone well, and is gone when not.

    Raises:
        UserFault: `out` is taken, or the disk is full or forbids writing.
    """
    check_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with beside(out) as folder:
            folder.mkdir()
            yield folder
            os.replace(folder, out)
    except OSError as error:
        raise UserFault(
            expected=f"to write {out}",
            came=_reason(error),
            do="free space, mend the folder's rights, or name another",
        ) from None


def _reason(error: OSError) -> str:
    """In short; of many files that could not be copied, of the first."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return str(error.args[0][0][-1])
    return error.strerror or str(error)
