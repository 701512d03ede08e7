"""MOON (Li, He and Song 2021): a site's features stay near the received model's, away from its own last model's.

loss + mu * -log(exp(cos(z, z_received) / T) / (exp(cos(z, z_received) / T) + exp(cos(z, z_last) / T))). Our choices:
z is the encoder's embedding, averaged over the image's places, without the paper's projection head. In a site's first
round its last model is the received one, so that the term has no slope.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods import fedavg
from pfedsam.methods.base import Here, Told
from pfedsam.model.partition import Declaration, Part
from pfedsam.model.segmenter import Branches, Segmenter, twin
from pfedsam.train.loop import RoundReport
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.step import Losses

BESIDE = ("received", "last")  # frozen branches, which nobody predicts with


@dataclass(frozen=True)
class Settings:
    """MOON's own settings."""

    mu: float = number(1.0, least=0, most=1_000_000)  # the term's weight; our choice: the paper tunes it
    temperature: float = number(0.5, above=0, most=1000)  # T; our choice


def branches(segmenter: Segmenter, _: Config) -> Branches:
    """The global branch, and beside it on the same base the received model and the site's last one."""
    beside = {name: twin(segmenter, keep=lambda p: not p.requires_grad) for name in BESIDE}
    return Branches(**{"global": segmenter, **beside})


def declare(_: Config) -> Declaration:
    """The global branch is shared. The two others are not trained."""
    return lambda branch, _kind: Part.SHARED if branch == "global" else Part.FROZEN


@torch.no_grad()
def merge(model: Branches, _config: Config, here: Here) -> None:
    """Copy the received model and the site's last one to the branches beside the global one."""
    beside = [dict(model[name].named_parameters()) for name in BESIDE]
    for name, p in model["global"].named_parameters():
        if p.requires_grad:
            beside[0][name].copy_(p)
            beside[1][name].copy_(here.memory.get(name, p))


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss and the contrastive term, scalars by name."""
    own = config.own(Settings)
    embedding = model.embeddings(batch.image, ("global",), stemmed=batch.stemmed)["global"]
    with torch.no_grad():
        others = model.embeddings(batch.image, BESIDE, stemmed=batch.stemmed)
    near, far = (others[name] for name in BESIDE)
    supervised = segmentation_loss(model["global"].decode(embedding), batch, config.train)
    return {"global": supervised, "contrast": own.mu * contrast(embedding, near, far, own.temperature)}


def contrast(one: Tensor, near: Tensor, far: Tensor, temperature: float) -> Tensor:
    """The contrastive term, a scalar: small if `one` is more like `near` than like `far`. Embeddings (B, C, h, w)."""
    z, z_near, z_far = (embedding.float().mean(dim=(2, 3)) for embedding in (one, near, far))
    alike = torch.stack([torch.cosine_similarity(z, other, dim=1) for other in (z_near, z_far)], dim=1) / temperature
    return -alike.log_softmax(1)[:, 0].mean()


def tell(model: Branches, _config: Config, _here: Here, _report: RoundReport) -> Told:
    """The site remembers what it trained."""
    return Told(memory={name: p for name, p in model["global"].named_parameters() if p.requires_grad})


METHOD = replace(
    fedavg.METHOD,
    build=branches,
    declare=declare,
    loss=losses,
    terms=("contrast",),
    merge=merge,
    tell=tell,
    settings=Settings,
)
