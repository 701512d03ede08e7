"""The meaning of the numbers stored in a DICOM file: intensities, colours, or a mask's class numbers."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder, pixel_array

from pfedsam.data.headers import frames, group
from pfedsam.errors import UserFault

COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # pydicom turns these into RGB


def intensities(file: Path, data: Any) -> NDArray[Any]:
    """A file's frames, (N, H, W), or (N, H, W, 3) with 8-bit colours. Bright is high.

    Whole numbers are as stored or from the file's table. If the file or a frame rescales, the result is float32.

    Raises:
        UserFault: the compression has no plugin, or colours have more than 8 bits.
        Exception: nearly any, if the file is damaged; see `readable`.
    """
    _check_plugin(file, data.file_meta.TransferSyntaxUID)
    check_colours(file, data)
    stored = _stored(data)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        return eight_bit(file, np.asarray(apply_color_lut(stored, data)))
    if stored.ndim == 4:
        return np.asarray(stored, dtype=np.uint8)
    return np.stack([_rescaled(frame, data, i) for i, frame in enumerate(stored)])


def class_numbers(file: Path, data: Any) -> NDArray[Any]:
    """A mask's stored numbers, one array per frame. Display rules (MONOCHROME1, a palette) do not change them.

    Raises:
        UserFault: the compression has no plugin, or the file rescales the numbers.
        Exception: nearly any, if the file is damaged; see `readable`.
    """
    _check_plugin(file, data.file_meta.TransferSyntaxUID)
    rescaled = any(_rescaling(data, i) != (1, 0) for i in range(frames(data)))
    if rescaled or data.get("ModalityLUTSequence"):
        raise UserFault(
            expected=f"class numbers in the mask {file}",
            came="numbers that its header rescales (RescaleSlope, RescaleIntercept or ModalityLUTSequence)",
            do="save the mask as a DICOM-SEG, as NIfTI or as PNG",
        )
    return _stored(data)


def _stored(data: Any) -> NDArray[Any]:
    """The stored numbers, (N, H, W) or (N, H, W, 3), without the bits of an overlay."""
    pixels = pixel_array(data)
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


def _rescaled(stored: NDArray[Any], data: Any, index: int) -> NDArray[Any]:
    """Frame `index` of a file, (H, W)."""
    dark = data.PhotometricInterpretation == "MONOCHROME1"
    if data.get("ModalityLUTSequence"):
        looked_up = apply_modality_lut(stored.astype(np.int32), data)  # int32 can index a table of any length
        return np.asarray(np.iinfo(looked_up.dtype).max - looked_up if dark else looked_up)
    values = _inverted(stored, data) if dark else stored
    slope, shift = _rescaling(data, index)
    return values if (slope, shift) == (1, 0) else (values.astype(np.float64) * slope + shift).astype(np.float32)


def _rescaling(data: Any, index: int) -> tuple[float, float]:
    """Slope and intercept of a frame, from an enhanced file's functional groups or a classic file itself."""
    place = group(data, index, "PixelValueTransformationSequence") or data
    return _number(place, "RescaleSlope", 1), _number(place, "RescaleIntercept", 0)


def _number(data: Any, tag: str, absent: float) -> float:
    """A tag's number. An empty tag counts as absent."""
    value = data.get(tag)
    return absent if value in (None, "") else float(value)


def _check_plugin(file: Path, syntax: Any) -> None:
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        raise UserFault(
            expected=f"a pydicom plugin for the compression of {file}",
            came=f"none for {syntax.name}",
            do="pip install python-gdcm, or export the series without compression",
        )


def _inverted(stored: NDArray[Any], data: Any) -> NDArray[Any]:
    """Bright is high, within the range of the stored bits, equally for every slice of a series."""
    bits, signed = int(data.BitsStored), int(data.PixelRepresentation)
    ends = -1 if signed else 2**bits - 1  # lowest plus highest value
    return np.asarray(ends - stored.astype(np.int32)).astype(stored.dtype)
