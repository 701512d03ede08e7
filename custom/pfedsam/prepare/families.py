"""Combines the masks of an image into one annotation: one mask, joined parts, or one file per structure."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pfedsam.names import spelling
from pfedsam.prepare.found import Dropped
from pfedsam.prepare.pairing import Candidate, Claim, Claimed, role_of
from pfedsam.prepare.words import COPIES, LONG_READERS, MASK, READERS, Words, words

READER = re.compile(LONG_READERS)
NO_STRUCTURE = re.compile(rf"{READERS}|{COPIES}|\d+|.")
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Match:
    """An image with all its masks. `names` are the masks' structures; empty if the masks contain class numbers."""

    image: Candidate
    masks: tuple[Candidate, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Matches:
    """Images with their masks, what is left out, the structures in the order of their names, and remarks."""

    pairs: list[Match]
    dropped: list[Dropped]
    structures: list[str]
    notes: list[str]


def taken_whole(found: Claimed, wanted: Collection[str] = ()) -> Matches:
    """Each image with all of its masks, or left out together with them.

    Numbered masks are parts of one drawing. Words that distinguish the masks of several images are structures,
    and each is a class. Other masks may come from several readers. A site has either structures or class
    numbers, whichever most of its images have.

    Args:
        wanted: the structures that the user names.
    """
    extras = {image: _extras(claims) for image, claims in found.masks.items()}
    known = _known(found.masks, extras, wanted)
    numbered = {image.place + image.bare[:-1] for image in found.images if NUMBER.fullmatch("".join(image.bare[-1:]))}
    lone = {image: _word(image, claims) for image, claims in found.masks.items() if extras[image][0] not in known}
    usual = _usual(lone)
    numbers, structures, dropped = list[Match](), list[Match](), [*found.dropped, *_strange(found.masks, lone, usual)]
    for image, claims in found.masks.items():
        masks, names = tuple(claim.mask for claim in claims), extras[image]
        if all(name in known for name in names) and len(set(names)) == len(names):
            structures.append(Match(image, masks, tuple(known[name] for name in names)))
        elif lone.get(image, ()) not in ((), usual):
            continue
        elif _one_drawing(image, claims, names) and not (
            any(map(_is_number, names)) and image.place + image.bare in numbered
        ):
            numbers.append(Match(image, masks))
        else:
            dropped += _several(image, masks)
    by_name = len(structures) > len(numbers)
    kept, other = (structures, numbers) if by_name else (numbers, structures)
    dropped += [d for match in other for d in _other_kind(match, by_name)]
    shown = list(known.values()) if by_name else []
    return Matches(kept, dropped, shown, list(_remarks(kept, shown)))


def _word(image: Candidate, claims: Sequence[Claim]) -> Words:
    """The words of an image's only mask that its image lacks. Empty: none, or its folder or the user says whose it is.

    A number alone is no word: `_one_drawing` judges it.
    """
    claim = claims[0]
    if len(claims) > 1 or claim.by != "name" or _is_number(claim.extra):
        return ()
    own = {word for name in (*image.place, image.stem) for word in words(name)}
    return tuple(part for part in claim.extra if not own.issuperset(words(part)))


def _usual(lone: Mapping[Candidate, Words]) -> Words:
    """The words that most single masks have. Empty: most have none, or no words are in most."""
    (word, count), *_ = [*Counter(lone.values()).most_common(1), ((), 0)]
    return word if 2 * count > len(lone) else ()


def _strange(
    masks: Mapping[Candidate, list[Claim]], lone: Mapping[Candidate, Words], usual: Words
) -> Iterator[Dropped]:
    """Images whose only mask has words that most lack, with that mask: it may be a copy, or show something else."""
    every = list(dict.fromkeys(map("_".join, lone.values())))
    most = repr("_".join(usual)) if usual else "no such word"
    do = "name the mask like its image if it is drawn on it; otherwise remove it; or use --pair"
    if all(every):
        one = ",".join(f"{word}=1" for word in every[:5])
        several = ",".join(f"{word}={i}" for i, word in enumerate(every[:5], 1))
        do = f"use --labels {one} if all mean one class, or --labels {several} if the words are structures; else {do}"
    for image, word in lone.items():
        if word and word != usual:
            mask = masks[image][0].mask
            why = f"{'_'.join(word)!r} in the path of its only mask, while most masks have {most}"
            yield from (Dropped(one.name, f"{why} ({image.name}, {mask.name})", do) for one in (image, mask))


def _extras(claims: Sequence[Claim]) -> list[Words]:
    """The words that distinguish an image's masks. Folders that contain all of them do not count."""
    extras = [claim.extra for claim in claims]
    shared = set.intersection(*map(set, extras))
    apart = [tuple(part for part in extra if part not in shared) for extra in extras]
    return apart if len(set(apart)) == len(claims) > 1 else extras


def _known(
    masks: Mapping[Candidate, list[Claim]], extras: Mapping[Candidate, list[Words]], wanted: Collection[str]
) -> dict[Words, str]:
    """Structures and their names: words that distinguish masks in two or more images, and those the user names.

    What a group of the user's pattern finds is always a structure, also a number. Numbers come first, by size.
    """
    every_claim = [
        (name, claim, len(names) > 1)
        for image, names in extras.items()
        for name, claim in zip(names, masks[image], strict=True)
    ]
    count = Counter(
        name
        for name, claim, several in every_claim
        if several and _may_be_structure(name) and not (claim.by == "folder" and any(map(str.isdigit, "".join(name))))
    )
    known = {name for name, images in count.items() if images > 1}
    known |= {name for name, claim, _ in every_claim if claim.by == "user" and name}
    said = {words(spelling(name)): name for name in wanted}
    every = {name for names in extras.values() for name in names}
    return {name: said.get(name, "_".join(name)) for name in sorted((known | said.keys()) & every, key=_by_size)}


def _by_size(name: Words) -> tuple[bool, int, Words]:
    return (False, int(name[0]), name) if _is_number(name) else (True, 0, name)


def _may_be_structure(name: Words) -> bool:
    return not (any(READER.fullmatch(part) for part in name) or all(NO_STRUCTURE.fullmatch(part) for part in name))


def _is_number(name: Words) -> bool:
    return len(name) == 1 and NUMBER.fullmatch(name[0]) is not None


def _one_drawing(image: Candidate, claims: Sequence[Claim], names: Sequence[Words]) -> bool:
    """Whether the masks are one annotation: a single mask, numbered parts, or the masks in a folder named as the image.

    A number that does not follow the word for mask may be the number of another slice.
    """
    masks = [claim.mask for claim in claims]
    if any(claim.by == "folder" for claim in claims):
        readers = any(READER.fullmatch(part) for name in names for part in name)
        return image.place[-1:] == (image.stem,) and not readers
    if len(claims) == 1:
        return not _is_number(names[0]) or _is_part(masks[0], by_folder=False)
    if all(claim.by == "user" and not claim.extra for claim in claims):
        return True
    parts = [mask for mask, name in zip(masks, names, strict=True) if name]
    numbers = len(set(names)) == len(names) and all(not name or _is_number(name) for name in names)
    return numbers and all(_is_part(mask, by_folder=True) for mask in parts)


def _is_part(mask: Candidate, *, by_folder: bool) -> bool:
    """Whether a mask's name ends with a number after the word for mask. A folder of masks counts as that word."""
    parts = words(mask.stem)
    by_word = len(parts) > 1 and NUMBER.fullmatch(parts[-1]) is not None and MASK.fullmatch(parts[-2]) is not None
    return by_word or (by_folder and role_of(mask.folders) is True and not any(MASK.fullmatch(p) for p in parts))


def _several(image: Candidate, masks: Sequence[Candidate]) -> list[Dropped]:
    if len(masks) == 1:
        why = f"the number in the mask's name may belong to another image ({image.name}, {masks[0].name})"
    else:
        some = ", ".join(mask.name for mask in masks[:5])
        why = f"1 images and {len(masks)} masks have the same name ({image.name}; {some})"
    do = (
        "keep only the mask to learn from; if the masks are parts of one drawing, number them (_mask_1, _mask_2);"
        " or use --pair to say which files belong together"
    )
    return [Dropped(one.name, why, do) for one in (image, *masks)]


def _other_kind(match: Match, by_name: bool) -> list[Dropped]:
    kinds = ("a mask of class numbers", "one mask per structure")
    why = f"{kinds[not by_name]}, while most images of this site have {kinds[by_name]} ({match.image.name})"
    do = "export all masks of the site in the same way, or prepare these images as a separate folder"
    return [Dropped(one.name, why, do) for one in (match.image, *match.masks)]


def _remarks(pairs: Sequence[Match], structures: Sequence[str]) -> Iterator[str]:
    if joined := [match for match in pairs if len(match.masks) > 1 and not match.names]:
        some = ", ".join(mask.name for mask in joined[0].masks[:3])
        yield (
            f"{len(joined)} image(s) have several masks, which were joined into one (such as {joined[0].image.name}:"
            f" {some}). The names do not show if these are parts of one drawing. If several readers drew them, keep"
            " one mask for each image and prepare again."
        )
    for name in structures:
        if lacking := [match.image.name for match in pairs if name not in match.names]:
            yield (
                f"{len(lacking)} image(s) have no mask file for {name} (such as {lacking[0]}). They count as images"
                " without it. If it was never drawn there, remove these images and prepare again."
            )
