"""DSFedMed's idea (arXiv 2601.16073): SAM and a light model teach each other, and only the light one travels.

A site predicts with a small U-Net that all sites train together. Its own SAM, with LoRA and decoder, stays at the site,
teaches the U-Net and learns from it (KL both ways, weight 0.1 beside 0.9 on the labels, temperature 1: their code).
Images without labels teach too. In the paper SAM sits at the server and teaches on images that it generates. Here the
server has neither images nor a GPU, so each site has a SAM and teaches on its own images. This is our choice, and so
are the U-Net and its width. SAM needs no message and is not needed to predict.
"""

from dataclasses import dataclass, replace

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods import fedavg
from pfedsam.methods.base import uncached
from pfedsam.model.build import outputs
from pfedsam.model.light import light
from pfedsam.model.partition import Declaration, Part
from pfedsam.model.segmenter import Branches, Segmenter
from pfedsam.train.distill import distillation
from pfedsam.train.losses import annotated, resize, segmentation_loss
from pfedsam.train.step import Losses

OTHER = {"global": "sam", "sam": "global"}


@dataclass(frozen=True)
class Settings:
    """DSFedMed's own settings."""

    width: int = number(16, least=4, most=256)  # channels of the U-Net's first level; our choice: 2 MB in float32
    distill_weight: float = number(0.1, least=0, below=1)  # DSFedMed's
    temperature: float = number(1.0, above=0, most=1000)  # DSFedMed's


def branches(segmenter: Segmenter, config: Config) -> Branches:
    """The light model as the global branch, and the site's SAM."""
    small = light(outputs(config.model), config.own(Settings).width, config.seed)
    return Branches(**{"global": small, "sam": segmenter})


def declare(_: Config) -> Declaration:
    """The light model is shared, SAM is private."""
    return lambda branch, _kind: Part.SHARED if branch == "global" else Part.PRIVATE


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """Each model's supervised loss and what the other teaches it, scalars by name. KL at the size of SAM's logits."""
    own, logits = config.own(Settings), model(batch.image)
    side, weight = logits["sam"].shape[-1], own.distill_weight
    alike = {name: annotated(resize(of.float(), side), batch) for name, of in logits.items()}
    found = {}
    for name, teacher in OTHER.items():
        supervised = segmentation_loss(logits[name], batch, config.train)
        told = distillation(alike[name], alike[teacher], own.temperature, exclusive=config.model.exclusive)
        found[name] = (1 - weight) * supervised + weight * told
    return found


LOCAL = replace(fedavg.METHOD, build=branches, declare=declare, loss=losses, terms=("sam",), augment=uncached)
METHOD = replace(LOCAL, unlabelled=True, settings=Settings)
