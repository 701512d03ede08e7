"""pFedSAM (arXiv 2509.15638): a shared global branch, a personal branch with private experts, and
distillation between the two. The readings of "what is local" are in docs/method.md."""

import torch

from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods.base import Dice, Here, Method
from pfedsam.model import build
from pfedsam.model.moe import balance_term
from pfedsam.model.partition import Declaration, Kind, Part, kinds
from pfedsam.model.segmenter import Branches, Segmenter, twin
from pfedsam.train.distill import distillation, teaches
from pfedsam.train.losses import annotated, segmentation_loss
from pfedsam.train.step import Losses

OTHER = {"global": "personal", "personal": "global"}


def branches(segmenter: Segmenter, config: Config) -> Branches:
    """Figure 1's two branches on one frozen base; in R2 they have A, B and decoder in common too."""
    one_model = config.reading == "R2"
    personal = twin(segmenter, keep=lambda p: one_model or not p.requires_grad)
    if config.model.experts:
        build.add_experts(personal, config.model)
    return Branches(**{"global": segmenter, "personal": personal})


def declare(_: Config) -> Declaration:
    """Everything trained in the global branch is shared, everything in the personal one private."""
    return lambda branch, kind: Part.SHARED if branch == "global" and kind is not Kind.EXPERT else Part.PRIVATE


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """L_G + L_P: each (1 - lambda) L_seg + lambda T^2 KL(teacher || student); L_P plus the balance term.

    The personal branch is taught all classes, those too that its site's masks leave out: our choice, because it has
    them from nobody else. The global branch has them from the other sites.
    """
    logits = model(batch.image, stemmed=batch.stemmed)
    out = {}
    for name, teacher in OTHER.items():
        out[name] = segmentation_loss(logits[name], batch, config.train)
        if config.train.distill_weight and teaches(teacher, name, config.train.distill):
            weight = config.train.distill_weight
            pair = logits[name], logits[teacher]
            if name == "global":
                pair = annotated(pair[0], batch), annotated(pair[1], batch)
            known = distillation(*pair, config.train.temperature, exclusive=config.model.exclusive)
            out[name] = (1 - weight) * out[name] + weight * known
    return out | {"balance": config.train.balance_weight * balance_term(model["personal"])}


@torch.no_grad()
def merge(model: Branches, config: Config, here: Here) -> None:
    """R3 and post: A, B and decoder of the personal branch are copied anew from the server's, where that is better.

    Better on the site's own validation split than the branch it has, by more than `train.recopy_margin` of Dice: our
    choice, because a site unlike the others loses by a copy each round (`train.recopy_if=always`). With `train.recopy`
    below 1 they go that part of the way only. R1 copies once, R2 has nothing to copy; experts always stay as the site
    left them.
    """
    if config.reading == "R2" or (here.dice and stays(config, here.dice)):
        return
    share = config.train.recopy if here.dice else 1.0
    target = dict(model["personal"].named_parameters())
    kind = kinds(model["global"])
    for name, source in model["global"].named_parameters():
        if kind[name] is not Kind.BASE:
            target[name].lerp_(source, share)


def stays(config: Config, dice: Dice) -> bool:
    """Whether a site goes on with the personal branch that it has; it does not where nothing could be scored."""
    asks, margin = config.train.recopy_if == "better", config.train.recopy_margin
    return config.reading == "R1" or (asks and dice("global") <= dice("personal") + margin)


METHOD = Method(branches, declare, losses, merge, personal="personal", global_="global")
