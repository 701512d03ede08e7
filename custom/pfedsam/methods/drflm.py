"""DRFLM (arXiv 2204.07742): sites that lose most count most, and each site mixes its images.

The server solves min over w, max over lambda of sum_k lambda_k f_k(w): lambda_k <- lambda_k exp(eta loss_k), scaled to
a sum of 1. Sites minimise their loss on mixed images, x = l x_i + (1 - l) x_j. Built from a description, without the
paper's equations. Our choices: lambda begins at n_k / n and weighs the mean of all sites instead of drawing some; the
loss on a mixed image is l times that of mask i and 1 - l times that of mask j; j is the batch's image before i; l is
uniform in 1 - `mix` to 1; no lambda is above `server.most_share` equal shares or below a hundredth of one. So a site
gains little by claiming a high loss, however many rounds it does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.exchange.bounded import fair, shares, with_new
from pfedsam.exchange.schema import Schema, Spec
from pfedsam.exchange.server import Contribution, ServerState, mean
from pfedsam.methods import fedavg
from pfedsam.methods.base import Here, Told, uncached
from pfedsam.model.segmenter import Branches
from pfedsam.tensors import below, under
from pfedsam.train.loop import RoundReport
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.step import Losses

LOSS, LAMBDA = "loss", "lambda/"
BOUND = 10.0  # of a mean loss: a working one is smaller
LEAST = 0.01  # of an equal share: a site's least lambda, from which it can rise again


@dataclass(frozen=True)
class Settings:
    """DRFLM's own settings. Both are our choice: the paper's values are not known."""

    eta: float = number(0.5, least=0, most=10)  # how fast weights follow the losses; 0: they stay n_k / n
    mix: float = number(0.3, least=0, most=1)  # the most of another image that is mixed in; 0: none


def up(_shared: Schema, _config: Config) -> Schema:
    """The round's mean loss, beside the update."""
    return {LOSS: Spec((1,), torch.float32, BOUND)}


def tell(_model: Branches, _config: Config, _here: Here, report: RoundReport) -> Told:
    """The site sends its mean loss and remembers nothing."""
    return Told({LOSS: torch.tensor([min(sum(report.losses.values()), BOUND)])})


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss on mixed images, a scalar by name."""
    most = config.own(Settings).mix
    if not most or len(batch.image) < 2:
        return fedavg.losses(model, batch, config)
    share = 1 - most * torch.rand((), device=batch.image.device)
    logits = model(mixed(batch.image, share), ("global",), stemmed=batch.stemmed)["global"]
    own = segmentation_loss(logits, batch, config.train)
    other = segmentation_loss(logits, replace(batch, label=batch.label.roll(1, 0)), config.train)
    return {"global": share * own + (1 - share) * other}


def mixed(image: Tensor, share: Tensor) -> Tensor:
    """(B, ...): each image's share of itself, and the rest of the one before it in the batch."""
    return share * image + (1 - share) * image.roll(1, 0)


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """The model moved by the mean weighted by lambda. The state's memory keeps lambda."""
    most = config.server.most_share
    weights = followed(below(LAMBDA, state.memory), contributions, config.own(Settings).eta, most)
    given = {site: replace(one, samples=weights[site]) for site, one in contributions.items()}
    after = mean(state, fair(given, most, state.sites), config)
    return replace(after, memory=under(LAMBDA, {site: torch.tensor([w]) for site, w in weights.items()}))


def followed(
    past: Mapping[str, Tensor], given: Mapping[str, Contribution], eta: float, most: float
) -> dict[str, float]:
    """Each known site's lambda after a round. Losses count from their mean, so a site that was away keeps its place.

    Args:
        most: a lambda's most, in equal shares.
    """
    told = {site: float(one.extras[LOSS].clamp(0, BOUND)) for site, one in given.items()}
    usual = sum(told.values()) / len(told)
    found = with_new({site: float(weight) for site, weight in past.items()}, given)
    found |= {site: found[site] * math.exp(eta * (loss - usual)) for site, loss in told.items()}
    return shares(found, most=most, least=LEAST)


METHOD = replace(fedavg.METHOD, loss=losses, up=up, tell=tell, augment=uncached, rule=rule, settings=Settings)
