"""The meaning of a mask's values: class numbers, 0/255, or the user's table. Nothing is guessed silently."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfedsam.data.values import IGNORED, MOST_CLASSES, whole_numbers
from pfedsam.errors import UserFault
from pfedsam.names import spelling
from pfedsam.prepare.words import some_of

Labels = NDArray[Any]  # whole numbers, (H, W, N)
Values = dict[int, int]  # number of pixels by value

LARGEST = 20  # a higher value is a grey level or an instance, not a class
WHITE = 255
MIXED = 3  # so many values between two others are no classes, if they are rare
SPECK = 10  # fewer pixels of a class number beside 255 are not a drawing
ODD = 0.2  # at most this share of a site's masks is odd; a value in more of them has a meaning
BLOCK, FLAT = 8, 8  # the side of JPEG's blocks in pixels; how far JPEG may change a block's black or white
REST = -1  # in a table: every value that the table does not name
UNLABELLED = "--ignore 255 if 255 marks pixels that nobody labelled"
SHARPEN = (
    "the mask was probably blurred by resizing: save it again from its source, resized with nearest neighbour;"
    " only if each value is meant, "
)
SAY = "say what the values mean, such as --labels 128=1,255=2, or *=1 for any value (0 stays the background)"


@dataclass(frozen=True)
class LabelRule:
    """How mask values become class numbers 0..classes and `IGNORED`.

    Attributes:
        table: the user's; None: the values are class numbers.
        white: in masks of 0 and 255, 255 is class 1.
        ignore: the value of pixels that nobody labelled; None: all pixels are labelled.
    """

    classes: int
    table: dict[int, int] | None = None
    white: bool = False
    ignore: int | None = None

    def mapping(self, values: Iterable[int], path: Path, *, blurred: bool = False) -> dict[int, int]:
        """The class of each of a mask's values. `blurred` changes the message: its values were mixed by resizing.

        Raises:
            UserFault: a value has no meaning.
        """
        values = set(values)
        if self.table is not None:
            rest = dict.fromkeys(values, self.table[REST]) if REST in self.table else {}
            known = {**rest, 0: 0, **self.table}
        else:
            known = {0: 0, WHITE: 1} if self.white else {n: n for n in range(self.classes + 1)}
        if self.ignore is not None:
            known[self.ignore] = IGNORED
        if strange := values - known.keys():
            own = ",".join(f"{n}={n}" for n in range(1, self.classes + 1))
            which = f"use {UNLABELLED}, or --labels {own},255={self.classes + 1} if it is another class"
            raise UserFault(
                expected=f"values {_listed(known)} in the mask {path}",
                came=f"also {_listed(strange)}",
                do=which if self.table is None and strange == {1 if self.white else WHITE} else SHARPEN * blurred + SAY,
            )
        return {value: known[value] for value in values}


def is_blurred(pixels: Values) -> bool:
    """Whether a mask looks like two values, 0 and a higher one, that were mixed at the edges by resizing."""
    top = max(pixels, default=0)
    between = [count for value, count in pixels.items() if LARGEST < value < top]
    return len(between) >= MIXED and max(between) < pixels[top] and sum(between) < 2 * pixels[top]


def parse_table(text: str) -> dict[str, int]:
    """`255=1,2=1` as a mapping. The left side is a value, a DICOM segment's label, or * for all other values.

    Raises:
        UserFault: the form is wrong, a class is below 0 or above 254, or a left side comes twice.
    """
    table, seen = dict[str, int](), set[str]()
    for part in text.split(","):
        left, sign, right = part.rpartition("=")
        if not sign or not left.strip() or not right.strip().isdecimal() or int(right) > MOST_CLASSES:
            raise UserFault(
                expected=f"--labels VALUE=CLASS,VALUE=CLASS with classes up to {MOST_CLASSES}",
                came=part or "nothing",
                do="write it like 255=1,2=1",
            )
        left = left.strip()
        if (key := str(int(left)) if left.isdecimal() else spelling(left)) in seen:
            raise UserFault(
                expected="each value and each name once in --labels",
                came=f"{left} twice",
                do="keep only the class that it has",
            )
        seen.add(key)
        table[left] = int(right)
    return table


def understood(
    masks: Sequence[Values],
    table: dict[int, int] | None,
    classes: int | None,
    *,
    ignore: int | None = None,
    structures: Mapping[str, int] = MappingProxyType({}),
    names: Sequence[str] = (),
) -> LabelRule:
    """The rule for a site's masks, from the values in each mask. A few odd masks do not decide it.

    Without a table, 255 is the class if nearly all masks contain 0 and 255, and no other mask contains 1.
    Otherwise the classes go up to the highest small value.

    Args:
        structures: those that the files name, with the class of each.
        names: of the masks' cases, for the message; empty: it names none.

    Raises:
        UserFault: the masks contradict each other, or `classes` or `ignore` contradicts the table or the structures.
    """
    highest = max([*(table or {}).values(), *structures.values(), 1])
    if classes is not None and classes < highest:
        raise UserFault(
            expected=f"--classes of at least {highest}" + (", for " + ", ".join(structures) if structures else ""),
            came=str(classes),
            do="raise it, or choose classes with --labels; the background does not count as a class",
        )
    if ignore is not None:
        _check_ignore(ignore, range((classes or 0) + 1) if table is None else {0, *table}, highest)
    drawn = [_drawn(mask, ignore) for mask in masks] if table is None else []
    if classes in (None, 1) and _white(drawn, names):
        return LabelRule(highest, white=highest == 1, ignore=ignore)
    return LabelRule(classes or max(_highest(drawn), highest), table, ignore=ignore)


def _check_ignore(ignore: int, own: Collection[int], highest: int) -> None:
    if ignore < 0 or ignore in own:
        raise UserFault(
            expected="--ignore with a value that is neither the background (0) nor a class",
            came=str(ignore),
            do="give the value of the pixels that nobody labelled, such as 255",
        )
    if highest >= IGNORED:
        raise UserFault(
            expected=f"classes below {IGNORED} with --ignore, because unlabelled pixels are written as {IGNORED}",
            came=str(highest),
            do="give the classes lower numbers",
        )


def _drawn(mask: Values, ignore: int | None) -> set[int]:
    """The values with which a mask is drawn, without background, unlabelled pixels, and specks beside white.

    Those of a blurred mask mean nothing. It is left out later.
    """
    if is_blurred({value: pixels for value, pixels in mask.items() if value != ignore}):
        return set()
    specks = {v for v, pixels in mask.items() if v <= LARGEST and pixels < SPECK} if WHITE in mask else set()
    return mask.keys() - specks - {0, ignore}


def _white(drawn: Sequence[set[int]], names: Sequence[str]) -> bool:
    """Whether 255 is the class.

    Raises:
        UserFault: neither masks of 0 and 255 nor other masks are rare, or one of the others contains 1.
    """
    others = [i for i, values in enumerate(drawn) if values and values != {WHITE}]
    white = [i for i, values in enumerate(drawn) if values == {WHITE}]
    few = ODD * (len(white) + len(others))
    if not white or (others and len(white) <= few):
        return False
    if len(others) > few or any(1 in drawn[i] for i in others):
        strange = set().union(*(drawn[i] for i in others))
        one, other = (f" (such as {names[those[0]]})" if names else "" for those in (white, others))
        raise UserFault(
            expected="values that mean the same in all masks",
            came=f"{len(white)} mask(s) of 0 and 255{one}, and {len(others)} with {_listed(strange)}{other}",
            do=_meanings(strange),
        )
    return True


def _meanings(values: set[int]) -> str:
    """The user's choices if some masks contain 0 and 255 and others contain these values."""
    every = sorted({*values, WHITE})
    one = ",".join(f"{value}=1" for value in every)
    ways = [f"--labels {one} if all are one class" if len(every) <= 8 else "--labels '*=1' if all are one class"]
    if min(values) <= LARGEST:
        ways = [UNLABELLED, *ways]
    if len(every) <= 8 and values != {1}:
        apart = ",".join(f"{value}={i}" for i, value in enumerate(every, 1))
        ways.append(f"--labels {apart} if each is a separate class")
    ways.append("or --labels 255=1 if only 255 is the class (masks with other values are then left out)")
    return "say " + ", ".join(ways)


