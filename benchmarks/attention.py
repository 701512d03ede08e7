"""Milliseconds of attention in three ways, by the number of keys: benchmarks/attention.py --help.

`pfedsam.model.vit.attended` chooses by it. ViT-B's position terms are channels of the product, TinyViT's are a mask.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from machine import Table, interleaved, keepable, median, publish
from torch import Tensor

from pfedsam.model import vit
from pfedsam.train.precision import has_bf16

Attend = Callable[..., Tensor]
Case = tuple[str, tuple[Tensor, ...], list[Attend]]  # name, tensors, and the ways: plain, head by head, fused
VIT = (("a window", 14), ("256 px", 16), ("512 px", 32), ("1024 px", 64))  # the side of ViT-B's map, or window
TINY = (("windows of 7, 512 px", 64, 4, 49), ("windows of 14, 512 px", 4, 5, 196))  # windows, heads, keys
COLUMNS = {
    "attention": "",
    "numbers": "",
    "keys": "d",
    "plain, ms": ".1f",
    "head by head": ".2f",
    "fused": ".2f",
    "with gradient, plain, ms": ".1f",
    "with gradient, head by head": ".2f",
    "with gradient, fused": ".2f",
    "largest difference": ".1e",
}
NOTE = "Without ms: times as fast as plain."


def main() -> None:
    """Measure, print one table, and keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    options = keepable(parser).parse_args()
    kinds = [torch.float32, *([torch.bfloat16] if has_bf16(torch.device("cpu")) else [])]
    rows = [line(dtype, options.runs, *case) for dtype in kinds for case in (*vit_b(), *tiny_vit())]
    publish("Attention, plain, head by head and fused", Table(COLUMNS, rows), notes=[NOTE], keep=options.keep)


def vit_b() -> list[Case]:
    """Name, tensors and the ways of ViT-B's attention, one image and twelve heads."""
    found: list[Case] = []
    for name, side in VIT:
        asked, held = (torch.randn(1, 12, side * side, 64 + 2 * side) * 0.1 for _ in range(2))
        parts = asked, held, torch.randn(1, 12, side * side, 64)
        found.append((f"ViT-B, {name}", parts, [vit.plain, vit.head_by_head, fused]))
    return found


def fused(asked: Tensor, held: Tensor, values: Tensor) -> Tensor:
    """`vit.attended` by torch's fused attention, which never holds all scores at once."""
    width = values.shape[-1]
    wide = F.pad(values, (0, held.shape[-1] - width))  # the fused kernel wants one width
    return F.scaled_dot_product_attention(asked, held, wide, scale=1.0)[..., :width]


def tiny_vit() -> list[Case]:
    """Name, tensors and the ways of TinyViT's attention, one image, whose windows are a batch."""
    found: list[Case] = []
    for name, windows, heads, keys in TINY:
        bias = torch.randn(heads, keys, keys)
        parts = tuple(torch.randn(windows * heads, keys, 32) for _ in range(3))
        ways: list[Attend] = [partial(way, bias) for way in (plain, head_by_head, masked)]
        found.append((f"TinyViT, {name}", parts, ways))
    return found


def plain(bias: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As in `TinyViTBlock`."""
    repeated = bias.to(q.dtype).repeat(q.shape[0] // len(bias), 1, 1)
    found: Tensor = torch.baddbmm(repeated, q, k.mT, alpha=q.shape[-1] ** -0.5).softmax(-1) @ v
    return found


def head_by_head(bias: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same, one head of all windows after another."""
    q, k, v = (part.view(-1, len(bias), *part.shape[1:]) for part in (q, k, v))
    found = [plain(bias[i : i + 1], q[:, i], k[:, i], v[:, i]) for i in range(len(bias))]
    return torch.stack(found, 1).flatten(0, 1)


def masked(bias: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by torch's fused attention."""
    q, k, v = (part.view(-1, len(bias), *part.shape[1:]) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)).flatten(0, 1)


def line(dtype: torch.dtype, runs: int, name: str, parts: tuple[Tensor, ...], ways: list[Attend]) -> list[str | float]:
    """One row of the table."""
    parts = tuple(part.to(dtype) for part in parts)
    with torch.no_grad():
        first, *others = (way(*parts) for way in ways)
        apart = max(float((first - other).abs().max()) for other in others)
        forward = timed(parts, runs, ways, gradient=False)
    for tensor in parts:
        tensor.requires_grad_()
    both = timed(parts, runs, ways, gradient=True)
    return [name, str(dtype).removeprefix("torch."), parts[1].shape[-2], *forward, *both, apart]


def timed(parts: tuple[Tensor, ...], runs: int, ways: list[Attend], *, gradient: bool) -> list[float]:
    """Milliseconds of the first way, and how many times as fast the others are."""

    def run(attend: Attend) -> None:
        found = attend(*parts)
        if gradient:
            found.sum().backward()  # type: ignore[no-untyped-call]

    first, *others = median(interleaved({str(i): partial(run, way) for i, way in enumerate(ways)}, runs)).values()
    return [first * 1e3, *(first / other for other in others)]


if __name__ == "__main__":
    main()
