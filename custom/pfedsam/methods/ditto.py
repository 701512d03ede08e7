"""Ditto (Li et al. 2021, algorithm 1): a shared branch trained as in FedAvg, and beside it a private one
that is pulled towards what the server sent, lambda / 2 |v - w_t|^2. No experts, no distillation."""

from dataclasses import dataclass

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods.base import Method, distance, note_received
from pfedsam.model.partition import Declaration, Part
from pfedsam.model.segmenter import Branches, Segmenter, twin
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.step import Losses


@dataclass(frozen=True)
class Settings:
    """Ditto's own."""

    lam: float = number(0.01, least=0, most=1_000_000)  # lambda; our choice: the paper tunes it


def branches(segmenter: Segmenter, _: Config) -> Branches:
    """Two branches on one frozen base, equal at the start."""
    return Branches(**{"global": segmenter, "personal": twin(segmenter, keep=lambda p: not p.requires_grad)})


def declare(_: Config) -> Declaration:
    """A branch each."""
    return lambda branch, _kind: Part.SHARED if branch == "global" else Part.PRIVATE


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss of both branches, and the private one's pull."""
    logits = model(batch.image, stemmed=batch.stemmed)
    found = {name: segmentation_loss(logits[name], batch, config.train) for name in model.names()}
    return found | {"prox": config.own(Settings).lam / 2 * distance(model["personal"], model.received)}


METHOD = Method(branches, declare, losses, note_received, personal="personal", global_="global", settings=Settings)
