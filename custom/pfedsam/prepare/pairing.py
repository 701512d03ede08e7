"""Finds the image of each mask by folder and file names. Ambiguous cases are reported, never guessed."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from pfedsam.names import spelling
from pfedsam.prepare.found import Dropped
from pfedsam.prepare.words import (
    IMAGE,
    MASK,
    MASK_WORDS,
    MODALITY,
    SPLIT,
    WEAK,
    Words,
    differ,
    place,
    role,
    without,
    words,
)

MASK_END = re.compile(rf"(?:^|(?P<stem>.*?)[ _.-]+)(?:{MASK_WORDS})")
MASK_START = re.compile(rf"(?:{MASK_WORDS})[ _.-]+(?P<stem>.+)")
IMAGE_END = re.compile(r"(?:^|(?P<stem>.*?)[ _.-]+)(?:image|img|imaging|scan)")
CHANNEL = re.compile(r"(?P<stem>.+)_\d{4}")  # nnU-Net's imagesTr/case_0000.nii.gz
ONLY_CHANNEL = re.compile(r"(?P<stem>.+)_0000")  # the same in a folder of another name
ROLE_IN_NAME = re.compile(WEAK)
BIDS = re.compile("derivatives|anat|dwi|perf|func|fmap|pet")
ALONE = {  # the reason and remedy for a mask (True) or an image without a partner
    True: ("a mask without an image of its name", "add the image, rename the mask like it, or use --pair"),
    False: (
        "an image without a mask of its name",
        "add its mask: the same name in a folder masks/ or labels/, or with _mask, _seg or _label at the end;"
        " for DICOM, the DICOM-SEG drawn on it; or use --pair to say how the names fit",
    ),
}


@dataclass(frozen=True)
class Candidate:
    """An image or a mask with the names by which it can be found.

    Attributes:
        folders: the folders that contain it, outermost first, plain.
        stem: its file name without the ending, plain.
        mask: whether it is a mask; None: its folders, its name and the files beside it decide.
    """

    name: str
    files: tuple[Path, ...]
    folders: Words
    stem: str
    mask: bool | None

    @cached_property
    def place(self) -> Words:
        """The folders that say more than images or masks."""
        return place(self.folders)

    @cached_property
    def wide(self) -> Words:
        """The same without folders such as `train_masks`, and without those by which BIDS sorts files."""
        return tuple(folder for folder in self.folders if role(folder) is None and not BIDS.fullmatch(folder))

    @cached_property
    def bare(self) -> Words:
        """The parts of its name that say neither image nor mask."""
        return without(words(self.stem), IMAGE, MASK)

    @cached_property
    def keys(self) -> tuple[Words, ...]:
        """The names for pairing, one per level: complete, without the end, without such words, without modalities.

        An image may name its split although its mask does not, as in DRIVE's 21_training and 21_manual1. The last
        level also leaves out nnU-Net's channel: images/p1_0000 belongs to labels/p1.
        """
        stem = _cut(self.stem, MASK_END, MASK_START) if self.mask else self.stem
        if not self.mask and any(folder in ("imagestr", "imagests") for folder in self.folders):
            stem = _cut(stem, CHANNEL)
        cut = _cut(stem, IMAGE_END)
        bare = self.bare if self.mask else without(words(stem), IMAGE)
        lone = without(words(_cut(stem, ONLY_CHANNEL)), IMAGE)
        last = without(words(cut), IMAGE, MASK, MODALITY) if self.mask else without(lone, MODALITY, SPLIT)
        return (*((s,) if s else () for s in (self.stem, cut)), bare, last)


@dataclass(frozen=True)
class Claim:
    """A mask of an image. `extra` are the words by which its name or folder differs from the image's.

    `by` is the reason: its name; the folder, if no name fits and the folder has one image; or the user.
    """

    mask: Candidate
    extra: Words = ()
    by: Literal["name", "folder", "user"] = "name"


@dataclass(frozen=True)
class Claimed:
    """The images, the masks of each, and the files without a partner or with several candidates."""

    images: list[Candidate] = field(default_factory=list)
    masks: dict[Candidate, list[Claim]] = field(default_factory=lambda: defaultdict(list))
    dropped: list[Dropped] = field(default_factory=list)


def candidate(
    name: str, files: tuple[Path, ...], parts: tuple[str, ...], stem: str, *, mask: bool | None = None
) -> Candidate:
    """A candidate made from folder and file names.

    Args:
        parts: the folders that contain the files, outermost first.
        mask: as the user said; None: the nearest folder that names a role decides, else the name.
    """
    return Candidate(name, files, tuple(spelling(part) for part in parts), spelling(stem), mask)


def claimed(candidates: Iterable[Candidate]) -> Claimed:
    """The image of each mask: in the same folders first, and by the longest part of its name.

    A mask that fits two images is left out. So are these images, if they are in its folder.
    """
    every = _told(list(candidates))
    answer, torn = Claimed([i for i in every if not i.mask]), dict[Candidate, list[Candidate]]()
    index = _Index(answer.images)
    lone, by_folder = list[Candidate](), list[tuple[Candidate, Claim]]()
    for mask in (i for i in every if i.mask):
        fits, claim, near = index.fitting(mask)
        if len(fits) == 1 and claim.by == "folder":
            by_folder.append((fits[0], claim))
        elif len(fits) == 1:
            answer.masks[fits[0]].append(claim)
        elif fits:
            answer.dropped.append(_ambiguous(mask, fits))
            torn.update(dict.fromkeys(fits, fits) if near or len({i.place for i in fits}) == 1 else {})
        else:
            lone.append(mask)
    for image, fits in torn.items():
        parts = [image, *(claim.mask for claim in answer.masks.pop(image, []))]
        answer.dropped.extend(_ambiguous(one, fits) for one in parts)
    named = set(answer.masks)
    for image, claim in by_folder:  # a mask of the same name settles the doubt about any other
        if image in named or image in torn:
            lone.append(claim.mask)
        else:
            answer.masks[image].append(claim)
    lone += [i for i in every if not i.mask and i not in answer.masks and i not in torn]
    answer.dropped.extend(_left_over(lone, every))
    return answer


class _Index:
    """Images by the names under which they can be found."""

    def __init__(self, images: Sequence[Candidate]) -> None:
        self.here: dict[tuple[int, Words, Words], list[Candidate]] = defaultdict(list)
        self.anywhere: dict[tuple[int, Words], list[Candidate]] = defaultdict(list)
        self.paths: dict[Words, list[Candidate]] = defaultdict(list)
        self.places: dict[Words, list[Candidate]] = defaultdict(list)
        for image in images:
            self.places[image.place].append(image)
            for level, key in enumerate(image.keys):
                self.here[level, image.place, key].append(image)
                self.anywhere[level, key].append(image)
            for path in {(*image.place, *name) for name in (words(image.stem), *image.keys[2:])}:
                self.paths[path].append(image)

    def fitting(self, mask: Candidate) -> tuple[list[Candidate], Claim, bool]:
        """The images that a mask may belong to, the claim, and whether they are in its folders.

        An image of another modality or split than the mask's name says is none of them.
        """
        fits, claim, near = self._by_name(mask)
        return [image for image in fits if not differ(image.stem, mask.stem)], claim, near

    def _by_name(self, mask: Candidate) -> tuple[list[Candidate], Claim, bool]:
        home, wide = mask.place, mask.wide
        for level, key in enumerate(mask.keys):
            if fits := self.here.get((level, home, key)):
                return fits, Claim(mask), True
        for level, key in enumerate(mask.keys):
            near = self.anywhere.get((level, key), [])
            if fits := [i for i in near if _agree(i.wide, wide) and (key or (i.wide and wide))]:
                return fits, Claim(mask, _rest(home, fits[0].place)), False
        path, bare = (*home, *mask.bare), mask.bare
        for length in range(len(path) - 1, 0, -1):
            if fits := self.paths.get(path[:length]):
                return fits, Claim(mask, path[length:]), True
        for length in range(len(bare) - 1, 0, -1):
            near = self.anywhere.get((2, bare[:length])) or self.anywhere.get((3, bare[:length]), [])
            if fits := [i for i in near if _agree(i.wide, wide)]:
                return fits, Claim(mask, (*_rest(home, fits[0].place), *bare[length:])), False
        only = self.places.get(home, []) if home and role_of(mask.folders) else []
        return (only if len(only) == 1 else []), Claim(mask, mask.bare, by="folder"), True


def role_of(folders: Words) -> bool | None:
    """What the nearest folder that names a role says."""
    return next((told for f in reversed(folders) if (told := role(f)) is not None), None)


def _told(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates, each marked as image or mask: by the user, else by the nearest folder with a role, else by name.

    In a folder of images, a file named as a mask counts as one only beside its image.
    """
    stems: dict[Words, set[str]] = defaultdict(set)
    images: dict[Words, set[Words]] = defaultdict(set)
    for one in candidates:
        stems[one.folders].add(one.stem)
        if not any(MASK.fullmatch(part) for part in words(one.stem)):
            images[one.folders].add(one.bare)
    claims = {(f, _cut(s, MASK_END)) for f, all_ in stems.items() for s in all_ if _cut(s, MASK_END) != s}
    return [
        replace(i, mask=_is_mask(i, images[i.folders], (i.folders, i.stem) in claims)) if i.mask is None else i
        for i in candidates
    ]


