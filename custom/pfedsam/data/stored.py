"""The meaning of the numbers stored in a DICOM file: intensities, colours, or a mask's class numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import JPEGExtended12Bit

from pfedsam.data.bits import own_bits
from pfedsam.data.headers import frames, group
from pfedsam.errors import UserFault

COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # pydicom turns these into RGB


@dataclass(frozen=True)
class Frame:
    """One frame's values.

    Attributes:
        values: (H, W), or (H, W, 3) with 8-bit colours. Bright is high.
        mirror: the sum of a value and of what the file states for it, where 0 means white; otherwise None.
        padding: (H, W), true where the scanner measured nothing; None: everywhere it did.
    """

    values: NDArray[Any]
    mirror: float | None = None
    padding: NDArray[np.bool_] | None = None


def intensities(file: Path, data: Any) -> list[Frame]:
    """A file's frames. `comparable` makes those of a series comparable.

    Whole numbers are as stored or from the file's table. If the file or a frame rescales, the result is float32.

    Raises:
        UserFault: the compression has no plugin, colours have more than 8 bits, or bits are set beyond BitsStored.
        Exception: nearly any, if the file is damaged; see `readable`.
    """
    _check_plugin(file, data)
    check_colours(file, data)
    decoded = _decoded(data)
    if decoded.ndim == 4:
        return [Frame(one) for one in np.asarray(decoded, dtype=np.uint8)]
    if data.PhotometricInterpretation == "PALETTE COLOR":
        stored = np.stack([own_bits(file, data, one) for one in decoded])
        return [Frame(one) for one in eight_bit(file, np.asarray(apply_color_lut(stored, data)))]
    numbers = [own_bits(file, data, one, _padding(data, one)) for one in decoded]
    return [_rescaled(own, data, i, _padding(data, decoded[i], own)) for i, own in enumerate(numbers)]


def comparable(series: Sequence[Frame]) -> list[NDArray[Any]]:
    """The values of a series' frames. One tissue has one value in all of them, and padding has the lowest real one."""
    mirror = min((one.mirror for one in series if one.mirror is not None), default=0)
    values = [_mirrored_at(mirror, one) for one in series]
    if all(one.padding is None for one in series):
        return values
    pairs = [(found, one.padding) for found, one in zip(values, series, strict=True)]
    real = (found if padding is None else found[~padding] for found, padding in pairs)
    lowest = min((found.min() for found in real if found.size), default=None)
    if lowest is None:
        return values
    return [found if padding is None else np.where(padding, lowest, found) for found, padding in pairs]


def class_numbers(file: Path, data: Any) -> list[NDArray[Any]]:
    """A mask's stored numbers, one array per frame. Display rules (MONOCHROME1, a palette) do not change them.

    Raises:
        UserFault: the compression has no plugin, the file rescales the numbers, or bits are set beyond BitsStored.
        Exception: nearly any, if the file is damaged; see `readable`.
    """
    _check_plugin(file, data)
    rescaled = any(_rescaling(data, i) != (1, 0) for i in range(frames(data)))
    if rescaled or data.get("ModalityLUTSequence"):
        raise UserFault(
            expected=f"class numbers in the mask {file}",
            came="numbers that its header rescales (RescaleSlope, RescaleIntercept or ModalityLUTSequence)",
            do="save the mask as a DICOM-SEG, as NIfTI or as PNG",
        )
    decoded = _decoded(data)
    return [*decoded] if decoded.ndim == 4 else [own_bits(file, data, one) for one in decoded]


def _decoded(data: Any) -> NDArray[Any]:
    """The numbers of all frames, (N, H, W) with all their bits, or (N, H, W, 3)."""
    pixels = pixel_array(data, correct_unused_bits=int(data.get("SamplesPerPixel") or 1) > 1)
    return np.asarray(pixels if frames(data) > 1 else pixels[None])


def check_colours(file: Path, head: Any) -> None:
    """Refuse colours that do not fit in 8 bits, and colour spaces that are not turned into RGB.

    Training reads 8-bit colours. How to reduce deeper colours is the site's choice.

    Raises:
        UserFault: one of the two is found.
    """
    if int(head.get("SamplesPerPixel") or 1) == 1:
        return
    if head.PhotometricInterpretation not in COLOURS:
        raise UserFault(
            expected=f"colours as RGB or YBR_FULL in {file}",
            came=str(head.PhotometricInterpretation),
            do="save it as 8-bit RGB (PNG or DICOM)",
        )
    if int(head.BitsStored) > 8:
        raise _deep(file, int(head.BitsStored))


