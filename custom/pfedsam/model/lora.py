"""Low-rank adaptation of a linear layer, with room for the L-MoE in its bottleneck.

    h = A x,    out = W0 x + (alpha / r) B mix(h)                 experts in the shared bottleneck
    h = A x,    out = W0 x + (alpha / r) B h + B' mix(A' x)       experts in a bottleneck of their own

LoRA is Hu et al. 2022. Conv-LoRA (Zhong et al. 2024) puts experts into the bottleneck. pFedSAM's
Figure 1 draws the same chain, "LoRA enc -> L-MoE -> LoRA dec". The second form is ours: between shared A and B,
an expert can only recombine the r directions that all sites agree on.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn


class LoRA(nn.Module):
    """The trained detour (alpha / r) * B mix(A x), zero at the start because B is zero.

    Args:
        d_in: width of the input.
        d_out: width of the output (3 d for a fused qkv).
        rank: r, width of the bottleneck.
        alpha: numerator of the scale.

    A method may mark it `early`, as one of the encoder's first, which gives its factors kinds of their own. `share` is
    how much of the detour is taken (`taking`).
    """

    def __init__(self, d_in: int, d_out: int, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.early, self.share = False, 1.0
        self.a = nn.Linear(d_in, rank, bias=False)
        self.b = nn.Linear(rank, d_out, bias=False)
        self.mix: nn.Module | None = None
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.b.weight)

    @property
    def strength(self) -> float:
        """The factor of B mix(A x): alpha / r, and the share that is taken."""
        return self.scale * self.share

    def narrow(self, x: Tensor) -> Tensor:
        """mix(A x), the bottleneck, (B, ..., r), from tokens (B, ..., d_in). Experts need maps, (B, H, W, d_in)."""
        h: Tensor = self.a(x)
        return h if self.mix is None else self.mix(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def draw(self, generator: torch.Generator) -> None:
        """Draw the weights again: A at random, B zero (Hu et al. 2022, section 4.1)."""
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.b.weight)

    def without_mix(self, x: Tensor) -> Tensor:
        """(alpha / r) B A x, whatever the bottleneck holds."""
        return cast(Tensor, self.b(self.a(x))) * self.strength


class LoRALinear(nn.Module):
    """A frozen `Linear` and its detours. It replaces the `Linear` in its module.

    `own` is the site's own detour, if it has one. Several branches on one base run as one batch. `beside` then holds
    the places of the second and later branches, each for its share of the batch.
    """

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora = LoRA(base.in_features, base.out_features, rank=rank, alpha=alpha)
        self.own: LoRA | None = None
        self.beside: tuple[Adapted, ...] = ()  # a tuple, so that these count as their own branch's modules alone

    @property
    def bias(self) -> Tensor:
        """The output for a zero token: the base's bias, as the detour has none."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """W0 x + detour(x), (B, ..., d_out), from tokens (B, ..., d_in). Experts need maps, (B, H, W, d_in)."""
        return _detoured(self, x, cast(Tensor, self.base(x)))

    def constant(self, token: Tensor) -> Tensor:
        """The output for a padded token, (branches, d_out). Experts see only the image's own tokens."""
        return torch.stack([self.base(token) + _without_experts(place, token) for place in (self, *self.beside)])


class PostAdapter(nn.Module):
    """The figure read literally: one LoRA after the frozen encoder, on its embedding.

    embedding + (alpha / r) B mix(A embedding). We call it the "post" reading.
    """

    def __init__(self, channels: int, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.lora = LoRA(channels, channels, rank=rank, alpha=alpha)
        self.own: LoRA | None = None
        self.beside: tuple[Adapted, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = x.permute(0, 2, 3, 1)
        return _detoured(self, tokens, tokens).permute(0, 3, 1, 2)


Adapted = LoRALinear | PostAdapter


def _detoured(place: Adapted, x: Tensor, straight: Tensor) -> Tensor:
    """`straight` plus each branch's detours of its share of the batch `x`, (B, ..., d_out) and (B, ..., d_in).

    All branches' products with B, and the sum, are one batched product.
    """
    places = (place, *place.beside)
    shares = x.chunk(len(places)) if place.beside else (x,)  # a single branch's graph fits any batch size
    narrow = torch.stack([p.lora.narrow(share).flatten(0, -2) for p, share in zip(places, shares, strict=True)])
    widened = torch.stack([p.lora.b.weight.mT for p in places])
    apart = straight.reshape(len(places), -1, straight.shape[-1])
    out = torch.baddbmm(apart, narrow, widened, alpha=place.lora.scale)
    for i, (p, share) in enumerate(zip(places, shares, strict=True)):
        if p.own is not None:
            narrowed, back = p.own.narrow(share).flatten(0, -2), p.own.b.weight.mT
            out[i].addmm_(narrowed.to(out.dtype), back.to(out.dtype), alpha=p.own.strength)
    return out.view(straight.shape)


def _without_experts(place: Adapted, x: Tensor) -> Tensor:
    """All that a place's detours add without any expert, (..., d_out). An own detour without experts counts."""
    shared = place.lora.without_mix(x)
    return shared + place.own.without_mix(x) if place.own is not None and place.own.mix is None else shared


def added(place: Adapted, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a place adds to its frozen output for `x`, its own branch alone: by the shared adapter, and by experts."""
    tokens = x.permute(0, 2, 3, 1) if isinstance(place, PostAdapter) else x
    shared = place.lora.without_mix(tokens)
    experts = cast(Tensor, place.lora.b(place.lora.narrow(tokens))) * place.lora.scale - shared
    if place.own is not None:
        experts = experts + cast(Tensor, place.own.b(place.own.narrow(tokens))) * place.own.strength
    return shared, experts


def taking(module: nn.Module, share: float) -> None:
    """From now on the places below `module` take this share of what their own detours add.

    With 0 the branch is the one without them, between 0 and 1 its weights lie between the two. Half is the default of
    WiSE-FT (Wortsman et al. 2022), which goes so from a model before fine-tuning to the one after.
    """
    for place in adapted(module):
        if place.own is not None:
            place.own.share = share


def adapted(module: nn.Module) -> list[Adapted]:
    """Every module below `module` that holds a LoRA, in the order of the forward pass."""
    return [m for m in module.modules() if isinstance(m, Adapted)]


@contextmanager
def side_by_side(lead: nn.Module, others: Sequence[nn.Module]) -> Iterator[None]:
    """Within the context, `lead` puts each equal share of its batch through the detours of that share's branch.

    Args:
        lead, others: encoders of the same structure on the same frozen base.
    """
    places = adapted(lead)
    for place, *rest in zip(places, *(adapted(other) for other in others), strict=True):
        place.beside = tuple(rest)
    try:
        yield
    finally:
        for place in places:
            place.beside = ()


def loras(module: nn.Module) -> list[LoRA]:
    """Every LoRA below `module`, in the order of the forward pass."""
    return [m for m in module.modules() if isinstance(m, LoRA)]
