"""Who may write in a folder: the process that claimed it last."""

import uuid
from pathlib import Path

from pfedsam.errors import UserFault
from pfedsam.files import write_atomic


class Claim:
    """FLARE may leave a process of a dead job behind; it must not overwrite the work of a later one.

    Args:
        folder: what is claimed; the claim is a file `owner` in it.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._mine = folder / "owner", ""

    def take(self) -> None:
        """Make this process the owner."""
        self._mine = uuid.uuid4().hex
        write_atomic(self._path, self._mine.encode())

    def demand_mine(self) -> None:
        """Nothing, where nobody has claimed the folder after this process did.

        Raises:
            UserFault: somebody has.
        """
        if self._mine and self._path.exists() and self._path.read_text() != self._mine:
            raise UserFault(
                expected=f"one job at a time in {self._path.parent}",
                came="a later job that took it over",
                do="nothing if this job was left behind by a crash; else run one job of a study after the other",
            )
