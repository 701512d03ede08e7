"""Drishti-GS1 as downloaded: a soft map of the disc and one of the cup a picture, made into one mask."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedsam.data.readable import readable
from pfedsam.errors import UserFault

DISC, CUP = "_ODsegSoftmap.png", "_cupsegSoftmap.png"
HALF = 128  # half of the experts; FedFMS's release cuts at 100 of 255


def has_softmaps(home: Path) -> bool:
    """Whether the folder holds such maps."""
    return any(home.rglob(f"*{DISC}"))


def combined(home: Path, folder: Path) -> Path:
    """`folder` with images/ (links) and masks/ of 1 for the rim (disc without cup) and 2 for the cup; returns it.

    Raises:
        UserFault: a picture or a map is missing or damaged.
    """
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for disc in sorted(home.rglob(f"*{DISC}")):
        name = disc.name.removesuffix(DISC)
        picture = next((p for p in sorted(home.rglob(f"{name}.*")) if p.suffix in (".png", ".jpg")), None)
        cup = disc.with_name(name + CUP)
        if picture is None or not cup.is_file():
            raise UserFault(
                expected=f"the picture and both soft maps of {name}", came="not all", do="download the set again"
            )
        (folder / "images" / picture.name).symlink_to(picture.resolve())
        mask = np.where(_map(cup) >= HALF, 2, _map(disc) >= HALF).astype(np.uint8)
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    return folder


def _map(path: Path) -> NDArray[np.uint8]:
    with readable(path), Image.open(path) as image:
        return np.asarray(image.convert("L"))
