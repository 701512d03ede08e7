"""Low-rank adaptation of a fused qkv projection, with room for the L-MoE in its bottleneck.

    h = A x,    out = W0 x + (alpha / r) B mix(h)

Hu et al. 2022 (LoRA); Zhong et al. 2024 (Conv-LoRA) put experts into the bottleneck; pFedSAM's
Figure 1 draws the same chain, "LoRA enc -> L-MoE -> LoRA dec".
"""

import math
from typing import cast

import torch
from torch import Tensor, nn


class LoRA(nn.Module):
    """The trained detour (alpha / r) * B mix(A x); zero at the start because B is.

    Args:
        d_in: width of the input.
        d_out: width of the output (3 d for a fused qkv).
        rank: r, width of the bottleneck.
        alpha: numerator of the scale.
    """

    def __init__(self, d_in: int, d_out: int, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.a = nn.Linear(d_in, rank, bias=False)
        self.b = nn.Linear(rank, d_out, bias=False)
        self.mix: nn.Module | None = None
        self.per_window = False  # True: the mix sees each window alone, as Conv-LoRA's release does
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor, images: int) -> Tensor:
        """The detour's output, (..., d_out).

        Args:
            x: tokens, (N, h, w, d_in) or (N, h*w, d_in), N = images x windows.
            images: how many images the N windows belong to.
        """
        h = self.a(x)
        if self.mix is not None:
            h = to_tokens(self.mix(to_map(h, len(h) if self.per_window else images)), h)
        return cast(Tensor, self.b(h)) * self.scale


class LoRALinear(nn.Module):
    """A frozen `Linear` and its detour; stands wherever the Linear stood.

    `images` is set by the block around it before each call, because a windowed attention hides
    the number of images from its projection.
    """

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.lora = LoRA(base.in_features, base.out_features, rank=rank, alpha=alpha)
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        """W0 x + detour(x), same leading shape as `x`."""
        detour: Tensor = self.lora(x, self.images or len(x))
        return cast(Tensor, self.base(x)) + detour


class AdaptedBlock(nn.Module):
    """An attention block with LoRA on `attn.qkv`; tells the adapter how many images came in.

    Works for any block that takes (B, H, W, C) and holds a fused projection at `attn.qkv`:
    segment-anything's ViT blocks and timm's TinyViT blocks do.
    """

    def __init__(self, block: nn.Module, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.block = block
        attention = cast(nn.Module, block.attn)
        attention.qkv = LoRALinear(cast(nn.Linear, attention.qkv), rank=rank, alpha=alpha)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, (B, H, W, C)."""
        cast(LoRALinear, cast(nn.Module, self.block.attn).qkv).images = len(x)
        return cast(Tensor, self.block(x))


class PostAdapter(nn.Module):
    """The figure read literally: one LoRA after the frozen encoder, on its embedding.

    embedding + (alpha / r) B mix(A embedding); our name for it is the "post" reading.
    """

    def __init__(self, channels: int, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.lora = LoRA(channels, channels, rank=rank, alpha=alpha)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        detour: Tensor = self.lora(x.permute(0, 2, 3, 1), len(x))
        return x + detour.permute(0, 3, 1, 2)


def to_map(h: Tensor, images: int) -> Tensor:
    """Windowed tokens stitched back to one map an image, (images, r, H, W).

    Both libraries cut windows row by row, (images, rows, columns, side, side); the maps are square.
    The padding that a window cut added stays in the map, at its right and lower edge.

    Args:
        h: (N, side, side, r) or (N, side * side, r), N = images * rows * columns.
        images: number of images; must divide N into a square number of windows.
    """
    r = h.shape[-1]
    side = h.shape[1] if h.dim() == 4 else math.isqrt(h.shape[1])
    rows = math.isqrt(h.shape[0] // images)
    grid = h.reshape(images, rows, rows, side, side, r)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(images, r, rows * side, rows * side)


def to_tokens(maps: Tensor, like: Tensor) -> Tensor:
    """The inverse of `to_map`, in the shape of `like`."""
    images, r, height, _ = maps.shape
    side = like.shape[1] if like.dim() == 4 else math.isqrt(like.shape[1])
    rows = height // side
    grid = maps.reshape(images, r, rows, side, rows, side)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(like.shape)


def loras(module: nn.Module) -> list[LoRA]:
    """Every LoRA below `module`, in the order of the forward pass."""
    return [m for m in module.modules() if isinstance(m, LoRA)]


def reset(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every LoRA below `module` anew from `generator`: A at random, B zero."""
    for lora in loras(module):
        nn.init.kaiming_uniform_(lora.a.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(lora.b.weight)
