"""Reads a picture's pixels by Pillow (PNG, JPEG, TIFF, BMP), for training, `prepare` and `predict` alike.

An image is read as people should see it. A mask is read as its stored numbers, whatever a viewer shows.
"""

import contextlib
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from pfedsam.data.readable import readable
from pfedsam.data.values import opaque
from pfedsam.errors import UserFault

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # whatever the file's ending is
LIMIT = 50_000_000  # most pixels; a colour picture of so many takes some GB while it is predicted
MANY = 100  # pages that are counted; a small file can have a million
UPRIGHT = 1  # EXIF's number, of eight, for a picture that needs no turning
SIDEWAYS = (5, 6, 7, 8)
EXIF_OF_PNG = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # the marks by which Pillow finds EXIF
BLACK = 16  # a palette's colour with all channels below this looks black
LOSSY = (6, 7, 34712, 50001)  # compressions of TIFF: JPEG in two ways, JPEG 2000, WebP
SIGNED = 2  # a TIFF's SampleFormat
OTHER = 0  # a TIFF's ExtraSamples: a channel that is not transparency
FORMS = {SIGNED: " with sign", 3: " floating point", 5: " complex, of whole numbers", 6: " complex"}


def pixels(path: Path, *, labels: bool = False) -> NDArray[Any]:
    """(H, W) or (H, W, 3), turned by its EXIF mark. The depth is kept, transparency is dropped.

    Args:
        labels: read stored numbers, also with a palette, in a TIFF that shows 0 as white, and of 2 or 4 bits.

    Raises:
        UserFault: several pages, 16-bit colours, an extra channel, too many pixels, a drawing in the transparency, or a
            mask with a palette whose background is not number 0.
        Exception: nearly any, if the file is damaged; see `readable`.
    """
    with _opened(path) as file:
        depth, kind = _depth(path, file), _kind(file)
        zero_is_white = _tag(file, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) == 0
        file.filename = ""  # else Pillow maps an uncompressed TIFF into memory and swaps the sides of a turned one
        file.load()
        with contextlib.suppress(Exception):  # damaged EXIF raises nearly any exception, and is ignored
            ImageOps.exif_transpose(file, in_place=True)
        values = _channels(path, file, labels)
    if kind is not None:
        values = values.view(kind)
    if labels:
        return _as_stored(values, depth, zero_is_white) if file.mode in ("1", "L") else values
    return _bright_is_high(path, values) if zero_is_white and file.mode not in ("1", "L") else values


def shape(path: Path) -> tuple[int, int]:
    """(H, W) of `pixels`, without decoding them. It raises as `pixels` does, except for transparency."""
    with _opened(path) as file:
        if file.format == "TIFF":  # Pillow turns a TIFF itself and states the new size
            return file.height, file.width
        return (file.width, file.height) if _orientation(path, file) in SIDEWAYS else (file.height, file.width)


def turn(path: Path) -> int:
    """EXIF's number for how a picture is turned; 1 for upright."""
    with _opened(path) as file:
        return _orientation(path, file)


def palette(path: Path) -> list[tuple[int, ...]]:
    """The red, green and blue of each number; empty for a picture without a palette."""
    with readable(path), _opened(path) as file:
        colours = file.getpalette("RGB") if file.mode in ("P", "PA") else None
    return list(zip(*[iter(colours or [])] * 3, strict=True))


def lossy(path: Path) -> bool:
    """Whether the compression changes numbers, as JPEG's does under any name and inside a TIFF."""
    with _opened(path) as file:
        return file.format in ("JPEG", "MPO") or _tag(file, TiffImagePlugin.COMPRESSION, 1) in LOSSY


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The file as Pillow opens it, with its header checked. Pillow's warnings do not matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            file = Image.open(path, formats=FORMATS)
        except Image.DecompressionBombError:
            raise _too_large(path) from None
        except UnidentifiedImageError:
            _check_tiff(path)
            raise
        with file:
            if file.width * file.height > LIMIT:
                raise _too_large(path)
            _check_one_page(path, file)
            _check_depth(path, file)
            _check_extra(path, file)
            yield file


def _too_large(path: Path) -> UserFault:
    return UserFault(
        expected=f"a picture of at most {LIMIT // 10**6} million pixels at {path}",
        came="a larger one",
        do="cut it into tiles, or save a smaller one",
    )


def _check_one_page(path: Path, file: Image.Image) -> None:
    """A camera's JPEG may contain previews of its picture (MPO). They do not count as pages."""
    pages = 1 if file.format == "MPO" else _pages(file) if file.format == "TIFF" else getattr(file, "n_frames", 1)
    if pages > 1:
        came = f"{pages} pages" + " or more" * (pages == MANY)
        raise UserFault(expected=f"one picture in {path}", came=came, do="save each as a separate file")


def _pages(file: Image.Image) -> int:
    """The number of a TIFF's pages, up to `MANY`."""
    for page in range(1, MANY):
        try:
            file.seek(page)
        except EOFError:
            file.seek(0)
            return page
    return MANY


