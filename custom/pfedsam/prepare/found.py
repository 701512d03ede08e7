"""What was found in a hospital's folder: cases, and files that are left out, with reasons."""

from dataclasses import dataclass
from pathlib import Path

from pfedsam.errors import UserFault

ALONE = {  # the reason and remedy for a mask (True) or an image without a partner
    True: ("a mask without an image of its name", "add the image, rename the mask like it, or use --pair"),
    False: (
        "an image without a mask of its name",
        "add its mask: the same name in a folder masks/ or labels/, or with _mask, _seg or _label at the end;"
        " if all masks are in a folder with another name, use --masks DIR; for DICOM, add the DICOM-SEG drawn on it; or"
        " use --pair to say how the names fit",
    ),
}
ELSEWHERE = (
    "if they are a pair, put both into one folder, or into images/ and masks/ of one folder, or use --pair;"
    " otherwise rename one"
)


@dataclass(frozen=True)
class Case:
    """One image with its mask, in the hospital's folder.

    Attributes:
        name: the hospital's name for it: the path below the given folder.
        home: that folder as messages show it, if several were given; else empty.
        image: its file, or all files of its series.
        masks: its label map or DICOM-SEG, or several label maps of one annotation.
        patient: identifies the patient, in clear text. It is written only to `names.csv`.
        split: of an existing datalist; None: to be drawn.
        structures: what each mask shows, if each mask shows one structure.
        weak: a datalist's weak mask beside the whole one.
    """

    name: str
    image: tuple[Path, ...]
    masks: tuple[Path, ...]
    patient: str = ""
    split: str | None = None
    structures: tuple[str, ...] = ()
    weak: Path | None = None
    home: str = ""

    @property
    def shown(self) -> str:
        """Its name in messages and for `--patient REGEX`. If several folders were given, it says which."""
        return str(Path(self.home, self.name))

    @property
    def mask(self) -> Path:
        """The first of its masks."""
        return self.masks[0]


Reason = tuple[str, str]  # why a file is left out, and what to do


@dataclass(frozen=True)
class Dropped:
    """A file that is left out, why, and what to do."""

    file: str
    why: str
    do: str


def of_series(folder: str, first: Path) -> str:
    """The name of a series in a folder with other ones."""
    return f"{folder} (the series of {first.name})"


def reason(fault: UserFault) -> Reason:
    """The reason for leaving out a file, from the fault that reading it raised."""
    return f"expected {fault.expected}, but came {fault.came}", fault.do


@dataclass(frozen=True)
class Discovered:
    """Everything in the folders: the number of `files`, the cases, what is left out, and remarks in words.

    `segments` numbers the segment labels of DICOM-SEG files and the structures with a file each, from 1 up.
    """

    files: int
    cases: list[Case]
    dropped: list[Dropped]
    notes: list[str]
    segments: dict[str, int]