def _is_mask(one: Candidate, images: set[Words], has_mask: bool) -> bool:
    by_folder, parts = role_of(one.folders), words(one.stem)
    if by_folder or has_mask:
        return bool(by_folder)
    strong = any(MASK.fullmatch(part) for part in parts)
    if strong and by_folder is None:
        return True
    weak = any(ROLE_IN_NAME.fullmatch(part) for part in parts[1:])
    shorter = (one.bare[:length] for length in range(len(one.bare)))
    beside = any(part in images for part in shorter) or (strong and one.bare in images)
    return beside and (strong or weak)


def _agree(one: Words, other: Words) -> bool:
    """Whether the folders of one are among those of the other, in the same order."""
    short, long = sorted((one, other), key=len)
    rest = iter(long)
    return all(folder in rest for folder in short)


def _rest(path: Words, known: Words) -> Words:
    return tuple(part for part in path if part not in known)


def _ambiguous(one: Candidate, images: Sequence[Candidate]) -> Dropped:
    names = ", ".join(i.name for i in images[:5])
    return Dropped(
        one.name,
        f"{len(images)} images and 1 masks have the same name ({names})",
        "keep one image for each mask, rename them, or choose with --pair, such as"
        " --pair '(.+)_flair' '(.+)_seg': the part in brackets must be equal",
    )


