"""Milliseconds of attention as a plain product and fused, by the number of keys: benchmarks/attention.py --help.

`pfedsam.model.vit.FUSED` is chosen by it. ViT-B's position terms are channels of the product, TinyViT's are a mask.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from machine import Table, interleaved, keepable, median, publish
from torch import Tensor

from pfedsam.model.vit import FUSED, attended
from pfedsam.train.precision import has_bf16

Attend = Callable[..., Tensor]
Case = tuple[str, tuple[Tensor, ...], Attend, Attend]  # name, tensors, plain, fused
VIT = (("a window", 14), ("256 px", 16), ("512 px", 32), ("1024 px", 64))  # the side of ViT-B's map, or window
TINY = (("windows of 7, 512 px", 64, 4, 49), ("windows of 14, 512 px", 4, 5, 196))  # windows, heads, keys
COLUMNS = {
    "attention": "",
    "numbers": "",
    "keys": "d",
    "forward, plain, ms": ".1f",
    "forward, fused, ms": ".1f",
    "times as fast": ".2f",
    "with gradient, plain, ms": ".1f",
    "with gradient, fused, ms": ".1f",
    "times as fast with gradient": ".2f",
    "largest difference": ".1e",
}


def main() -> None:
    """Measure, print one table, and keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    options = keepable(parser).parse_args()
    kinds = [torch.float32, *([torch.bfloat16] if has_bf16(torch.device("cpu")) else [])]
    rows = [line(dtype, options.runs, *case) for dtype in kinds for case in (*vit_b(), *tiny_vit())]
    publish("Attention, plain and fused", Table(COLUMNS, rows), keep=options.keep)


def vit_b() -> list[Case]:
    """Name, tensors and both ways of ViT-B's attention, one image and twelve heads."""
    found: list[Case] = []
    for name, side in VIT:
        asked, held = (torch.randn(1, 12, side * side, 64 + 2 * side) * 0.1 for _ in range(2))
        found.append((f"ViT-B, {name}", (asked, held, torch.randn(1, 12, side * side, 64)), way(10**9), way(0)))
    return found


def way(least: int) -> Attend:
    """`attended`, fused from `least` keys on."""

    def attend(*parts: Tensor) -> Tensor:
        before, FUSED["cpu"] = FUSED["cpu"], least
        try:
            return attended(*parts)
        finally:
            FUSED["cpu"] = before

    return attend


def tiny_vit() -> list[Case]:
    """Name, tensors and both ways of TinyViT's attention, one image, whose windows are a batch."""
    found: list[Case] = []
    for name, windows, heads, keys in TINY:
        bias = torch.randn(heads, keys, keys)
        parts = tuple(torch.randn(windows * heads, keys, 32) for _ in range(3))
        found.append((f"TinyViT, {name}", parts, partial(plain, bias), partial(masked, bias)))
    return found


def plain(bias: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As in `TinyViTBlock`."""
    repeated = bias.to(q.dtype).repeat(q.shape[0] // len(bias), 1, 1)
    found: Tensor = torch.baddbmm(repeated, q, k.mT, alpha=q.shape[-1] ** -0.5).softmax(-1) @ v
    return found


def masked(bias: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by torch's fused attention."""
    q, k, v = (part.view(-1, len(bias), *part.shape[1:]) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)).flatten(0, 1)


def line(
    dtype: torch.dtype, runs: int, name: str, parts: tuple[Tensor, ...], one: Attend, other: Attend
) -> list[str | float]:
    """One row of the table."""
    parts = tuple(part.to(dtype) for part in parts)
    with torch.no_grad():
        apart = float((one(*parts) - other(*parts)).abs().max())
        forward = timed(parts, runs, (one, other), gradient=False)
    for tensor in parts:
        tensor.requires_grad_()
    both = timed(parts, runs, (one, other), gradient=True)
    return [name, str(dtype).removeprefix("torch."), parts[1].shape[-2], *forward, *both, apart]


def timed(parts: tuple[Tensor, ...], runs: int, ways: tuple[Attend, Attend], *, gradient: bool) -> list[float]:
    """Milliseconds plain, milliseconds fused, and their ratio."""

    def run(attend: Attend) -> None:
        found = attend(*parts)
        if gradient:
            found.sum().backward()  # type: ignore[no-untyped-call]

    took = median(interleaved({str(i): partial(run, attend) for i, attend in enumerate(ways)}, runs))
    return [took["0"] * 1e3, took["1"] * 1e3, took["0"] / took["1"]]


if __name__ == "__main__":
    main()
