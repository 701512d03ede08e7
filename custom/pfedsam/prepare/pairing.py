"""Finds the image of each mask by folder and file names. Ambiguous cases are reported, never guessed."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from pfedsam.names import spelling
from pfedsam.prepare.found import ALONE, ELSEWHERE, Dropped, of_series
from pfedsam.prepare.words import (
    IMAGE,
    MASK,
    MASK_END,
    SPLIT,
    WEAK,
    Words,
    agree,
    besides,
    beyond,
    cut,
    differ,
    keys_of_image,
    keys_of_mask,
    other_numbers,
    place,
    role,
    without,
    words,
)

BIDS = re.compile("derivatives|anat|dwi|perf|func|fmap|pet")


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
    def path(self) -> Path:
        """Its file, or the folder of its series."""
        return self.files[0] if len(self.files) == 1 else self.files[0].parent

    @cached_property
    def given(self) -> Path | None:
        """The FOLDER that the user gave. If its name says images or masks, the one above. None: it has no files."""
        if not self.files:
            return None
        root = (self.path, *self.path.parents)[len(Path(self.name).parts)]
        return root if role(root.name) is None else root.parent

    @cached_property
    def place(self) -> Words:
        """The folders that say more than images or masks."""
        return place(self.folders)

    @cached_property
    def near(self) -> Words:
        """The same without those by which BIDS sorts files."""
        return without(self.place, BIDS)

    @cached_property
    def wide(self) -> Words:
        """The same without what folders such as `train_masks` say."""
        return without((folder for folder in self.folders if role(folder) is None), BIDS)

    @cached_property
    def bare(self) -> Words:
        """The parts of its name that say neither image nor mask."""
        return without(words(self.stem), IMAGE, MASK)

    @cached_property
    def keys(self) -> tuple[Words, ...]:
        """The names for pairing, one per level: complete, without the end, without such words, without modalities."""
        return keys_of_mask(self.stem) if self.mask else keys_of_image(self.stem, self.folders)


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

    A mask that fits two images is left out. So are these images, if they are in its folder. If the user gave several
    folders, a mask stays in its own, unless that has no image.
    """
    every = _told(list(candidates))
    shown = _shown(every)
    answer, torn = Claimed([i for i in every if not i.mask]), dict[Candidate, list[Candidate]]()
    whole = _Index(every)
    homes = {i.given for i in answer.images}
    own = {home: _Index([i for i in every if i.given == home]) for home in homes} if len(homes) > 1 else {}
    lone, by_folder = list[Candidate](), list[tuple[Candidate, Claim]]()
    for mask in (i for i in every if i.mask):
        fits, claim, near = own.get(mask.given, whole).fitting(mask)
        if len(fits) == 1 and claim.by == "folder":
            by_folder.append((fits[0], claim))
        elif len(fits) == 1:
            answer.masks[fits[0]].append(claim)
        elif fits:
            answer.dropped.append(_ambiguous(mask, fits, shown))
            torn.update(dict.fromkeys(fits, fits) if near or len({i.place for i in fits}) == 1 else {})
        else:
            lone.append(mask)
    for image, fits in torn.items():
        parts = [image, *(claim.mask for claim in answer.masks.pop(image, []))]
        answer.dropped.extend(_ambiguous(one, fits, shown) for one in parts)
    named = set(answer.masks)
    for image, claim in by_folder:  # a mask of the same name settles the doubt about any other
        if image in named or image in torn:
            lone.append(claim.mask)
        else:
            answer.masks[image].append(claim)
    lone += [i for i in every if not i.mask and i not in answer.masks and i not in torn]
    answer.dropped.extend(_left_over(lone, every, shown))
    return answer


