"""A folder that is created completely, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfedsam.errors import UserFault, reason
from pfedsam.names import beside


def check_free(out: Path) -> None:
    """Refuse an `out` that a new folder could not replace.

    Raises:
        UserFault: it is not empty, or is a mount point or a link.
    """
    if os.path.ismount(out) or out.is_symlink():
        raise UserFault(
            expected=f"a folder at {out} that can be created at once",
            came="a link" if out.is_symlink() else "a mount point, which cannot be replaced",
            do="name a folder inside it",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserFault(expected=f"an empty or no folder at {out}", came="one that contains files", do="name another")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` on success and is removed on failure.

    Raises:
        UserFault: `out` is taken, or the disk is full or not writable.
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
            came=_first_reason(error),
            do="free space, correct the folder's permissions, or name another",
        ) from None


def _first_reason(error: OSError) -> str:
    """The short reason; for several files that could not be copied, that of the first."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return str(error.args[0][0][-1])
    return reason(error)