def _highest(drawn: Sequence[set[int]]) -> int:
    """The highest class number. A number beyond a gap does not count if only a few masks contain it."""
    held = [value for values in drawn for value in values if value <= LARGEST]
    some = sum(map(bool, drawn))
    highest = 1
    for value in sorted(set(held)):
        if value <= highest + 1 or held.count(value) > ODD * some:
            highest = value
    return highest


def label_numbers(values: NDArray[Any], path: Path) -> Labels:
    """A label map (H, W, N) as whole numbers. Colours are allowed if all three channels are equal.

    Raises:
        UserFault: colours, fractions, NaN, or a negative value.
    """
    if values.ndim == 4:
        if not (values == values[..., :1]).all():
            raise UserFault(
                expected=f"class numbers in the mask {path}",
                came="colours",
                do="save a single channel of class numbers",
            )
        values = values[..., 0]
    numbers = whole_numbers(values)
    if numbers is None or (numbers.size and numbers.min() < 0):
        raise UserFault(
            expected=f"whole numbers from 0 in the mask {path}",
            came="fractions, NaN or negative values",
            do="write class numbers, 0 for the background",
        )
    return np.asarray(numbers, dtype=np.int32) if numbers.dtype.kind == "f" else numbers


def halved(values: Labels, path: Path) -> Labels:
    """A black and white JPEG cut at half, as 0 and 255, because compression blurs it. An empty one is unchanged.

    Raises:
        UserFault: it has more than black and white, or is darker: it contains class numbers or grey levels.
    """
    grey = (values > 63) & (values < 192)
    if values.any() and (values.max() < 192 or grey.mean() > 0.05 or _has_grey_areas(values)):
        raise UserFault(
            expected=f"only black and white in the JPEG mask {path}",
            came="class numbers or grey levels",
            do="save the mask as PNG from its source: JPEG blurs class numbers",
        )
    return np.asarray((values >= 128) * WHITE, dtype=np.int32)


