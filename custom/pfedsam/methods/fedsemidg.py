"""FedSemiDG (FGASL, arXiv 2501.07378): few labels, many images without, and a model that also serves unknown sites.

Aggregation follows generalisation: w_k <- normalise(w_k + step gap_k), where the gap is the received model's loss less
the own model's on the site's labelled data. Two teachers, the received model and the moving average of the site's own,
label pixels where both are sure and agree. Features should not change under a perturbation. Built from a description.
All numbers, the perturbation, the cosine and `trust` are our choice, as an untrained model is sure of background alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
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
from pfedsam.train.pseudo import agreed, average_of, mean_loss, move, perturbed, pseudo_loss, taught
from pfedsam.train.step import Losses

SENT, AVERAGE, TRUST, STEPS, WEIGHT, GAP = "sent/", "average/", "trust", "steps", "weight/", "gap"
MOST = 10.0  # of a gap's size
JUDGED = 64  # slices that a gap is measured on, at most


@dataclass(frozen=True)
class Settings:
    """FedSemiDG's own settings. All are our choice."""

    step: float = number(0.1, least=0, most=1)  # of the weights along the gaps, in a round
    decay: float = number(0.99, least=0, below=1)  # of the moving average, in a step
    sure: float = number(0.8, least=0.5, below=1)  # probability from which on a teacher counts
    pseudo_weight: float = number(0.5, least=0, most=1_000_000)  # of the loss on pseudo-labels, once they have it all
    trust: float = number(0.25, above=0, most=1)  # the part of that weight that they gain with each round of a site
    align_weight: float = number(0.1, least=0, most=1_000_000)  # of the alignment under perturbation


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss, the loss on pseudo-labels of a perturbed image, and the alignment. Scalars by name."""
    own, student = config.own(Settings), model["global"]
    clean, changed = student.encoder(batch.image), student.encoder(perturbed(batch.image, config.model.pixels))
    one, other = (taught(student, below(key, model.received), batch) for key in (SENT, AVERAGE))
    target, known = agreed(one, other, own.sure, exclusive=config.model.exclusive)
    pseudo = pseudo_loss(student.decode(changed), target, known, batch, exclusive=config.model.exclusive)
    return {
        "global": segmentation_loss(student.decode(clean), batch, config.train),
        "pseudo": own.pseudo_weight * model.received[TRUST] * pseudo,
        "align": own.align_weight * (1 - F.cosine_similarity(changed, clean.detach(), dim=1)).mean(),
    }


def merge(model: Branches, _config: Config, here: Here) -> None:
    """Keep the received model, and the moving average as the site left it. Without one it begins at the received."""
    average = average_of(model["global"], below(AVERAGE, here.memory))
    model.received = under(SENT, average_of(model["global"], {})) | under(AVERAGE, average)
    for name in (TRUST, STEPS):
        model.received[name] = here.memory.get(name, torch.zeros(())).clone().to(next(model.parameters()).device)


def stepped(model: Branches, config: Config) -> None:
    """Move the average towards the site's model, in place."""
    move(below(AVERAGE, model.received), model["global"], config.own(Settings).decay, model.received[STEPS])


def tell(model: Branches, config: Config, here: Here, _report: RoundReport) -> Told:
    """The gap goes up. The moving average stays."""
    trust = (model.received[TRUST] + config.own(Settings).trust).clamp(max=1)
    kept = under(AVERAGE, below(AVERAGE, model.received)) | {TRUST: trust, STEPS: model.received[STEPS]}
    return Told({GAP: gap_of(model, config, here).clamp(-MOST, MOST)}, kept)


def gap_of(model: Branches, config: Config, here: Here) -> Tensor:
    """The received model's loss less the own one's, (1), on labelled slices without augmentation. 0 without any."""
    assert here.data is not None
    slices, student = here.data.labelled(), model["global"]
    some, device = slices[:: max(1, -(-len(slices) // JUDGED))], next(model.parameters()).device
    received = mean_loss(partial(taught, student, below(SENT, model.received)), here.data, some, device)
    own = mean_loss(lambda batch: student(batch.image), here.data, some, device)
    return (received - own).reshape(1)


def gap_schema(_shared: Schema, _config: Config) -> Schema:
    """One number goes up: the gap."""
    return {GAP: Spec((1,), torch.float32, most=MOST)}


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """The model moved by the updates' mean, with weights that follow the gaps. They begin as the samples' shares.

    No site weighs more than `server.most_share` allows, and the memory keeps no higher weight. A site that is away
    keeps its weight beside the others'.
    """
    own, most = config.own(Settings), config.server.most_share
    past = {site: float(weight) for site, weight in below(WEIGHT, state.memory).items()}
    found = with_new(past, contributions)
    found |= {site: max(0.0, found[site] + own.step * float(one.extras[GAP])) for site, one in contributions.items()}
    kept = shares(found, most=most, sites=state.sites)
    weighed = {site: replace(one, samples=kept[site]) for site, one in contributions.items()}
    memory = state.memory | {WEIGHT + site: torch.tensor([share]).double() for site, share in kept.items()}
    return replace(mean(state, fair(weighed, most, state.sites), config), memory=memory)


LOCAL = replace(fedavg.METHOD, loss=losses, terms=("pseudo", "align"), merge=merge, stepped=stepped, settings=Settings)
METHOD = replace(LOCAL, tell=tell, rule=rule, up=gap_schema, augment=uncached, unlabelled=True)
