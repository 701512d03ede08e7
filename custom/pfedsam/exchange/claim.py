"""Who may write in a folder: the process that claimed it last."""

import time
import uuid
from pathlib import Path

from pfedsam.errors import UserFault, unread
from pfedsam.files import write_atomic
from pfedsam.names import unfinished

OWNER = "owner"  # the file of a claim, in the claimed folder


class Claim:
    """A claim on a folder. FLARE may leave a dead job's process running, which must not overwrite a later job's work.

    Args:
        folder: the claimed folder. The claim is a file in it. Who takes that file away ends the claim.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._mine = folder / OWNER, ""

    def take(self) -> None:
        """Make this process the owner, and delete what killed processes left half written."""
        for path in unfinished(self._path.parent):
            path.unlink(missing_ok=True)
        self._mine = f"{uuid.uuid4().hex} {time.time()}"
        write_atomic(self._path, self._mine.encode())

    def demand_mine(self) -> None:
        """Do nothing if this process has claimed nothing, or if its claim is the last one and is still there.

        Raises:
            UserFault: another process has claimed the folder since, `pfedsam forget` has emptied it, or the disk does
                not give the claim now.
        """
        found = self._found() if self._mine else b""
        if found is None:
            raise UserFault(
                expected=f"this job's file {OWNER} in {self._path.parent}",
                came="none: the folder was emptied while the job ran, as by pfedsam forget",
                do="stop the job. A new one begins without what was deleted",
            )
        if found != self._mine.encode():
            raise UserFault(
                expected=f"one job at a time in {self._path.parent}",
                came="a later job that has taken it over",
                do="nothing if a crash left this job behind. Otherwise run the jobs of a study one after the other",
            )

    def _found(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as fault:
            raise unread(self._path, fault) from None


def claimed(folder: Path) -> float:
    """When a folder was claimed last, in seconds since 1970: as the claim says, else by its file. 0 if it never was."""
    try:
        text, known = (folder / OWNER).read_bytes(), (folder / OWNER).stat().st_mtime
        return float(text.split()[1])
    except OSError:
        return 0.0
    except (ValueError, IndexError):  # of an older version
        return known
