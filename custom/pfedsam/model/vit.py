"""SAM's ViT, built from segment-anything's own modules, as units of an `Encoder`."""

from functools import cache
from typing import cast

import torch
from segment_anything.modeling.image_encoder import Attention, Block
from torch import Tensor, nn

from pfedsam.model.windows import windowed


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

    A test holds it equal to the original to 1e-6. Experts in a projection see only the image's own
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
        padding = self.attn.qkv.bias.view(heads)[None, 1:].expand(x.shape[0], -1, -1, -1)  # W 0 + b
        found = windowed(qkv[..., 0, :, :], qkv[..., 1:, :, :], padding, self.window_size or x.shape[1], self._attend)
        return cast(Tensor, self.attn.proj(found))

    def _attend(self, q: Tensor, kv: Tensor) -> Tensor:
        """softmax(q k / sqrt(d) + rel_h + rel_w) v, (n, h, w, heads * d): Li et al. 2022 (MViTv2), equation 4.

        The two position terms are further channels of the one product: [q / sqrt(d), rel_h, rel_w] times
        [k, row, column], where a key's row and column are one-hot. So each score is computed in one pass.

        Args:
            q: (n, h, w, heads, d).
            kv: (n, side, side, 2, heads, d).
        """
        height, width, side = q.shape[1], q.shape[2], kv.shape[1]
        rel_h = torch.einsum("nhwed,hkd->nhwek", q, _relative(self.attn.rel_pos_h, side)[:height])
        rel_w = torch.einsum("nhwed,wkd->nhwek", q, _relative(self.attn.rel_pos_w, side)[:width])
        asked = torch.cat([q * self.attn.scale, rel_h, rel_w], -1).flatten(1, 2).transpose(1, 2)
        k, v = kv.flatten(1, 2).permute(2, 0, 3, 1, 4)
        held = torch.cat([k, _coordinates(side, k.dtype, k.device).expand(*k.shape[:3], -1)], -1)
        found: Tensor = (asked @ held.transpose(-2, -1)).softmax(-1) @ v
        return found.transpose(1, 2).reshape(q.shape[0], height, width, -1)


@cache
def _coordinates(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(side * side, 2 side): each token's row and column, one-hot."""
    eye = torch.eye(side, dtype=dtype, device=device)
    return torch.cat([eye.repeat_interleave(side, 0), eye.repeat(side, 1)], 1)


def _relative(table: Tensor, side: int) -> Tensor:
    """(side, side, d): the table's row for each pair of query and key coordinates."""
    at = torch.arange(side, device=table.device)
    return table[at[:, None] - at[None] + side - 1]
