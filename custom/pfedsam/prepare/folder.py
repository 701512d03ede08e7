"""A folder that is there whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfedsam.errors import UserFault


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when all has gone well, and is gone when not.

    Raises:
        UserFault: `out` holds something, or the disk is full or forbids writing.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserFault(expected=f"an empty or no folder at {out}", came="one that holds files", do="name another")
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = out.parent / f".{out.name}.{os.getpid()}.tmp"
        folder.mkdir()
        yield folder
        os.replace(folder, out)
        folder = None
    except OSError as error:
        raise UserFault(
            expected=f"to write {out}", came=error.strerror or str(error), do="free space or mend the folder's rights"
        ) from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
