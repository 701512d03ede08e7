"""Ditto (Li et al. 2021, algorithm 1): a shared branch as in FedAvg, and a private branch beside it. The pull
lambda / 2 |v - w_t|^2 keeps the private branch near what the server sent. No experts, no distillation."""

from dataclasses import dataclass

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods.base import Here, Method, distance, keep_trained, note_received
from pfedsam.model.partition import Declaration, Part
from pfedsam.model.segmenter import Branches, Segmenter, twin
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.step import Losses


@dataclass(frozen=True)
class Settings:
    """Ditto's own settings."""

    lam: float = number(0.01, least=0, most=1_000_000)  # lambda, the pull's weight; our choice: the paper tunes it


def branches(segmenter: Segmenter, _: Config) -> Branches:
    """Two branches on one frozen base, equal at the start."""
    return Branches(**{"global": segmenter, "personal": twin(segmenter, keep=lambda p: not p.requires_grad)})


def declare(_: Config) -> Declaration:
    """The global branch is shared, the personal one private."""
    return lambda branch, _kind: Part.SHARED if branch == "global" else Part.PRIVATE


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss of both branches, and the private branch's pull, scalars by name."""
    logits = model(batch.image, stemmed=batch.stemmed)
    found = {name: segmentation_loss(logits[name], batch, config.train) for name in model.names()}
    return found | {"prox": config.own(Settings).lam / 2 * distance(model["personal"], model.received)}


def merge(model: Branches, config: Config, here: Here) -> None:
    """Note what the server sent. A site without a private branch of its own begins there (our choice)."""
    note_received(model, config, here)
    if here.dice is None:
        keep_trained(model)


METHOD = Method(
    branches, declare, losses, merge, personal="personal", global_="global", terms=("prox",), settings=Settings
)
