"""FedAvg of LoRA and decoder (McMahan et al. 2017, FedIT's rule with SAM): one branch, all that is trained is shared.

With one site that holds all rows, it is pooled training.
"""

from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods.base import Here, Method
from pfedsam.model.partition import Declaration, Part
from pfedsam.model.segmenter import Branches, Segmenter
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.step import Losses


def branches(segmenter: Segmenter, _: Config) -> Branches:
    """The global branch alone."""
    return Branches(**{"global": segmenter})


def declare(_: Config) -> Declaration:
    """Everything trained is shared."""
    return lambda _branch, _kind: Part.SHARED


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss of the global branch, a scalar by name."""
    logits = model(batch.image, ("global",), stemmed=batch.stemmed)["global"]
    return {"global": segmentation_loss(logits, batch, config.train)}


def merge(_model: Branches, _config: Config, _here: Here) -> None:
    """Do nothing: there is no private part to combine with."""


METHOD = Method(branches, declare, losses, merge, personal="global", global_="global")
