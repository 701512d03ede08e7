"""Attention in windows over a map, without computing the padding tokens.

If the map's side is no multiple of the window's, the map is padded at its right and lower edge
(ViTDet, SAM, TinyViT). All padded tokens are equal before the projection. So they have one key and
one value, and nothing reads their queries. The result equals that of the padded map, term by term.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor], Tensor]


def windowed(q: Tensor, kv: Tensor, padding: Tensor, side: int, attend: Attend) -> Tensor:
    """`attend` over each window of the map, (B, H, W, out).

    Args:
        q: queries of the real tokens, (B, H, W, ...).
        kv: their keys and values, (B, H, W, ...).
        padding: key and value of a padded token, (B, ...).
        side: the window's side in tokens.
        attend: maps (n, h, w, ...) queries and (n, side, side, ...) keys and values to (n, h, w, out).
            h and w equal `side`, or less at the map's edges.
    """

    def region(rows: slice, columns: slice) -> Tensor:
        asked, held = q[:, rows, columns], _padded(kv[:, rows, columns], padding, side)
        height, width = min(asked.shape[1], side), min(asked.shape[2], side)
        return join(attend(cut(asked, height, width), cut(held, side, side)), *asked.shape[:3])

    strips = [torch.cat([region(r, c) for c in spans(q.shape[2], side)], 2) for r in spans(q.shape[1], side)]
    return torch.cat(strips, 1)


def spans(length: int, side: int) -> list[slice]:
    """A row of tokens, cut into the part of whole windows and the rest."""
    whole = length - length % side
    return [slice(a, b) for a, b in ((0, whole), (whole, length)) if b > a]


def cut(x: Tensor, height: int, width: int) -> Tensor:
    """Windows of a (B, H, W, ...) map, row by row, (B * n, height, width, ...). They must tile the map."""
    batch, rows, columns = x.shape[0], x.shape[1] // height, x.shape[2] // width
    grid = x.reshape(batch, rows, height, columns, width, *x.shape[3:]).transpose(2, 3)
    return grid.flatten(0, 2)


def join(windows: Tensor, batch: int, height: int, width: int) -> Tensor:
    """The inverse of `cut`: (B, H, W, ...)."""
    rows, columns = height // windows.shape[1], width // windows.shape[2]
    grid = windows.view(batch, rows, columns, *windows.shape[1:]).transpose(2, 3)
    return grid.reshape(batch, height, width, *windows.shape[3:])


def _padded(x: Tensor, padding: Tensor, side: int) -> Tensor:
    """`x` padded at right and bottom to a multiple of `side`, with one constant for each image."""
    for axis in (2, 1):
        if missing := -x.shape[axis] % side:
            shape = [*x.shape[:axis], missing, *x.shape[axis + 1 :]]
            x = torch.cat([x, padding.to(x.dtype)[:, None, None].expand(shape)], axis)
    return x
