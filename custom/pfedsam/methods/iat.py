"""IAT with SOR ("Orthogonal Inverse LoRA", arXiv 2606.08687): LoRA in encoder and decoder; the encoder shares B and
keeps A, the decoder shares A and keeps B; what the shared factor learns is held orthogonal to the private one's drift.

Built from a description, without the paper's equations. Ours are: the r x r proxies, LoRA on the decoder's
query and value projections, the rest of the decoder frozen but its tokens and last norms, drift counted within a round.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor

from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods import fedavg
from pfedsam.methods.base import note_received
from pfedsam.model.build import lora
from pfedsam.model.lora import LoRALinear
from pfedsam.model.partition import Declaration, Kind, Part, kinds
from pfedsam.model.segmenter import Branches, Segmenter
from pfedsam.train.loop import Losses

PARTS = {
    Kind.LORA_A: Part.PRIVATE,
    Kind.LORA_B: Part.SHARED,
    Kind.DECODER_LORA_A: Part.SHARED,
    Kind.DECODER_LORA_B: Part.PRIVATE,
    Kind.DECODER: Part.FROZEN,
}
DECAY = 0.9  # of the drift's moving average, a step


def adapters(branch: Segmenter, config: Config) -> None:
    """LoRA in the encoder as everywhere, and in the decoder's attention."""
    lora(branch, config)
    rank, alpha = config.model.lora_rank, config.model.lora_alpha
    for attention in [m for m in branch.decoder.modules() if isinstance(m, Attention)]:
        attention.q_proj = LoRALinear(attention.q_proj, rank=rank, alpha=alpha)
        attention.v_proj = LoRALinear(attention.v_proj, rank=rank, alpha=alpha)


def declare(_: Config) -> Declaration:
    """Which factor is whose."""
    return lambda _branch, kind: PARTS.get(kind, Part.SHARED)


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss and the shift-orthogonal regulariser, averaged over the adapters."""
    overlaps = torch.stack([overlap(shared, drift) for shared, drift in moves(model)])
    return fedavg.losses(model, batch, config) | {"orthogonal": config.train.orthogonal_weight * overlaps.mean()}


def moves(model: Branches) -> Iterator[tuple[Tensor, Tensor]]:
    """Per adapter the proxies of the shared factor's move since the round began and of the private one's drift."""
    live, kind = dict(model["global"].named_parameters()), kinds(model["global"])
    for name in [n for n, k in kind.items() if k in (Kind.LORA_B, Kind.DECODER_LORA_A)]:
        other = name.replace(".b.weight", ".a.weight") if kind[name] is Kind.LORA_B else name.replace(".a.", ".b.")
        drift = live[other].detach() - model.received[other]
        past = model.received.get(f"{other}/drift", torch.zeros_like(drift))
        model.received[f"{other}/drift"] = DECAY * past + (1 - DECAY) * drift
        yield proxy(live[name] - model.received[name]), proxy(model.received[f"{other}/drift"])


def proxy(move: Tensor) -> Tensor:
    """The Gram matrix over the bottleneck's r channels, whichever side they are on."""
    return move @ move.T if move.shape[0] < move.shape[1] else move.T @ move


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """The squared cosine of two proxies; 0 while one of them is zero."""
    return (one * other).sum().square() / (one.square().sum() * other.square().sum()).clamp_min(1e-30)


METHOD = replace(fedavg.METHOD, declare=declare, loss=losses, merge=note_received, adapt=adapters)
