"""IAT with SOR ("Orthogonal Inverse LoRA", arXiv 2606.08687): LoRA in encoder and decoder. The encoder shares B and
keeps A, the decoder shares A and keeps B. The shared factor learns orthogonally to the private factor's drift.

Built from a description, without the paper's equations. Our choices: the regulariser's r x r products, LoRA on the
decoder's query and value projections, drift within a round, and `SHORT`. Of the decoder's other parameters only tokens
and last norms are trained, our choice too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods import fedavg
from pfedsam.methods.base import note_received
from pfedsam.model.build import lora
from pfedsam.model.lora import LoRALinear
from pfedsam.model.partition import Declaration, Kind, Part, kinds
from pfedsam.model.segmenter import Branches, Segmenter
from pfedsam.train.step import Losses

PARTS = {Kind.LORA_A: Part.PRIVATE, Kind.DECODER_LORA_B: Part.PRIVATE}  # others: shared
PARTS |= {Kind.DECODER: Part.FROZEN, Kind.DECODER_WIDENING: Part.FROZEN}
DECAY = 0.9  # of the drift's moving average, a step
SHORT = 1e-3  # a move by less of its adapter has no direction: weight decay and rounding make such moves


@dataclass(frozen=True)
class Settings:
    """IAT's own settings."""

    orthogonal_weight: float = number(0.1, least=0, most=1_000_000)  # the regulariser's; our choice: not known


def adapters(branch: Segmenter, config: Config) -> None:
    """Put LoRA into the encoder, as in the other methods, and into the decoder's attention."""
    lora(branch, config)
    rank, alpha = config.model.lora_rank, config.model.lora_alpha
    for attention in [m for m in branch.decoder.modules() if isinstance(m, Attention)]:
        attention.q_proj = LoRALinear(attention.q_proj, rank=rank, alpha=alpha)
        attention.v_proj = LoRALinear(attention.v_proj, rank=rank, alpha=alpha)


def declare(_: Config) -> Declaration:
    """The encoder's A and the decoder's B are private, the decoder's pretrained weights frozen, all else is shared."""
    return lambda _branch, kind: PARTS.get(kind, Part.SHARED)


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss and the shift-orthogonal regulariser, its mean over the adapters. Scalars by name."""
    overlaps = torch.stack([overlap(*found) for found in moves(model)])
    weight = config.own(Settings).orthogonal_weight
    return fedavg.losses(model, batch, config) | {"orthogonal": weight * overlaps.mean()}


def moves(model: Branches) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each adapter B's move, A, B and A's move, as `overlap` takes them. The shared factor's move counts from the
    round's start and has a gradient. The private factor's move is its drift, a moving average. All else is detached."""
    live, kind = dict(model["global"].named_parameters()), kinds(model["global"])
    for name in [n for n, k in kind.items() if k in (Kind.LORA_B, Kind.DECODER_LORA_B)]:
        b, a = live[name], live[other := name.replace(".b.weight", ".a.weight")]
        if kind[name] is Kind.LORA_B:
            yield b - model.received[name], a.detach(), b.detach(), drift(model, other, a)
        else:
            yield drift(model, name, b), a.detach(), b.detach(), a - model.received[other]


def drift(model: Branches, name: str, now: Tensor) -> Tensor:
    """The moving average, one step on, of a private factor's distance from the round's start. It changes in place, so
    that a replayed step continues it."""
    key, way = f"{name}/drift", now.detach() - model.received[name]
    return model.received.setdefault(key, torch.zeros_like(way)).lerp_(way, 1 - DECAY)


def overlap(move_b: Tensor, a: Tensor, b: Tensor, move_a: Tensor) -> Tensor:
    """The squared cosine of the updates (move_b a) and (b move_a) in weight space, near 0 if one is short.

    The shorter its vectors, the steeper is a cosine. Without this damping the first tiny moves would outweigh the rest.
    <move_b a, b move_a> = tr((move_b' b)(move_a a')), r x r. The norms are alike. B: (out, r), A: (r, in).
    """
    inner, short = ((move_b.T @ b) * (a @ move_a.T)).sum(), SHORT**2 * ((b.T @ b) * (a @ a.T)).sum()
    one, other = ((move_b.T @ move_b) * (a @ a.T)).sum(), ((b.T @ b) * (move_a @ move_a.T)).sum()
    return inner.square() / ((one + short) * (other + short)).clamp_min(1e-30)


METHOD = replace(
    fedavg.METHOD,
    declare=declare,
    loss=losses,
    terms=("orthogonal",),
    merge=note_received,
    adapt=adapters,
    decoder_lora=False,
    couples=True,  # by the drift
    drawn=True,
    settings=Settings,
)