def _has_grey_areas(values: Labels) -> bool:
    """Whether one of JPEG's blocks is neither black nor white throughout, nor blurred by an edge."""
    height, width = (side - side % BLOCK for side in values.shape[:2])
    blocks = values[:height, :width, 0].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    low, high = blocks.min((1, 3)), blocks.max((1, 3))
    return bool(((high - low <= 2) & (low > FLAT) & (high < WHITE - FLAT)).any())


def counted(labels: Labels) -> Values:
    """The values and their counts, slice by slice. Sorting a whole volume would take seconds and gigabytes."""
    pixels = Counter[int]()
    for k in range(labels.shape[2]):
        values, counts = np.unique(labels[:, :, k], return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return dict(pixels)


def translated(labels: Labels, mapping: dict[int, int]) -> NDArray[np.uint8]:
    """Class numbers for a mask's own values, (H, W, N)."""
    known = np.array(sorted(mapping))
    classes = np.array([mapping[v] for v in known.tolist()], dtype=np.uint8)
    out = np.empty(labels.shape, np.uint8)
    for k in range(labels.shape[2]):
        out[:, :, k] = classes[np.searchsorted(known, labels[:, :, k])]
    return out


def _listed(values: Iterable[int]) -> str:
    return some_of([str(value) for value in sorted(values)], 8)