class _Index:
    """Images by the names under which they can be found."""

    def __init__(self, every: Sequence[Candidate]) -> None:
        self.here: dict[tuple[int, Words, Words], list[Candidate]] = defaultdict(list)
        self.anywhere: dict[tuple[int, Words], list[Candidate]] = defaultdict(list)
        self.paths: dict[Words, list[Candidate]] = defaultdict(list)
        self.places: dict[Words, list[Candidate]] = defaultdict(list)
        folders = {kind: {f for one in every if bool(one.mask) is kind for f in one.near} for kind in (True, False)}
        self.strict = any(folder in folders[not one.mask] for one in every for folder in besides(one.folders))
        for image in (one for one in every if not one.mask):
            self.places[image.place].append(image)
            for level, key in enumerate(image.keys):
                self.here[level, image.place, key].append(image)
                self.anywhere[level, key].append(image)
            for path in {(*image.place, *name) for name in (words(image.stem), *image.keys[2:])}:
                self.paths[path].append(image)

    def fitting(self, mask: Candidate) -> tuple[list[Candidate], Claim, bool]:
        """The images that a mask may belong to, the claim, and whether they are in its folders.

        An image of another modality or split than the mask's path says is none of them.
        """
        fits, claim, near = self._by_name(mask)
        stem, path = [mask.stem], [*mask.place, mask.stem]
        return [i for i in fits if not (differ([i.stem], stem) or differ([*i.place, i.stem], path))], claim, near

    def _same_folders(self, image: Candidate, mask: Candidate) -> bool:
        """Whether the folders of one are among those of the other, apart from the words for images and masks.

        What is left of `raw_images` and `lesion_masks` may differ. It has to agree if there are folders of both kinds
        with one such word, as `P1_images` and `P1_masks`, or if the words have different numbers.
        """
        return agree(image.near, mask.near) or (
            not self.strict and agree(image.wide, mask.wide) and not other_numbers(image.near, mask.near)
        )

    def _by_name(self, mask: Candidate) -> tuple[list[Candidate], Claim, bool]:
        home = mask.place
        for level, key in enumerate(mask.keys):
            if fits := self.here.get((level, home, key)):
                return fits, Claim(mask), True
        for level, key in enumerate(mask.keys):
            near = self.anywhere.get((level, key), [])
            if fits := [i for i in near if self._same_folders(i, mask) and (key or (i.wide and mask.wide))]:
                return fits, Claim(mask, beyond(home, fits[0].place)), False
        path, bare = (*home, *mask.bare), mask.bare
        for length in range(len(path) - 1, 0, -1):
            if fits := self.paths.get(path[:length]):
                return fits, Claim(mask, path[length:]), True
        for length in range(len(bare) - 1, 0, -1):
            near = self.anywhere.get((2, bare[:length])) or self.anywhere.get((3, bare[:length]), [])
            if fits := [i for i in near if self._same_folders(i, mask)]:
                return fits, Claim(mask, (*beyond(home, fits[0].place), *bare[length:])), False
        only = self.places.get(home, []) if without(home, SPLIT) and role_of(mask.folders) else []
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
    claims = {(f, short) for f, all_ in stems.items() for s in all_ if (short := cut(s, MASK_END)) != s}
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
    weak = any(WEAK.fullmatch(part) for part in parts[1:])
    shorter = (one.bare[:length] for length in range(len(one.bare)))
    beside = any(part in images for part in shorter) or (strong and one.bare in images)
    return beside and (strong or weak)


def _shown(every: Sequence[Candidate]) -> Mapping[Candidate, str]:
    """The names in messages. If the user gave several folders, these show which."""
    given = {str(one.given.absolute()) for one in every if one.given}
    if len(given) < 2:
        return {one: one.name for one in every}
    return {one: os.path.relpath(one.path.absolute(), os.path.commonpath(given)) for one in every}


def _ambiguous(one: Candidate, images: Sequence[Candidate], shown: Mapping[Candidate, str]) -> Dropped:
    names = ", ".join(shown[i] for i in images[:5])
    return Dropped(
        one.name,
        f"{len(images)} images and 1 masks have the same name ({names})",
        "keep one image for each mask, rename them, or choose with --pair, such as"
        " --pair '(.+)_flair' '(.+)_seg': the part in brackets must be equal",
    )


def _left_over(lone: list[Candidate], every: list[Candidate], shown: Mapping[Candidate, str]) -> Iterator[Dropped]:
    """Why each item has no partner. If only one image and one mask share a name, the message points to both."""
    count, same = Counter((i.keys[1], i.mask) for i in every), Counter(i.name for i in every)
    partners = {(i.keys[1], i.mask): i for i in lone if i.keys[1] and count[i.keys[1], i.mask] == 1}
    for one in lone:
        other = partners.get((one.keys[1], not one.mask))
        why, do = ALONE[bool(one.mask)]
        why = why if len(one.files) == 1 else why.replace("an image", "a DICOM series", 1)
        if other is not None and (one.keys[1], one.mask) in partners:
            what, missing = ("a mask", "image") if one.mask else ("an image", "mask")
            why, do = f"{what} whose {missing} of the same name is in other folders ({shown[other]})", ELSEWHERE
        name = one.name if same[one.name] == 1 or len(one.files) < 2 else of_series(one.name, one.files[0])
        yield Dropped(name, why if shown[one] == one.name else f"{why}: {shown[one]}", do)