def _left_over(lone: Sequence[Candidate], every: Sequence[Candidate]) -> Iterator[Dropped]:
    """Why each item has no partner. If only one image and one mask share a name, the message points to both."""
    count = Counter((i.keys[1], i.mask) for i in every)
    partners = {(i.keys[1], i.mask): i for i in lone if i.keys[1] and count[i.keys[1], i.mask] == 1}
    for one in lone:
        other = partners.get((one.keys[1], not one.mask))
        if other is None or (one.keys[1], one.mask) not in partners:
            why, do = ALONE[bool(one.mask)]
            yield Dropped(one.name, why if len(one.files) == 1 else why.replace("an image", "a DICOM series", 1), do)
            continue
        what, missing = ("a mask", "image") if one.mask else ("an image", "mask")
        yield Dropped(
            one.name,
            f"{what} whose {missing} of the same name is in other folders ({other.name})",
            "if they are a pair, put both into one folder, or into images/ and masks/ of one folder, or use --pair;"
            " otherwise rename one",
        )


def _cut(stem: str, *patterns: re.Pattern[str]) -> str:
    """The stem without the word that a pattern finds; empty if the pattern matches all of it."""
    found = next((m for p in patterns if (m := p.fullmatch(stem))), None)
    return stem if found is None else found["stem"] or ""
