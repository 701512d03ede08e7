"""Attention in windows over a map, without computing the padding tokens.

If the map's side is no multiple of the window's, SAM, ViTDet and TinyViT pad it at its right and lower edge. Here the
windows at these edges are smaller instead. All padded tokens are equal before the projection. So they have one key and
one value, which the attention of a smaller window takes into account. Nothing reads their queries.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Attend = Callable[[Tensor], Tensor]


def windowed(tokens: Tensor, side: int, attend: Attend) -> Tensor:
    """`attend` over each window of the map, (B, H, W, out).

    Args:
        tokens: (B, H, W, ...).
        side: the window's side in tokens.
        attend: maps windows of tokens (B, R, C, h, w, ...), in R rows and C columns, to (B, R, C, h, w, out).
            h and w equal `side`, or less at the map's edges.
    """

    def region(part: Tensor) -> Tensor:
        return ungrid(attend(grid(part, min(part.shape[1], side), min(part.shape[2], side))))

    # split, not slices: its gradient is one copy
    strips = [
        torch.split(strip, spans(strip.shape[2], side), 2)
        for strip in torch.split(tokens, spans(tokens.shape[1], side), 1)
    ]
    return _one([_one([region(part) for part in strip], 2) for strip in strips], 1)


def spans(length: int, side: int) -> list[int]:
    """A row of tokens, cut into the part of whole windows and the rest: their lengths."""
    return [part for part in (length - length % side, length % side) if part]


def grid(x: Tensor, height: int, width: int) -> Tensor:
    """A (B, H, W, ...) map as its windows, (B, R, C, height, width, ...), a view. They must tile the map."""
    batch, rows, columns = x.shape[0], x.shape[1] // height, x.shape[2] // width
    return x.reshape(batch, rows, height, columns, width, *x.shape[3:]).transpose(2, 3)


def ungrid(windows: Tensor) -> Tensor:
    """The inverse of `grid`: (B, H, W, ...)."""
    batch, rows, columns, height, width = windows.shape[:5]
    return windows.transpose(2, 3).reshape(batch, rows * height, columns * width, *windows.shape[5:])


def cut(x: Tensor, height: int, width: int) -> Tensor:
    """Windows of a (B, H, W, ...) map, row by row, (B * n, height, width, ...). They must tile the map."""
    return grid(x, height, width).flatten(0, 2)


def join(windows: Tensor, batch: int, height: int, width: int) -> Tensor:
    """The inverse of `cut`: (B, H, W, ...)."""
    rows, columns = height // windows.shape[1], width // windows.shape[2]
    return ungrid(windows.view(batch, rows, columns, *windows.shape[1:]))


def _one(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)
