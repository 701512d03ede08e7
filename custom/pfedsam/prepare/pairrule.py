"""Pairs by the user's --pair: two regular expressions whose first groups are equal."""

from collections.abc import Sequence

from pfedsam.names import spelling
from pfedsam.prepare.found import Dropped
from pfedsam.prepare.pairing import Candidate, Claim, Claimed
from pfedsam.prepare.words import pattern_of, words


def pairs_by_pattern(candidates: Sequence[Candidate], image: str, mask: str) -> Claimed:
    """The pairs that --pair finds: an image and its masks have the same first group.

    A second group of the mask's pattern names the structure. A file that fits the mask's pattern is never an image.

    Raises:
        UserFault: a pattern is not a regular expression, or has no group.
    """
    group, example = "for the part that an image and its mask share", ", such as 'volume-(.+)' 'segmentation-(.+)'"
    patterns = [pattern_of(text, "--pair", group, example) for text in (image, mask)]
    answer, images = Claimed(), dict[str, list[Candidate]]()
    masks = [(one, hit) for one in candidates if (hit := patterns[1].search(one.name))]
    taken = {one for one, _ in masks}
    for one in candidates:
        if one not in taken and (hit := patterns[0].search(one.name)):
            images.setdefault(hit[1], []).append(one)
            answer.images.append(one)
            taken.add(one)
    used = set[str]()
    for one, hit in masks:
        fits = images.get(hit[1], [])
        if len(fits) == 1:
            extra = words(spelling(hit[2])) if patterns[1].groups > 1 and hit[2] else ()
            answer.masks[fits[0]].append(Claim(one, extra, by="user"))
            used.add(hit[1])
        else:
            answer.dropped.append(_unfit(one, hit[1], len(fits)))
    unused = [(one, key, fits) for key, fits in images.items() if key not in used for one in fits]
    answer.dropped.extend(_unfit(one, key, len(fits) if len(fits) > 1 else 0) for one, key, fits in unused)
    why, do = "the name fits neither pattern of --pair", "nothing, if it is not needed; otherwise widen a pattern"
    answer.dropped.extend(Dropped(one.name, why, do) for one in candidates if one not in taken)
    return answer


def _unfit(one: Candidate, key: str, images: int) -> Dropped:
    if images:
        return Dropped(one.name, f"--pair finds {images} images with {key!r}", "narrow the first pattern")
    return Dropped(one.name, f"--pair finds no partner with {key!r}", "add the partner, or widen the patterns")
