"""The report as one self-contained HTML page, with pictures that show whether image and mask fit."""

import base64
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pfedsam.data.values import IGNORED
from pfedsam.pages import filled
from pfedsam.prepare.convert import Pair

SIDE = 256
LIMIT = 60_000  # bytes
OWN = re.compile(r"\S*/\S*|\d+(\.\d+){4,}|\d+(?= pixel)")  # what differs between files with one fault
COLOURS = ((213, 94, 0), (86, 180, 233), (240, 228, 66), (0, 158, 115), (204, 121, 167), (0, 114, 178))  # Okabe-Ito


def page(report: dict[str, Any], pictures: Sequence[tuple[str, bytes]]) -> str:
    """The page. `pictures` are pairs of caption and JPEG."""
    shown = [(text, base64.b64encode(data).decode()) for text, data in pictures]
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in COLOURS]
    left = by_reason(report["dropped"])
    return filled("prepare.html", r=report, left=left, pictures=shown, colours=colours)


def by_reason(dropped: Sequence[dict[str, str]]) -> list[tuple[str, str, list[str]]]:
    """One row per reason: why, as the first file shows it, what to do, and all files left out for it."""
    groups: dict[tuple[str, str], tuple[str, str, list[str]]] = {}
    for one in dropped:
        why, do = one["why"], one["do"]
        groups.setdefault((OWN.sub("", why), do), (why, do, []))[2].append(one["file"])
    return list(groups.values())


def thumbnail(pair: Pair) -> bytes:
    """JPEG of the slice with most class pixels: square in mm, longest side 256 px, at most 60 KB."""
    drawn = np.where(pair.labels == IGNORED, 0, pair.labels) if pair.partly else pair.labels
    index = int((drawn > 0).sum((0, 1)).argmax()) if drawn.any() else drawn.shape[2] // 2
    picture = Image.fromarray(_grey(pair.image.values[:, :, index]))
    size = _size(pair.labels.shape[:2], pair.image.spacing)
    labels = Image.fromarray(drawn[:, :, index]).resize(size, Image.Resampling.NEAREST)
    outlined = _outlined(np.array(picture.resize(size, Image.Resampling.BILINEAR)), np.asarray(labels))
    return _encoded(Image.fromarray(outlined))


def _grey(values: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W, 3), scaled between the 0.5 and 99.5 percentiles."""
    low, high = np.percentile(values, (0.5, 99.5))
    scaled = np.clip((values.astype(np.float32) - low) / (high - low or 1), 0, 1) * 255
    pixels = scaled.astype(np.uint8)
    return np.asarray(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, -1))


def _size(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> tuple[int, int]:
    """(width, height) in pixels."""
    height, width = shape[0] * spacing[0], shape[1] * spacing[1]
    scale = SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _outlined(picture: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    for number in np.unique(labels[labels > 0]).tolist():
        one = labels == number
        picture[one & ~ndimage.binary_erosion(one)] = COLOURS[(number - 1) % len(COLOURS)]
    return picture


def _encoded(picture: Image.Image) -> bytes:
    for quality in (88, 70, 40, 10):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        if file.tell() <= LIMIT:
            break
    return file.getvalue()
