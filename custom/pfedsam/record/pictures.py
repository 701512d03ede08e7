"""The file from which pictures of a site's final test are drawn: a few cases with their masks."""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pfedsam.errors import UserFault
from pfedsam.files import parsed
from pfedsam.tensors import Tensors, below, pack, unpack

SIDE = 512  # most pixels that are kept of a picture's longer side; our choice


@dataclass(frozen=True)
class Picture:
    """One test case.

    Attributes:
        label: the text above it.
        image: (3, H, W) of uint8.
        truth: (classes, H, W) of bool.
        found: the masks by role, each like `truth`.
    """

    label: str
    image: Tensor
    truth: Tensor
    found: dict[str, Tensor]


@dataclass(frozen=True)
class Gallery:
    """The pictures of one site, with their title and the names of the classes."""

    title: str
    classes: list[str]
    pictures: list[Picture]


def picked_cases(dice: list[float | None]) -> dict[str, int]:
    """The index of the best, median and worst case by Dice, by label. Cases with empty references are left out."""
    order = sorted((d, i) for i, d in enumerate(dice) if d is not None)
    if not order:
        return {}
    marks = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    seen: dict[int, str] = {}
    for name, (d, i) in marks.items():
        seen.setdefault(i, f"{name}, personal Dice {d:.2f}")
    return {label: i for i, label in seen.items()}


def packed(gallery: Gallery) -> bytes:
    """The file's bytes, safetensors. A large picture keeps only every second pixel, or fewer."""
    tensors: Tensors = {}
    for i, one in enumerate(gallery.pictures):
        maps = {"image": one.image, "truth": one.truth} | {f"found/{role}": mask for role, mask in one.found.items()}
        step = -(-max(one.image.shape) // SIDE)
        # cloned, as two roles may be one branch, and a file has no tensor twice
        tensors |= {f"{i}/{name}": values[:, ::step, ::step].clone() for name, values in maps.items()}
    labels = [one.label for one in gallery.pictures]
    texts = {"title": gallery.title, "classes": json.dumps(gallery.classes), "labels": json.dumps(labels)}
    return pack(tensors, texts)


def read_gallery(path: Path) -> Gallery:
    """The gallery in the file.

    Raises:
        UserFault: it is damaged.
    """
    try:
        tensors, texts = unpack(path.read_bytes())
        pictures = [
            Picture(label, tensors[f"{i}/image"], tensors[f"{i}/truth"], below(f"{i}/found/", tensors))
            for i, label in enumerate(parsed(texts["labels"]))
        ]
        return Gallery(texts["title"], parsed(texts["classes"]), pictures)
    except (OSError, ValueError, KeyError) as fault:
        raise UserFault(
            expected=f"{path} as a site's final test writes it",
            came=f"a damaged file ({type(fault).__name__})",
            do="use the folder that the site's last job wrote, or remove the file: the report then has no pictures",
        ) from None
