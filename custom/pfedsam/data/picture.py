"""A picture's pixels by Pillow (PNG, JPEG, TIFF, BMP), as training, `prepare` and `predict` all read them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pfedsam.errors import UserFault

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
UPRIGHT = {  # EXIF's orientation: what turns the picture back
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)
EXIF_OF_PNG = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # a chunk's kind, or what its text begins with


def pixels(path: Path, *, labels: bool = False) -> NDArray[Any]:
    """(H, W) or (H, W, 3), turned as its EXIF says; transparency is dropped, depth is kept.

    Args:
        labels: keep a palette's numbers; otherwise its colours.

    Raises:
        UserFault: several pages.
        Exception: nearly any, of a damaged file; see `readable`.
    """
    with Image.open(path) as file:
        _check_single(path, file)
        file.filename = ""  # else Pillow maps an uncompressed TIFF into memory, and mixes up the sides of a turned one
        file.load()
        turn = UPRIGHT.get(_orientation(file))
        return _channels(file if turn is None else file.transpose(turn), labels)


def shape(path: Path) -> tuple[int, int]:
    """(H, W) of `pixels`, none of which is decoded; raises as `pixels` does."""
    with Image.open(path) as file:
        _check_single(path, file)
        if file.format == "TIFF":  # Pillow turns a TIFF itself, and tells the size that it then has
            return file.height, file.width
        early = file.format == "PNG" and not _exif_is_late(path)
        return (file.width, file.height) if _orientation(file, early=early) in SIDEWAYS else (file.height, file.width)


def _check_single(path: Path, file: Image.Image) -> None:
    """A camera's JPEG may hold previews of its picture (MPO): those are no pages."""
    pages = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
    if pages > 1:
        raise UserFault(expected=f"one picture in {path}", came=f"{pages} pages", do="save each by itself")


def _orientation(file: Image.Image, *, early: bool = False) -> int:
    """EXIF's number, 1 where there is none or it is damaged.

    Args:
        early: what lies before the pixels is enough; otherwise Pillow decodes a PNG to look behind them.
    """
    try:
        return int((Image.Image.getexif(file) if early else file.getexif()).get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF raises nearly anything
        return 1


def _exif_is_late(path: Path) -> bool:
    """Whether a PNG has EXIF behind its pixels; goes from chunk to chunk, and reads the first bytes of each."""
    with path.open("rb") as file:
        place, seen = 8, False
        while len(head := _at(file, place)) >= 8:
            seen = seen or head[4:8] == b"IDAT"
            if seen and (head[4:8] in EXIF_OF_PNG or head[8:].startswith(EXIF_OF_PNG)):
                return True
            place += int.from_bytes(head[:4], "big") + 12
    return False


def _at(file: Any, place: int) -> bytes:
    file.seek(place)
    return bytes(file.read(32))


def _channels(image: Image.Image, labels: bool) -> NDArray[Any]:
    """(H, W) or (H, W, 3)."""
    if (image.mode in ("P", "PA") and not labels) or image.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image)
    if values.ndim == 2:
        return values.astype(np.uint8) if values.dtype == bool else values
    return values[..., 0] if values.shape[-1] < 3 else values[..., :3]
