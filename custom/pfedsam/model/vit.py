"""SAM's ViT, built from segment-anything's own modules, as units of an `Encoder`."""

from functools import cache, partial
from typing import cast

import torch
from segment_anything.modeling.image_encoder import Attention, Block
from torch import Tensor, nn

from pfedsam.model.windows import windowed

LONG = 1024  # keys from which on a CPU the heads' scores are computed one after another: benchmarks/attention.py


class PatchAndPosition(nn.Module):
    """SAM's ViT entry: patches plus absolute position, (B, 3, S, S) -> (B, S/p, S/p, d)."""

    def __init__(self, patch_embed: nn.Module, position: nn.Parameter) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.position = position

    def forward(self, image: Tensor) -> Tensor:
        """The patch embedding plus the position table, (B, S/p, S/p, d)."""
        return cast(Tensor, self.patch_embed(image)) + self.position


class ViTBlock(nn.Module):
    """segment-anything's block on its own weights, without computing padded tokens.

    A test holds it equal to the original to 1e-5. Experts in a projection see only the image's own
    map, our choice. In the original they would see the padding too.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, cast(Attention, block.attn), block.norm2, block.mlp
        self.window_size: int = block.window_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, d) -> (B, H, W, d)."""
        x = x + self._attention(self.norm1(x))
        return x + cast(Tensor, self.mlp(self.norm2(x)))

    def _attention(self, x: Tensor) -> Tensor:
        heads = (3, self.attn.num_heads, -1)
        qkv = self.attn.qkv(x).view(*x.shape[:3], *heads)
        padding = self.attn.qkv.bias.view(heads)[1:]  # W 0 + b
        found = windowed(qkv, self.window_size or x.shape[1], partial(self._attend, padding))
        return cast(Tensor, self.attn.proj(found.flatten(-2)))

    def _attend(self, padding: Tensor, windows: Tensor) -> Tensor:
        """softmax(q k / sqrt(d) + rel_h + rel_w) v, (B, R, C, h, w, heads, d): Li et al. 2022 (MViTv2), equation 4.

        The two position terms are further channels of the one product: [q / sqrt(d), rel_h, rel_w] times
        [k, row, column], where a key's row and column are one-hot. So each score is computed in one pass.

        Args:
            padding: key and value of a padded token, (2, heads, d).
            windows: query, key and value of the real tokens, (B, R, C, h, w, 3, heads, d).
        """
        *grid, height, width, _, _, _ = windows.shape
        side = self.window_size or height
        q, *others = windows.flatten(0, 2).unbind(-3)
        k, v = (_padded(one, constant, side) for one, constant in zip(others, padding, strict=True))
        rel_h = torch.einsum("nhwed,hkd->nehwk", q, _relative(self.attn.rel_pos_h, side)[:height])
        rel_w = torch.einsum("nhwed,wkd->nehwk", q, _relative(self.attn.rel_pos_w, side)[:width])
        asked = torch.cat([q.movedim(3, 1) * self.attn.scale, rel_h, rel_w], -1).flatten(2, 3)
        held = torch.cat([k, _coordinates(side, k.dtype, k.device).expand(*k.shape[:3], -1)], -1)
        found = attended(asked, held, v).transpose(1, 2)
        return found.reshape(*grid, height, width, *found.shape[2:])


def attended(asked: Tensor, held: Tensor, values: Tensor) -> Tensor:
    """softmax(asked held^T) values, (n, heads, queries, d).

    On a CPU with `LONG` keys or more, a head at a time: faster at 1 024 keys, level at 4 096. Otherwise, and on a
    device that has not been measured, as the product of all heads at once.

    Args:
        asked: (n, heads, queries, e).
        held: (n, heads, keys, e), with e at least d.
        values: (n, heads, keys, d).
    """
    apart = held.device.type == "cpu" and held.shape[2] >= LONG
    return head_by_head(asked, held, values) if apart else plain(asked, held, values)


def plain(asked: Tensor, held: Tensor, values: Tensor) -> Tensor:
    """`attended` as one product of all heads, or of one head, without that axis."""
    return (asked @ held.mT).softmax(-1) @ values


def head_by_head(asked: Tensor, held: Tensor, values: Tensor) -> Tensor:
    """`attended` with one head's scores after another's, which fit the cache at 1 024 keys."""
    heads = zip(asked.unbind(1), held.unbind(1), values.unbind(1), strict=True)  # an exported batch has no fixed size
    return torch.stack([plain(*head) for head in heads], 1)


def _padded(x: Tensor, constant: Tensor, side: int) -> Tensor:
    """Windows (n, h, w, heads, d), filled up to `side` x `side` with a token (heads, d): (n, heads, side^2, d)."""
    for axis in (2, 1):
        if missing := side - x.shape[axis]:
            shape = [*x.shape[:axis], missing, *x.shape[axis + 1 :]]
            x = torch.cat([x, constant.to(x.dtype).expand(shape)], axis)
    return x.flatten(1, 2).transpose(1, 2)


@cache
def _coordinates(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(side * side, 2 side): each token's row and column, one-hot."""
    eye = torch.eye(side, dtype=dtype, device=device)
    return torch.cat([eye.repeat_interleave(side, 0), eye.repeat(side, 1)], 1)


def _relative(table: Tensor, side: int) -> Tensor:
    """(side, side, d): the table's row for each pair of query and key coordinates."""
    at = torch.arange(side, device=table.device)
    return table[at[:, None] - at[None] + side - 1]
