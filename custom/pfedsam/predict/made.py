"""What made the masks in an output folder: so a folder never mixes two models or branches unnoticed."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pfedsam.files import append_line, lines_of, sha256
from pfedsam.inference.predictor import Predictor
from pfedsam.layout import PREDICTED
from pfedsam.names import in_ascii
from pfedsam.predict.masks import Way
from pfedsam.predict.scans import Scan
from pfedsam.predict.segmentation import Classes


@dataclass(frozen=True)
class Maker:
    """What a mask depends on. What an older version did not note is empty, and compared with nothing.

    Attributes:
        model: the sha256 of the model's tensors.
        branch, plane, scale: as in `masks.Way`.
        image: a sha256 of the image's files. None is kept with `anonymous`: whoever has a patient's image could find
            out which result is that patient's. So a later call does not notice that another image of the same size has
            this name now.
        names, codes, anonymous: as in `segmentation.Classes`, for DICOM alone: other masks do not hold them.
    """

    model: str
    branch: str
    plane: str
    scale: str
    image: str = ""
    names: str = ""
    codes: str = ""
    anonymous: str = ""


def maker_of(model: Predictor, way: Way, scan: Scan, classes: Classes) -> Maker:
    """What makes the masks of a scan."""
    plane = way.plane or model.config.data.plane
    image = "" if classes.anonymous else _digest(scan.files)
    maker = Maker(model.facts.sha256, way.branch, plane, way.scale, image)
    if scan.kind != "dicom":
        return maker
    codes = [classes.codes.get(name, "") for name in classes.names]
    told = {"names": classes.names, "codes": codes, "anonymous": classes.anonymous}
    return replace(maker, **{name: json.dumps(value) for name, value in told.items()})


def _digest(files: Sequence[Path]) -> str:
    """Of one file its sha256, of several that of theirs."""
    each = [sha256(path) for path in files]
    return each[0] if len(each) == 1 else hashlib.sha256(" ".join(each).encode()).hexdigest()


class Record:
    """Which maker each file in the folder `out` has, by the lines of its record. A later line counts."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / PREDICTED
        self.makers: dict[str, Maker] = {}
        for said in lines_of(self.path):
            with suppress(TypeError, KeyError):
                self.makers |= dict.fromkeys(map(str, said["files"]), Maker(**said["maker"]))

    def add(self, files: Iterable[Path], maker: Maker) -> None:
        """Note the maker of files that are about to be written.

        Raises:
            UserFault: the disk is full or forbids writing.
        """
        names = [self._name(file) for file in files]
        append_line(self.path, json.dumps({"files": names, "maker": asdict(maker)}))
        self.makers |= dict.fromkeys(names, maker)

    def known(self, file: Path) -> bool:
        """Whether the maker of a file is known. If not, something else wrote it."""
        return self._name(file) in self.makers

    def other(self, file: Path, maker: Maker) -> str:
        """What of a file's maker differs from `maker`, in words; empty if nothing does, or if one is not known."""
        made = self.makers.get(self._name(file), maker)
        words = {
            "model": "another model",
            "branch": f"the {made.branch} branch",
            "plane": f"{made.plane} slices",
            "scale": f"scale {made.scale}",
            "image": "another image, which had this name",
            "names": "other class names",
            "codes": "other codes",
            "anonymous": "another choice of --anonymous",
        }
        pairs = {name: (getattr(made, name), getattr(maker, name)) for name in words}
        return " and ".join(words[name] for name, (old, new) in pairs.items() if old and new and old != new)

    def _name(self, file: Path) -> str:
        """A file's path in the folder, in ASCII."""
        return in_ascii(file.relative_to(self.out))
