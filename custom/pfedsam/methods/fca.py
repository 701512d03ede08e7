"""FCA (arXiv 2504.18020): an adapter's common units follow the federation, its individual units stay at the site.

A unit is one direction of a LoRA: a row of A and the column of B that it feeds. Its score is the cosine of the site's
move in its last round with the mean move. Binary (BFU): the units with the highest scores are common. Soft (SFU):
w_k <- m w_glob + (1 - m) w_k. Built from a description, without the paper's equations. Our choices: what a unit is,
the cosine, m = sigmoid(sharpness * score), that a site sends m times its update, and that the decoder is common. So an
individual unit does not leave its site, and counts as not moved in the mean.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.methods import ditto, fedavg
from pfedsam.methods.base import Here, Told, keep_trained, shared_alone
from pfedsam.model.partition import Kind, kinds
from pfedsam.model.segmenter import Branches, Segmenter
from pfedsam.tensors import Tensors, below, under
from pfedsam.train.loop import RoundReport

COMMON, BEGAN, MOVE, BEFORE = "common/", "began/", "move/", "before/"


@dataclass(frozen=True)
class Settings:
    """FCA's own settings. All are our choice: the paper's values are not known."""

    split: Literal["binary", "soft"] = "binary"  # BFU or SFU
    common: float = number(0.5, least=0, most=1)  # binary: the share of units that are common
    sharpness: float = number(1.0, least=0, most=1000)  # soft: the factor on the score


@torch.no_grad()
def merge(model: Branches, config: Config, here: Here) -> None:
    """Set each unit between the received and the site's own. In the site's first round all units are common."""
    ditto.merge(model, config, here)
    arrived, own = model.received, dict(model["personal"].named_parameters())
    before = {name: tensor.to(arrived[name].device) for name, tensor in below(BEFORE, here.memory).items()}
    model.received = under(BEFORE, arrived)
    if here.dice is None or not before:
        return
    moves = {name: tensor.to(arrived[name].device) for name, tensor in below(MOVE, here.memory).items()}
    means = {name: arrived[name] - before[name] for name in moves}
    shares = common_shares(torch.stack(scores(pairs(model["global"]), moves, means)), config.own(Settings))
    live = dict(model["global"].named_parameters())
    for (a, b), share in zip(pairs(model["global"]), shares, strict=True):
        for name, m in ((a, share[:, None]), (b, share[None, :])):
            live[name].copy_(m * arrived[name] + (1 - m) * own[name])
            model.received |= {COMMON + name: m}
    model.received |= {BEGAN + name: live[name].clone() for name in moves}


def pairs(branch: Segmenter) -> Iterator[tuple[str, str]]:
    """The names of A and B of each LoRA."""
    return ((n, n.replace(".a.weight", ".b.weight")) for n, kind in kinds(branch).items() if kind is Kind.LORA_A)


def scores(named: Iterator[tuple[str, str]], moves: Tensors, means: Tensors) -> list[Tensor]:
    """The cosine of the site's move and the mean move in each unit, (rank,) for each LoRA. 0 if one is zero."""
    found = []
    for a, b in named:
        own, mean = (torch.cat([one[a], one[b].T], dim=1) for one in (moves, means))  # (rank, in + out)
        found.append(torch.cosine_similarity(own, mean, dim=1).round(decimals=6))  # threads must not change an order
    return found


def common_shares(score: Tensor, own: Settings) -> Tensor:
    """m of each unit, in 0..1, from the scores of all units, of any shape: how far it follows the federation."""
    if own.split == "soft":
        return torch.sigmoid(own.sharpness * score)
    best = score.flatten().argsort(descending=True, stable=True)[: round(own.common * score.numel())]
    return torch.zeros_like(score.flatten()).index_fill(0, best, 1.0).reshape(score.shape)


def sends(model: Branches, _config: Config, update: Tensors) -> Tensors:
    """m times the update of each unit, and all of the decoder's."""
    common = below(COMMON, model.received)
    return {name: tensor * common[name].cpu() if name in common else tensor for name, tensor in update.items()}


@torch.no_grad()
def tell(model: Branches, _config: Config, _here: Here, _report: RoundReport) -> Told:
    """The site remembers its units' moves and the model that it was sent. Its personal branch is what it trained."""
    keep_trained(model)
    live, before = dict(model["global"].named_parameters()), below(BEFORE, model.received)
    began = before | below(BEGAN, model.received)
    units = {name for pair in pairs(model["global"]) for name in pair}
    moves = {name: live[name] - began[name] for name in units}
    return Told(memory=under(MOVE, moves) | under(BEFORE, {name: before[name] for name in units}))


METHOD = replace(
    ditto.METHOD, loss=fedavg.losses, merge=merge, sends=sends, tell=tell, phase=shared_alone, settings=Settings
)
