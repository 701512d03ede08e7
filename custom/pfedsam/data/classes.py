"""Compares the meaning of the numbers in a site's masks with the job: a class has one number at every site."""

from pathlib import Path

from pfedsam.config import Config
from pfedsam.errors import ClassesDiffer, UserFault
from pfedsam.files import read_json

CLASSES_FILE = "classes.json"  # beside the datalist, as `pfedsam prepare` writes it: {"1": "Liver", "2": "Tumour"}


def check_class_names(folder: Path, config: Config) -> None:
    """Refuse masks whose numbers mean other classes than the job's. A site without own names passes.

    Args:
        folder: of the site's datalist.

    Raises:
        ClassesDiffer: a number has another name here than in the job, or the job names none of several classes.
    """
    path = folder / CLASSES_FILE
    if not path.is_file():
        return
    ours = _numbered(path)
    told = ", ".join(f"{number} {name}" for number, name in sorted(ours.items()))
    if not config.data.classes and config.model.num_classes > 1:
        raise ClassesDiffer(
            expected="names of the classes in the job (data.classes), because this site's masks have names",
            came=f"none in the job, and here: {told}",
            do="name the classes in the job in the order of their numbers, so that every site can compare its own",
        )
    theirs = dict(enumerate(config.data.classes, 1))
    if theirs and any(_plain(name) != _plain(theirs.get(number, "")) for number, name in ours.items()):
        raise ClassesDiffer(
            expected="the job's classes: " + ", ".join(f"{number} {name}" for number, name in theirs.items()),
            came=f"{told} in {path}",
            do="prepare this site again with --labels so that its numbers match the job's, or correct data.classes",
        )


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