def eight_bit(file: Path, colours: NDArray[Any]) -> NDArray[np.uint8]:
    """A palette's colours in 8 bits. 16-bit entries that repeat 8 bits, or have them on top, lose nothing.

    Raises:
        UserFault: they would lose information.
    """
    if colours.dtype == np.uint8:
        return colours
    wide = colours.astype(np.uint16)
    low, high = wide & 255, wide >> 8
    if not (np.array_equal(low, high) or not low.any()):
        raise _deep(file, 16)
    return high.astype(np.uint8)


def _deep(file: Path, bits: int) -> UserFault:
    return UserFault(
        expected=f"colours of 8 bits in {file}",
        came=f"colours of {bits} bits",
        do="save it with 8-bit colours (PNG or DICOM), scaled equally for all images, or as grey values",
    )


def _rescaled(stored: NDArray[Any], data: Any, index: int, padding: NDArray[np.bool_] | None) -> Frame:
    """Frame `index` of a file, from its numbers (H, W)."""
    dark = data.PhotometricInterpretation == "MONOCHROME1"
    if data.get("ModalityLUTSequence"):
        looked_up = apply_modality_lut(stored.astype(np.int32), data)  # int32 can index a table of any length
        most = np.iinfo(looked_up.dtype).max
        return Frame(np.asarray(most - looked_up), most, padding) if dark else Frame(looked_up, padding=padding)
    slope, shift = _rescaling(data, index)
    values = _inverted(stored, data) if dark else stored
    if (slope, shift) != (1, 0):
        values = (values.astype(np.float64) * slope + shift).astype(np.float32)
    return Frame(values, slope * _ends(data) + 2 * shift if dark else None, padding)


def _mirrored_at(mirror: float, frame: Frame) -> NDArray[Any]:
    """The values of a frame where 0 means white as if its mirror were that of the series."""
    if frame.mirror in (None, mirror):
        return frame.values
    return (frame.values.astype(np.float64) + (mirror - float(frame.mirror or 0))).astype(np.float32)


def _padding(data: Any, decoded: NDArray[Any], own: NDArray[Any] | None = None) -> NDArray[np.bool_] | None:
    """Where a frame's numbers are those that the header declares as padding; None if nowhere.

    Args:
        decoded: the numbers with all their bits; `own`: with their own bits alone. A header may mean either.
    """
    ends = [data.get(tag) for tag in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    known = [_as_stored(end, decoded.dtype) for end in ends if isinstance(end, int)]
    if not isinstance(ends[0], int) or None in known:
        return None
    both = [decoded] if own is None or own is decoded else [decoded, own]
    padding = np.any([(one >= min(known)) & (one <= max(known)) for one in both], axis=0)
    return padding if padding.any() else None


def _as_stored(number: int, kind: np.dtype[Any]) -> Any:
    """A header's number as one of a frame's whole numbers; None if they cannot hold it.

    Some scanners state a negative number as the positive one of the same bits.
    """
    bits = 8 * kind.itemsize
    if kind.kind not in "iu" or not -(2 ** (bits - 1)) <= number < 2**bits:
        return None
    return np.asarray(number, np.int64).astype(kind)[()]


def _rescaling(data: Any, index: int) -> tuple[float, float]:
    """Slope and intercept of a frame, from an enhanced file's functional groups or a classic file itself."""
    place = group(data, index, "PixelValueTransformationSequence") or data
    return _number(place, "RescaleSlope", 1), _number(place, "RescaleIntercept", 0)


def _number(data: Any, tag: str, absent: float) -> float:
    """A tag's number. An empty tag counts as absent."""
    value = data.get(tag)
    return absent if value in (None, "") else float(value)


def _check_plugin(file: Path, data: Any) -> None:
    syntax = data.file_meta.TransferSyntaxUID
    plugins = set(get_decoder(syntax).available_plugins) if syntax.is_compressed else {"none is needed"}
    if syntax == JPEGExtended12Bit and int(data.get("BitsStored") or 0) > 8:
        plugins -= {"pillow"}  # it reads 8 bits of this compression alone
    if not plugins:
        raise UserFault(
            expected=f"a pydicom plugin for the compression of {file}",
            came=f"none for {syntax.name}",
            do="pip install python-gdcm, or export the series without compression",
        )


def _inverted(stored: NDArray[Any], data: Any) -> NDArray[Any]:
    """Bright is high, within the range of the stored bits."""
    return np.asarray(_ends(data) - stored.astype(np.int32)).astype(stored.dtype)


def _ends(data: Any) -> int:
    """The lowest plus the highest number that the stored bits can hold."""
    return -1 if int(data.PixelRepresentation) else 2 ** int(data.BitsStored) - 1
