"""Dual LoRA (Med-DualLoRA's idea, arXiv 2603.10967): a global and a local LoRA add up, and only the global travels.

One loss trains both. pFedSAM with `model.experts=0` is the same model, but it also trains the global branch on a loss
of its own and distils between the two. Our choices: the decoder is shared, and the local rank.
"""

from dataclasses import dataclass, replace

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods import ditto
from pfedsam.methods.fedavg import merge
from pfedsam.model.build import own_detour
from pfedsam.model.lora import adapted
from pfedsam.model.segmenter import Branches, Segmenter, twin
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.step import Losses


@dataclass(frozen=True)
class Settings:
    """The method's own settings."""

    local_rank: int = number(4, least=1, most=1024)  # of the local LoRA, with an alpha of the same; our choice


def branches(segmenter: Segmenter, config: Config) -> Branches:
    """One model, with the local LoRA in the personal branch and without it in the global one."""
    personal, rank = twin(segmenter, keep=lambda _: True), config.own(Settings).local_rank
    for place in adapted(personal):
        place.own = own_detour(place, rank)
    return Branches(**{"global": segmenter, "personal": personal})


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss of the sum of both LoRA, a scalar by name."""
    logits = model(batch.image, ("personal",), stemmed=batch.stemmed)["personal"]
    return {"personal": segmentation_loss(logits, batch, config.train)}


METHOD = replace(ditto.METHOD, build=branches, loss=losses, merge=merge, settings=Settings)
