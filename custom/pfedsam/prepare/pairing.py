"""Which mask belongs to which image, by folder and file names; what is ambiguous is named, never guessed."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
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
        mask: what it is, where the user has said so; None: by its names.
    """
    folders, stem = [_plain(part) for part in parts], _plain(stem)
    if mask is None:
        mask = any(MASK_FOLDER.fullmatch(f) for f in folders) or _cut(stem, MASK_END, MASK_START) != stem
    if mask:
        stem = _cut(stem, MASK_END, MASK_START)
    if not mask and any(f in ("imagestr", "imagests") for f in folders):
        stem = _cut(stem, CHANNEL)
    stem = _cut(stem, IMAGE_END)
    kept = [f for f in folders if not MASK_FOLDER.fullmatch(f) and not IMAGE_FOLDER.fullmatch(f)]
    return Item(name, files, (*kept, stem), mask)


def paired(items: Iterable[Item]) -> tuple[list[tuple[Item, Item]], list[Dropped]]:
    """Image and mask of each pair, and every item left over with the reason.

    A pair has one image and one mask of the same folders and stem; items still alone are paired by the stem
    where it is theirs alone.
    """
    every = list(items)
    pairs, lone, dropped = _matched(every)
    count = Counter((i.key[-1], i.mask) for i in every)
    unique = [i for i in lone if i.key[-1] and count[i.key[-1], True] < 2 and count[i.key[-1], False] < 2]
    more, alone, _ = _matched(replace(i, key=i.key[-1:]) for i in unique)
    return pairs + more, dropped + [_alone(i) for i in [*alone, *(i for i in lone if i not in unique)]]


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
