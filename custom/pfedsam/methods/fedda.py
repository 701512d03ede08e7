"""FedDA (arXiv 2509.23907): a site's features are made alike the received model's by a discriminator that stays there.

The discriminator learns to tell the features of the model in training from the received model's on the same images. The
encoder learns to be mistaken for the received one: it gets the discriminator's gradient turned round. The server takes
the mean. Built from a description, without the paper's equations. Our choices: the features are the encoder's
embedding, judged place by place by two layers; the gradient is turned round in one step instead of two in turn.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods import fedavg
from pfedsam.methods.base import Here, copy_trained
from pfedsam.model.aside import Aside
from pfedsam.model.partition import Declaration, Kind, Part
from pfedsam.model.segmenter import Branches, Segmenter, twin
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.step import Losses


@dataclass(frozen=True)
class Settings:
    """FedDA's own settings. Both are our choice: the paper's values are not known."""

    weight: float = number(0.1, least=0, most=1000)  # of the turned gradient in the encoder
    width: int = number(64, least=1, most=4096)  # of the discriminator's inner layer


def branches(segmenter: Segmenter, config: Config) -> Branches:
    """The global branch, the received model beside it on the same base, and the discriminator."""
    model = Branches(**{"global": segmenter, "received": twin(segmenter, keep=lambda p: not p.requires_grad)})
    width = config.own(Settings).width
    inner, outer = nn.Conv2d(segmenter.encoder.channels, width, 1), nn.Conv2d(width, 1, 1)
    model.aside = Aside(nn.Sequential(inner, nn.LeakyReLU(0.2), outer))
    return model


def declare(_: Config) -> Declaration:
    """The global branch is shared, the discriminator private. The received model is not trained."""
    parts = {"global": Part.SHARED, "received": Part.FROZEN}
    return lambda branch, kind: Part.PRIVATE if kind is Kind.ASIDE else parts[branch]


def merge(model: Branches, _config: Config, _here: Here) -> None:
    """Copy the received model to the branch beside the global one."""
    copy_trained(model, "received")


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss and the discriminator's, scalars by name."""
    own = model.embeddings(batch.image, ("global",), stemmed=batch.stemmed)["global"]
    with torch.no_grad():
        there = model.embeddings(batch.image, ("received",), stemmed=batch.stemmed)["received"]
    judge = cast(Aside, model.aside).net
    told = told_apart(judge(turned(own.float(), config.own(Settings).weight)), judge(there.float()))
    return {"global": segmentation_loss(model["global"].decode(own), batch, config.train), "told": told}


def turned(x: Tensor, weight: float) -> Tensor:
    """`x` itself, with its gradient turned round and times `weight` (Ganin and Lempitsky 2015)."""
    return (1 + weight) * x.detach() - weight * x


def told_apart(own: Tensor, there: Tensor) -> Tensor:
    """The discriminator's cross-entropy, a scalar, from its logits. It should say 1 to the site's own features."""
    return (softplus(-own).mean() + softplus(there).mean()) / 2


METHOD = replace(
    fedavg.METHOD, build=branches, declare=declare, loss=losses, terms=("told",), merge=merge, settings=Settings
)
