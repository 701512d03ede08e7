"""pFedSAM (arXiv 2509.15638): a shared global branch, a personal branch with private experts, and
distillation between the two. The readings of "what is local" are in docs/method.md."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.errors import UserFault
from pfedsam.methods.base import Dice, Here, Method
from pfedsam.model import build
from pfedsam.model.encoder import adapt_after
from pfedsam.model.moe import balance_term
from pfedsam.model.partition import Declaration, Kind, Part, kinds
from pfedsam.model.segmenter import Branches, Segmenter, twin
from pfedsam.train.distill import Direction, distillation, teaches
from pfedsam.train.losses import annotated, segmentation_loss
from pfedsam.train.step import Losses

Reading = Literal["R1", "R2", "R3", "post"]
OTHER = {"global": "personal", "personal": "global"}


@dataclass(frozen=True)
class Settings:
    """pFedSAM's own settings. A newcomer has them too, but uses only `reading`."""

    reading: Reading = "R2"  # which reading of the paper's "local": docs/method.md
    distill: Direction = "mutual"  # our choice: the figure's arrows are symmetric
    distill_weight: float = number(0.1, least=0, below=1)  # DSFedMed: 0.1 beside 0.9 on the supervised terms
    temperature: float = number(1.0, above=0, most=1000)  # DSFedMed
    recopy: float = number(1.0, least=0, most=1)  # how far R3 moves A, B and decoder to the server's; our switch
    recopy_if: Literal["better", "always"] = "better"  # only if the server's model validates higher; our choice
    recopy_margin: float = number(0.0, least=0, most=1)  # how much higher, in Dice; our switch

    def __post_init__(self) -> None:
        if self.recopy_margin and self.recopy_if == "always":
            raise UserFault(
                expected="method.recopy_margin 0 with method.recopy_if always, which compares nothing",
                came=str(self.recopy_margin),
                do="set method.recopy_if better, or leave the margin out",
            )


def adapters(branch: Segmenter, config: Config) -> None:
    """Put LoRA into the encoder's attention blocks, or after the encoder (reading post)."""
    if config.own(Settings).reading == "post":
        adapt_after(branch.encoder, rank=config.model.lora_rank, alpha=config.model.lora_alpha)
    else:
        build.lora(branch, config)


def branches(segmenter: Segmenter, config: Config) -> Branches:
    """Figure 1's two branches on one frozen base. In R2 they also have A, B and decoder in common."""
    one_model = config.own(Settings).reading == "R2"
    personal = twin(segmenter, keep=lambda p: one_model or not p.requires_grad)
    if config.model.l_moe:
        build.add_experts(personal, config.model)
    return Branches(**{"global": segmenter, "personal": personal})


def declare(_: Config) -> Declaration:
    """What the global branch trains is shared, what the personal branch trains is private (Figure 1's mark)."""
    return lambda branch, kind: Part.SHARED if branch == "global" and kind is not Kind.EXPERT else Part.PRIVATE


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """L_G, L_P (Figure 1) and the balance term, scalars. Each L is (1 - lambda) L_seg + lambda T^2 KL(teacher||own).

    The personal branch also learns the classes that its site does not label, from the global one. This is our choice,
    because nothing else teaches it them. The global branch learns them from the other sites.
    """
    own, logits = config.own(Settings), model(batch.image, stemmed=batch.stemmed)
    out = {}
    for name, teacher in OTHER.items():
        out[name] = segmentation_loss(logits[name], batch, config.train)
        if own.distill_weight and teaches(teacher, name, own.distill):
            weight = own.distill_weight
            pair = logits[name], logits[teacher]
            if name == "global":
                pair = annotated(pair[0], batch), annotated(pair[1], batch)
            known = distillation(*pair, own.temperature, exclusive=config.model.exclusive)
            out[name] = (1 - weight) * out[name] + weight * known
    return out | {"balance": config.train.balance_weight * balance_term(model["personal"])}


@torch.no_grad()
def merge(model: Branches, config: Config, here: Here) -> None:
    """R3 and post: copy A, B and decoder from the received model to the personal branch, if that model is better.

    Better means a higher Dice on the site's validation split, by more than `method.recopy_margin`. This is our choice,
    because a site unlike the others loses by a copy each round (`method.recopy_if=always`). With `method.recopy` below
    1, they move only that part of the way. R1 copies once. R2 has nothing to copy. The site keeps its experts.
    """
    own = config.own(Settings)
    if own.reading == "R2" or (here.dice and stays(own, here.dice)):
        return
    share = own.recopy if here.dice else 1.0
    target = dict(model["personal"].named_parameters())
    kind = kinds(model["global"])
    for name, source in model["global"].named_parameters():
        if kind[name] is not Kind.BASE:
            target[name].lerp_(source, share)


def stays(own: Settings, dice: Dice) -> bool:
    """Whether a site keeps its personal branch. It does not if nothing could be scored."""
    asks = own.recopy_if == "better"
    return own.reading == "R1" or (asks and dice("global") <= dice("personal") + own.recopy_margin)


LOCAL = Method(branches, declare, losses, merge, personal="personal", global_="global", terms=("balance",))
METHOD = replace(LOCAL, adapt=adapters, settings=Settings)