def _check_depth(path: Path, file: Image.Image) -> None:
    """Refuse 16-bit colours, because Pillow would silently cut them down to 8 bits."""
    if len(file.getbands()) > 1 and _depth(path, file) > 8:
        raise UserFault(
            expected=f"colours of 8 bits, or grey of 8 or 16 bits, in {path}",
            came=f"several channels of {_depth(path, file)} bits",
            do="save it as RGB with 8 bits per channel (ImageJ: Image, Type, RGB Color), or as one 16-bit channel",
        )


def _check_extra(path: Path, file: Image.Image) -> None:
    """Refuse a TIFF with a channel that is neither colour nor transparency, because Pillow silently drops it."""
    if OTHER in _tag(file, TiffImagePlugin.EXTRASAMPLES, ()):
        raise UserFault(
            expected=f"one channel of grey, or red, green and blue, in {path}",
            came="an extra channel that is not marked as transparency (ExtraSamples 0)",
            do="save it without that channel, or save the channel that matters as a grey picture",
        )


def _check_tiff(path: Path) -> None:
    """Refuse a TIFF with numbers that Pillow cannot read, such as 64-bit ones. Other files pass."""
    with path.open("rb") as raw:
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(raw.read(8))
            raw.seek(tags.next)
            tags.load(raw)
        except (SyntaxError, struct.error):
            return
    bits, form = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)), tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
    white = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) == 0
    told, turned = (" whose 0 means white", "so that 0 means black, ") if white else ("", "")
    raise UserFault(
        expected=f"grey of 8 or 16 bits, or colours of 8 bits, in {path}",
        came=f"a TIFF of {len(bits)} channel(s) of {max(bits)} bits{FORMS.get(form[0], '')}{told}",
        do=f"save it {turned}as grey with 8 or 16 bits (or 32-bit floating point), or as RGB with 8 bits per channel",
    )


def _depth(path: Path, file: Image.Image) -> int:
    """Bits per channel as stored."""
    if file.format == "PNG":
        with path.open("rb") as raw:
            return raw.read(25)[24]
    return max(_tag(file, TiffImagePlugin.BITSPERSAMPLE, (1,))) if file.format == "TIFF" else 8


def _kind(file: Image.Image) -> Any:
    """The true type of the numbers if Pillow mistakes their sign; None if Pillow's type is right."""
    signed = _tag(file, TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == SIGNED
    bits = max(_tag(file, TiffImagePlugin.BITSPERSAMPLE, (1,)))
    return {("L", True, 8): np.int8, ("I", False, 32): np.uint32}.get((file.mode, signed, bits))


def _tag(file: Image.Image, number: int, default: Any) -> Any:
    """A TIFF's tag, or the default if the tag is missing or the file is not a TIFF."""
    return getattr(file, "tag_v2", {}).get(number, default)


def _orientation(path: Path, file: Image.Image) -> int:
    """EXIF's number, or `UPRIGHT` if there is none or it is damaged.

    To look for EXIF behind a PNG's pixels, Pillow decodes them. This happens only if the file contains EXIF.
    """
    early = file.format == "PNG" and not any(mark in path.read_bytes() for mark in EXIF_OF_PNG)
    try:
        exif = Image.Image.getexif(file) if early else file.getexif()
        number = exif.get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # damaged EXIF raises nearly any exception
        return UPRIGHT
    return int(number) if number in range(1, 9) else UPRIGHT


def _channels(path: Path, image: Image.Image, labels: bool) -> NDArray[Any]:
    """(H, W) or (H, W, 3)."""
    if image.mode in ("P", "PA") and not labels:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if image.mode in ("P", "PA"):
        _check_palette(path, image, values if values.ndim == 2 else values[..., 0])
    if values.ndim == 2:
        one = 1 if labels else 255  # of a picture with one bit: a class, or white
        return values.astype(np.uint8) * one if values.dtype == bool else values
    return opaque(values, path, labels=labels) if values.shape[-1] in (2, 4) else values


def _check_palette(path: Path, image: Image.Image, numbers: NDArray[Any]) -> None:
    """Refuse a mask with black under another number than 0. Programs may give the background any number."""
    shown = np.array(image.getpalette("RGB")).reshape(-1, 3)
    used = np.unique(numbers[numbers < len(shown)])
    darkest = int(used[shown[used].max(1).argmin()]) if used.size else 0
    if shown[darkest].max() <= BLACK and shown[darkest].max() < shown[0].max():
        raise UserFault(
            expected=f"number 0 for the background in the mask {path}",
            came=f"a palette that shows number {darkest} as black and 0 in another colour",
            do="save the mask without a palette, as grey class numbers with 0 for the background",
        )


def _as_stored(values: NDArray[Any], depth: int, zero_is_white: bool) -> NDArray[Any]:
    """A mask's stored numbers, which Pillow spreads over 8 bits and inverts for display."""
    top = 2**depth - 1
    numbers = values // (255 // top) if depth in (2, 4) else values
    return top - numbers if zero_is_white else numbers


def _bright_is_high(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    """An image with bright as high. Pillow inverts images with 0 as white only at 8 bits."""
    if values.dtype != np.uint16:
        raise UserFault(
            expected=f"an image of 8 or 16 bits in {path}, because its 0 means white",
            came=f"values of type {values.dtype}",
            do="save it so that 0 means black (PhotometricInterpretation MinIsBlack)",
        )
    return np.asarray(np.iinfo(values.dtype).max - values)
