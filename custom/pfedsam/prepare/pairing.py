"""Which mask belongs to which image, by folder and file names; what is ambiguous is named, never guessed."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pfedsam.prepare.found import Dropped

MASK_WORDS = "masks?|seg|segs|segmentations?|labels?|labels?t[rs]|gt|ground_?truth|annotations?|manual"
IMAGE_WORDS = "images?|images?t[rs]|imgs?|scans?|slices?|pictures?|volumes?"
MASK_FOLDER, IMAGE_FOLDER = re.compile(MASK_WORDS), re.compile(IMAGE_WORDS)
MASK_END = re.compile(rf"(?:^|(?P<stem>.*?)[ _.-]+)(?:{MASK_WORDS})")
MASK_START = re.compile(rf"(?:{MASK_WORDS})[ _.-]+(?P<stem>.+)")
IMAGE_END = re.compile(r"(?:^|(?P<stem>.*?)[ _.-]+)(?:image|img|scan)")
CHANNEL = re.compile(r"(?P<stem>.+)_\d{4}")  # nnU-Net's imagesTr/case_0000.nii.gz

Key = tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """An image or a mask; `key`, which it is paired by: folders (without `images`, `masks` and the like) and stem."""

    name: str
    files: tuple[Path, ...]
    key: Key
    mask: bool


def item(name: str, files: tuple[Path, ...], parts: tuple[str, ...], stem: str, *, mask: bool | None = None) -> Item:
    """The item that folder and file names make of files.

    Args:
        parts: the folders that they lie in, outermost first.
        mask: what it is, where the user has said so; None: by the nearest folder that names a role, or its own name.
    """
    folders, stem = [_plain(part) for part in parts], _plain(stem)
    if mask is None:
        roles = [told for f in folders if (told := role(f)) is not None]
        mask = roles[-1:] == [True] or _cut(stem, MASK_END, MASK_START) != stem
    if mask:
        stem = _cut(stem, MASK_END, MASK_START)
    if not mask and any(f in ("imagestr", "imagests") for f in folders):
        stem = _cut(stem, CHANNEL)
    stem = _cut(stem, IMAGE_END)
    kept = [f for f in folders if role(f) is None]
    return Item(name, files, (*kept, stem), mask)


def role(folder: str) -> bool | None:
    """Whether a folder of that name holds masks (True) or images (False); None: the name does not say."""
    name = _plain(folder)
    return True if MASK_FOLDER.fullmatch(name) else False if IMAGE_FOLDER.fullmatch(name) else None


def paired(items: Iterable[Item]) -> tuple[list[tuple[Item, Item]], list[Dropped]]:
    """Image and mask of each pair, and every item left over with the reason.

    A pair has one image and one mask of the same folders and stem; items still alone are paired by the stem
    where it is theirs alone, and the folders of one begin or end those of the other.
    """
    every = list(items)
    pairs, lone, dropped = _matched(every)
    count = Counter((i.key[-1], i.mask) for i in every)
    unique = [i for i in lone if i.key[-1] and count[i.key[-1], True] < 2 and count[i.key[-1], False] < 2]
    masks = {i.key[-1]: i for i in unique if i.mask}
    twos = [(i, masks[i.key[-1]]) for i in unique if not i.mask and i.key[-1] in masks]
    apart = [_apart(*ends) for two in twos if not _agree(*two) for ends in (two, two[::-1])]
    met = {i for two in twos for i in two}
    return pairs + [two for two in twos if _agree(*two)], dropped + apart + [_alone(i) for i in lone if i not in met]


def _agree(one: Item, other: Item) -> bool:
    """Whether the folders of one are the first or the last of the other's, or none."""
    short, long = sorted((one.key[:-1], other.key[:-1]), key=len)
    return short in (long[: len(short)], long[len(long) - len(short) :])


def _matched(items: Iterable[Item]) -> tuple[list[tuple[Item, Item]], list[Item], list[Dropped]]:
    """Pairs, items without a partner, and those with several."""
    groups: dict[Key, tuple[list[Item], list[Item]]] = defaultdict(lambda: ([], []))
    for i in items:
        groups[i.key][i.mask].append(i)
    pairs, lone, dropped = [], [], []
    for images, masks in groups.values():
        if len(images) == len(masks) == 1:
            pairs.append((images[0], masks[0]))
        elif images and masks:
            dropped += [_ambiguous(i, images, masks) for i in images + masks]
        else:
            lone += images + masks
    return pairs, lone, dropped


def _ambiguous(one: Item, images: list[Item], masks: list[Item]) -> Dropped:
    others = ", ".join(i.name for i in (images + masks)[:5] if i != one)
    return Dropped(
        one.name,
        f"{len(images)} images and {len(masks)} masks go by the same name ({others})",
        "leave one image and one mask of each name, or rename them",
    )


def _apart(one: Item, other: Item) -> Dropped:
    what, missing = ("a mask", "image") if one.mask else ("an image", "mask")
    return Dropped(
        one.name,
        f"{what} whose {missing} of its name lies in other folders ({other.name})",
        "if they are a pair, put both into the same folder, or into images/ and masks/ of one; else rename one",
    )


def _alone(one: Item) -> Dropped:
    if one.mask:
        return Dropped(one.name, "a mask without an image of its name", "add the image, or rename the mask after it")
    return Dropped(
        one.name,
        "an image without a mask of its name",
        "add its mask: the same name in a folder masks/ or labels/, or with _mask, _seg or _label at its end;"
        " for DICOM, the DICOM-SEG drawn on it",
    )


def _cut(stem: str, *patterns: re.Pattern[str]) -> str:
    """The stem without the word that a pattern finds; empty where it is the whole."""
    found = next((m for p in patterns if (m := p.fullmatch(stem))), None)
    return stem if found is None else found["stem"] or ""


def _plain(name: str) -> str:
    """One spelling of a name: composed letters, no capitals."""
    return unicodedata.normalize("NFC", name).casefold()
