"""What was found in a hospital's folder: cases, and what is left out with the reason."""

from dataclasses import dataclass
from pathlib import Path

from pfedsam.errors import UserFault


@dataclass(frozen=True)
class Case:
    """One image with its mask, as it lies in the hospital's folder.

    Attributes:
        name: as the hospital knows it: the path below the folder given.
        image: its file, or all files of its series.
        masks: its label map or DICOM-SEG; or several label maps, which belong to the same drawing.
        patient: what tells its patient from others, in clear; never written outside `names.csv`.
        split: where an existing datalist puts it; None: to be drawn.
        structures: what each of its masks shows, where each is of one structure.
    """

    name: str
    image: tuple[Path, ...]
    masks: tuple[Path, ...]
    patient: str = ""
    split: str | None = None
    structures: tuple[str, ...] = ()

    @property
    def mask(self) -> Path:
        """The first of its masks."""
        return self.masks[0]


Reason = tuple[str, str]  # why a file is left out, and what to do about it


@dataclass(frozen=True)
class Dropped:
    """A file that is left out: why, and what to do about it."""

    file: str
    why: str
    do: str


def reason(fault: UserFault) -> Reason:
    """That of a file which raised a fault when it was read."""
    return f"expected {fault.expected}, but came {fault.came}", fault.do


@dataclass(frozen=True)
class Discovered:
    """Everything in the folders: `files` looked at, cases, what is left out, and remarks in words.

    `segments` numbers the segment labels of DICOM-SEG files and the structures that have a file each, 1 and up.
    """

    files: int
    cases: list[Case]
    dropped: list[Dropped]
    notes: list[str]
    segments: dict[str, int]
