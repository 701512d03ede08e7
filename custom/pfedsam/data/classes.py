"""Compares the meaning of the numbers in a site's masks with the job: a class has one number at every site."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pfedsam import log
from pfedsam.config import Config
from pfedsam.errors import ClassesDiffer, UserFault
from pfedsam.files import read_json

SIDES = "left|right|links|rechts|linke|rechte|gauche|droite"  # words of a class that a mirror makes another
NAMED_SIDES = (  # the same, but in the name of a file they may be a person's
    "linke[rs]|rechte[rs]|droit|izquierd[oa]|derech[oa]|esquerd[oa]|direit[oa]|destr[oa]|sinister|sinistr(?:o|a|um)"
    "|dexter|dextr(?:a|um)"
)
SHORT_SIDES = "l|r|lt|rt"
JOINED_SIDES = r"\w{3,}(?:left|right)|(?:left|right)(?!over|most|ward)\w{3,}"  # kidneyleft
SIDE = re.compile(rf"{SIDES}|{NAMED_SIDES}|{JOINED_SIDES}|lt|rt|[lr]h|sx|dx")
EYES = {"od": "os", "os": "od"}  # right and left; but OD is also the optic disc, and os a bone
CLASSES_FILE = "classes.json"  # beside the datalist, as `pfedsam prepare` writes it: {"1": "Liver", "2": "Tumour"}


def check_class_names(folder: Path, config: Config) -> None:
    """Refuse masks whose numbers mean other classes than the job's. A site without own names passes.

    Args:
        folder: of the site's datalist.

    Raises:
        ClassesDiffer: a number has another name here than in the job, or the job names none of several classes.
    """
    path, ours = folder / CLASSES_FILE, own_names(folder)
    if not ours:
        return
    told = ", ".join(f"{number} {name}" for number, name in sorted(ours.items()))
    if not config.data.classes and config.model.num_classes > 1:
        raise ClassesDiffer(
            expected="names of the classes in the job (data.classes), because this site's masks have names",
            came=f"none in the job, and here: {told}",
            do="name the classes in the job in the order of their numbers, so that every site can compare its own",
        )
    if not config.data.classes:
        log.warning("the job names no class, so nothing compares this site's (%s) with other sites'", told)
    theirs = dict(enumerate(config.data.classes, 1))
    if theirs and any(_plain(name) != _plain(theirs.get(number, "")) for number, name in ours.items()):
        raise ClassesDiffer(
            expected="the job's classes: " + ", ".join(f"{number} {name}" for number, name in theirs.items()),
            came=f"{told} in {path}",
            do="prepare this site again with --labels so that its numbers match the job's, or correct data.classes",
        )


def check_one_meaning(folders: Mapping[str, Path]) -> None:
    """Refuse sites of which two name a number differently. A site without own names passes.

    Args:
        folders: of each site's datalist.

    Raises:
        ClassesDiffer: two do.
    """
    first: dict[int, tuple[str, str]] = {}
    for site, folder in folders.items():
        for number, name in own_names(folder).items():
            other, known = first.setdefault(number, (site, name))
            if _plain(known) != _plain(name):
                raise ClassesDiffer(
                    expected=f"one meaning of class {number} at all sites",
                    came=f"{known} at {other}, {name} at {site} (in their {CLASSES_FILE})",
                    do="name the job's classes in data.classes, and prepare the sites that differ again with --labels",
                )


def safe_flips(plane: str) -> list[str]:
    """The flips that mirror no left into right, by the plane. A file's stored axes may be any of the patient's."""
    return {"sagittal": ["both", "horizontal", "vertical", "none"], "stored": ["none"]}.get(plane, ["vertical", "none"])


def sided(names: Sequence[str]) -> list[str]:
    """Those of the classes' names that say left or right: `kidney_left`, `LeftKidney`, `Kidney_L`.

    `OD` counts only if another name differs by `OS` alone, and the other way round.
    """
    parts = [tuple(re.split(r"[\W_]+", name.casefold())) for name in names]
    mirrored = [tuple(EYES.get(part, part) for part in one) for one in parts]
    eyes = [one != other and other in parts for one, other in zip(parts, mirrored, strict=True)]
    short = [any(re.fullmatch(SHORT_SIDES, part) for part in one) for one in parts]
    return [name for i, name in enumerate(names) if eyes[i] or short[i] or _says_side(name)]


def _says_side(name: str) -> bool:
    words = re.split(r"[\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())
    return any(map(SIDE.fullmatch, words))


def own_names(folder: Path) -> dict[int, str]:
    """The names that a site's masks have, by number. Empty: the site names none.

    Raises:
        UserFault: as `_numbered`.
    """
    path = folder / CLASSES_FILE
    return _numbered(path) if path.is_file() else {}


def _numbered(path: Path) -> dict[int, str]:
    """A site's own names. A person may have written them by hand, so a key that is not a number is an error.

    Raises:
        UserFault: a key is not a class number, or a name is not a text.
    """
    told = read_json(path)
    if strange := [f"{key}: {name}" for key, name in told.items() if not key.isdecimal() or not isinstance(name, str)]:
        raise UserFault(expected=f"class number to name in {path}", came=strange[0], do='write it like {"1": "Liver"}')
    return {int(number): name for number, name in told.items() if int(number)}


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()
