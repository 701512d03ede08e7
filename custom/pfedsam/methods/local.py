"""Local training: each site trains alone on the same budget. Nothing is shared, and messages are empty."""

from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods.base import Method
from pfedsam.methods.fedavg import merge
from pfedsam.model.partition import Declaration, Part
from pfedsam.model.segmenter import Branches, Segmenter
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.step import Losses


def branches(segmenter: Segmenter, _: Config) -> Branches:
    """The personal branch alone, without experts: FedAvg's branch, but private."""
    return Branches(personal=segmenter)


def declare(_: Config) -> Declaration:
    """Everything trained is private."""
    return lambda _branch, _kind: Part.PRIVATE


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss of the personal branch, a scalar by name."""
    return {"personal": segmentation_loss(model(batch.image, stemmed=batch.stemmed)["personal"], batch, config.train)}


METHOD = Method(branches, declare, losses, merge, personal="personal", global_="personal")
