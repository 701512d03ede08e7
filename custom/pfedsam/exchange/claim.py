"""Who may write in a folder: the process that claimed it last."""

import uuid
from pathlib import Path

from pfedsam.errors import UserFault
from pfedsam.files import write_atomic


class Claim:
    """A claim on a folder. FLARE may leave a dead job's process running, which must not overwrite a later job's work.

    Args:
        folder: the claimed folder. The claim is a file `owner` in it.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._mine = folder / "owner", ""

    def take(self) -> None:
        """Make this process the owner."""
        self._mine = uuid.uuid4().hex
        write_atomic(self._path, self._mine.encode())

    def demand_mine(self) -> None:
        """Do nothing if no other process has claimed the folder after this one.

        Raises:
            UserFault: another process has.
        """
        if self._mine and self._path.exists() and self._path.read_bytes() != self._mine.encode():
            raise UserFault(
                expected=f"one job at a time in {self._path.parent}",
                came="a later job that has taken it over",
                do="nothing if a crash left this job behind. Otherwise run the jobs of a study one after the other",
            )
