"""What made the masks in an output folder: so a folder never mixes two models or branches unnoticed."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from pfedsam.files import append_line, parsed
from pfedsam.inference.predictor import Predictor
from pfedsam.predict.masks import Way
from pfedsam.predict.scans import RECORD, Scan


@dataclass(frozen=True)
class Maker:
    """What a mask depends on.

    Attributes:
        model: the sha256 of the model's tensors.
        branch, plane, scale: as in `masks.Way`.
        image: the sha256 of the picture's or the NIfTI file; empty for DICOM, whose mask names its images itself.
    """

    model: str
    branch: str
    plane: str
    scale: str
    image: str = ""


def maker_of(model: Predictor, way: Way, scan: Scan) -> Maker:
    """What makes the masks of a scan."""
    image = ""
    if scan.kind != "dicom":
        with scan.files[0].open("rb") as file:
            image = hashlib.file_digest(file, "sha256").hexdigest()
    return Maker(model.facts.sha256, way.branch, way.plane or model.config.data.plane, way.scale, image)


class Record:
    """Which maker each file in the folder `out` has, by the lines of its record. A later line counts."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / RECORD
        self.makers: dict[str, Maker] = {}
        for line in self.path.read_bytes().splitlines() if self.path.is_file() else ():
            self._take(line)

    def _take(self, line: bytes) -> None:
        """Take a line; leave out one that a crash cut short."""
        try:
            said = parsed(line)
            maker = Maker(**said["maker"])
            self.makers |= dict.fromkeys(map(str, said["files"]), maker)
        except (ValueError, TypeError, KeyError):
            pass

    def add(self, files: Iterable[Path], maker: Maker) -> None:
        """Note the maker of files that are about to be written.

        Raises:
            UserFault: the disk is full or forbids writing.
        """
        names = [self._name(file) for file in files]
        append_line(self.path, json.dumps({"files": names, "maker": asdict(maker)}))
        self.makers |= dict.fromkeys(names, maker)

    def known(self, file: Path) -> bool:
        """Whether the maker of a file is known. It is not, where an older version wrote it."""
        return self._name(file) in self.makers

    def other(self, file: Path, maker: Maker) -> str:
        """What of a file's maker differs from `maker`, in words; empty if nothing does, or if it is not known."""
        made = self.makers.get(self._name(file), maker)
        words = {
            "model": "another model",
            "branch": f"the {made.branch} branch",
            "plane": f"{made.plane} slices",
            "scale": f"scale {made.scale}",
            "image": "another image, which had this name",
        }
        return " and ".join(told for name, told in words.items() if getattr(made, name) != getattr(maker, name))

    def _name(self, file: Path) -> str:
        """A file's path in the folder, in ASCII."""
        return quote(os.fsencode(file.relative_to(self.out)))
