"""Takes a DICOM image's numbers out of the bits that are allocated for them (BitsStored, HighBit)."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import JPEG2000TransferSyntaxes

from pfedsam.errors import UserFault

OVERLAYS = range(0x6000, 0x6020, 2)  # the groups that may describe one
BIT, DATA = 0x0102, 0x3000  # its place among the bits of the pixels, or its own data apart from them


def own_bits(file: Path, data: Any, decoded: NDArray[Any], padding: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """A frame's numbers, from whole numbers (H, W) with all their bits as decoded. The type stays.

    Other bits may be 0, repeat the sign or hold an overlay. JPEG 2000 states the number of its bits itself.

    Args:
        padding: where the numbers may be any.

    Raises:
        UserFault: another bit is set, so BitsStored or HighBit is wrong; or HighBit cannot be.
    """
    every, stored = 8 * decoded.dtype.itemsize, int(data.get("BitsStored") or 0)
    if not 0 < stored < every or data.file_meta.TransferSyntaxUID in JPEG2000TransferSyntaxes:
        return decoded
    high = int(data.get("HighBit", stored - 1))
    if not stored - 1 <= high < every:
        raise UserFault(
            expected=f"a HighBit of {stored - 1} to {every - 1} in {file}, whose BitsStored is {stored}",
            came=str(high),
            do=f"correct its header: HighBit is {stored - 1} unless the numbers are in the upper bits",
        )
    low = high - stored + 1
    numbers = np.asarray((decoded << (every - 1 - high)) >> (every - stored))
    others = (2**every - 1) & ~((2**stored - 1) << low) & ~_overlays(data)
    if not (_fits(decoded, np.zeros_like(decoded), others, padding) or _fits(decoded, numbers << low, others, padding)):
        raise UserFault(
            expected=f"numbers in the bits {low} to {high} of {file}, as BitsStored and HighBit say",
            came="other bits that are set too, and no overlay in them",
            do=f"if a program wrote numbers of {every} bits under an older header, set BitsStored to {every} and"
            f" HighBit to {every - 1} in all files of the series; otherwise export the series again",
        )
    return numbers


def _fits(decoded: NDArray[Any], other: NDArray[Any], bits: int, padding: NDArray[np.bool_] | None) -> bool:
    """Whether two arrays agree in these bits, except in the padding."""
    kind = f"u{decoded.dtype.itemsize}"
    differ = (decoded ^ other).view(kind) & np.array(bits, kind)
    return not (differ if padding is None else differ[~padding]).any()


def _overlays(data: Any) -> int:
    """The bits of the pixels that hold an overlay."""
    places = [data.get((group, BIT)) for group in OVERLAYS if (group, DATA) not in data]
    return sum({1 << int(place.value) for place in places if place is not None})
