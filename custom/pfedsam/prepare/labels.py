"""What a mask's values mean: class numbers, 0/255, or as the user says; nothing is guessed silently."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfedsam.errors import UserFault

Labels = NDArray[Any]  # whole numbers, (H, W, N)

LARGEST = 20  # a higher value is taken for a grey level or an instance, not for a class
LOSSY = (".jpg", ".jpeg")
REST = -1  # in a table: every value that it does not name
SAY = "say what the values mean, such as --labels 128=1,255=2, or *=1 for any value (0 stays the background)"


@dataclass(frozen=True)
class Rule:
    """How values become class numbers 0..classes: by the user's table, or as they are (0/255 of one class as 0/1)."""

    classes: int
    table: dict[int, int] | None = None

    def mapping(self, values: set[int], path: Path) -> dict[int, int]:
        """The class of each of a mask's values.

        Raises:
            UserFault: a value without a meaning.
        """
        if self.table is not None:
            rest = dict.fromkeys(values, self.table[REST]) if REST in self.table else {}
            known = {**rest, 0: 0, **self.table}
        elif self.classes == 1 and values <= {0, 255}:
            known = {0: 0, 255: 1}
        else:
            known = {n: n for n in range(self.classes + 1)}
        if values - known.keys():
            raise UserFault(
                expected=f"values {_listed(known)} in the mask {path}",
                came=f"also {_listed(values - known.keys())}",
                do=SAY,
            )
        return {value: known[value] for value in values}


def parse_table(text: str) -> dict[str, int]:
    """`255=1,2=1` as a mapping; the left side is a value, a DICOM segment's label, or * for all other values.

    Raises:
        UserFault: another form, or a class below 0 or above 255.
    """
    table = {}
    for part in text.split(","):
        left, sign, right = part.rpartition("=")
        if not sign or not left.strip() or not right.strip().isdigit() or int(right) > 255:
            raise UserFault(expected="--labels VALUE=CLASS,VALUE=CLASS", came=part, do="write such as 255=1,2=1")
        table[left.strip()] = int(right)
    return table


def understood(values: Iterable[set[int]], table: dict[int, int] | None, classes: int | None) -> Rule:
    """The rule for a site's masks, from the values that each of them holds.

    Without a table the classes go up to the highest small value that any mask holds.

    Raises:
        UserFault: `classes` is below 1, or less than the table's highest class.
    """
    if classes is not None and classes < 1:
        raise UserFault(
            expected="--classes of 1 or more", came=str(classes), do="leave the background out of the count"
        )
    if table is not None:
        highest = max(table.values(), default=0)
        if classes is not None and classes < highest:
            raise UserFault(
                expected=f"--classes of at least {highest}, the highest in --labels", came=str(classes), do="raise it"
            )
        return Rule(max(1, classes or highest), table)
    small = max((v for one in values for v in one if v <= LARGEST), default=0)
    return Rule(classes or max(1, small))


def whole(values: NDArray[Any], path: Path) -> Labels:
    """A label map (H, W, N) as whole numbers; colours are taken where all three channels are one.

    Raises:
        UserFault: colours, fractions, NaN, or a negative value.
    """
    if values.ndim == 4:
        if not (values == values[..., :1]).all():
            raise UserFault(
                expected=f"class numbers in the mask {path}", came="colours", do="save one channel of numbers"
            )
        values = values[..., 0]
    numbers = np.rint(values) if values.dtype.kind == "f" else values
    if not np.isfinite(numbers).all() or not np.array_equal(numbers, values) or (values.size and values.min() < 0):
        raise UserFault(
            expected=f"whole numbers from 0 in the mask {path}",
            came="fractions, NaN or negative values",
            do="write class numbers, 0 for the background",
        )
    return np.asarray(numbers, dtype=np.int32) if numbers.dtype.kind == "f" else numbers


def halved(values: Labels, path: Path) -> Labels:
    """A black and white JPEG cut at half, as 0 and 255: its compression has blurred them; class numbers as they are.

    Raises:
        UserFault: more than a twentieth of it is grey, so that it is more than two levels.
    """
    if values.max() <= LARGEST:
        return values
    if ((values > 63) & (values < 192)).mean() > 0.05:
        raise UserFault(
            expected=f"black and white alone in the JPEG mask {path}",
            came="grey levels",
            do="save the mask as PNG from its source: JPEG blurs class numbers",
        )
    return np.asarray((values >= 128) * 255, dtype=np.int32)


def distinct(labels: Labels) -> set[int]:
    """The values that occur, gone through slice by slice: a sort of a whole volume takes seconds and gigabytes."""
    return {value for k in range(labels.shape[2]) for value in np.unique(labels[:, :, k]).tolist()}


def translated(labels: Labels, mapping: dict[int, int]) -> NDArray[np.uint8]:
    """Class numbers instead of a mask's own values, (H, W, N)."""
    known = np.array(sorted(mapping))
    classes = np.array([mapping[v] for v in known.tolist()], dtype=np.uint8)
    out = np.empty(labels.shape, np.uint8)
    for k in range(labels.shape[2]):
        out[:, :, k] = classes[np.searchsorted(known, labels[:, :, k])]
    return out


def _listed(values: Iterable[int]) -> str:
    numbers = sorted(values)
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
