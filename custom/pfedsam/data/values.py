"""Rules for the numbers stored in a file: whole in a mask, no drawing in the transparency, one value for unlabelled."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfedsam.errors import UserFault

IGNORED = 255  # in a mask from `prepare` or `read_mask`: a pixel that nobody labelled
MOST_CLASSES = IGNORED - 1
BYTES = 2**31  # most bytes that the voxels of one volume take in memory, at 4 each or more
CLOSE = 1e-3  # a format's slope may move a class this far from a whole number


def whole_numbers(values: NDArray[Any]) -> NDArray[Any] | None:
    """The values rounded to whole numbers; None if one differs by more than `CLOSE`, or is not finite."""
    if values.dtype.kind != "f":
        return values
    numbers = np.rint(values)
    close = np.isfinite(values).all() and (np.abs(values - numbers) <= CLOSE).all()
    return numbers if close else None


def require_room(shape: Sequence[int], each: int, where: str) -> None:
    """Refuse a volume that would fill the memory, by what its header says. Nothing of it has been read then.

    Args:
        shape: the number of voxels by axis, and of their channels.
        each: bytes of a value as stored. In memory most get 4.
        where: its file, for the message.

    Raises:
        UserFault: it would.
    """
    if (size := prod(shape) * max(each, 4)) > BYTES:
        raise UserFault(
            expected=f"a volume of at most {BYTES // 10**6} million bytes in {where}",
            came=f"{' x '.join(map(str, shape))} voxels of {size // 10**6} million bytes by its header",
            do="cut it into parts; if it is smaller, its header is damaged: export it again",
        )


def require_finite(values: NDArray[Any], name: str) -> None:
    """Refuse an image `name` with values that are not finite.

    Raises:
        UserFault: some are NaN or infinite.
    """
    if bad := int((~np.isfinite(values)).sum()) if values.dtype.kind == "f" else 0:
        raise UserFault(
            expected=f"finite values in {name}",
            came=f"NaN or infinite in {bad} of {values.size} values",
            do="export it again, or leave it out",
        )


def opaque(values: NDArray[Any], path: Path, *, labels: bool) -> NDArray[Any]:
    """Grey (...) or colours (..., 3), from values (..., 2) or (..., 4) whose last channel is transparency.

    Raises:
        UserFault: the transparency contains a drawing that the colours do not: the colours are equal everywhere, or a
            mask's transparent pixels are not background.
    """
    colours, alpha = values[..., :-1], values[..., -1]
    if alpha.min() < alpha.max():
        uniform = (colours == colours.reshape(-1, colours.shape[-1])[0]).all()
        hidden = labels and colours[alpha < np.iinfo(alpha.dtype).max].any()
        if uniform or hidden:
            raise UserFault(
                expected=f"the {'mask' if labels else 'image'} in the colours of {path}",
                came="a drawing in its transparency (alpha channel)",
                do=f"save the {'mask' if labels else 'image'} without transparency"
                + (", as one channel of class numbers" if labels else ""),
            )
    return colours[..., 0] if colours.shape[-1] == 1 else colours
