"""A hospital that joins later: it uses the federation's model unchanged and trains only its own experts.

This is our protocol, as the paper has none. The job begins with the last shared tensors of an earlier run (`pfedsam
render --begin STUDY/RUN`). All updates are zero. So several newcomers can train in one job without changing the model.
"""

from dataclasses import replace

from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods import pfedsam
from pfedsam.methods.base import Here
from pfedsam.model.moe import balance_term
from pfedsam.model.partition import Declaration, Kind, Part
from pfedsam.model.segmenter import Branches
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.step import Losses


def declare(_: Config) -> Declaration:
    """As in pFedSAM, but the personal branch trains only its experts."""
    own = {Kind.EXPERT: Part.PRIVATE}
    return lambda branch, kind: Part.SHARED if branch == "global" else own.get(kind, Part.FROZEN)


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss of the personal branch and the balance term, scalars by name."""
    logits = model(batch.image, ("personal",), stemmed=batch.stemmed)["personal"]
    balance = config.train.balance_weight * balance_term(model["personal"])
    return {"personal": segmentation_loss(logits, batch, config.train), "balance": balance}


def merge(model: Branches, config: Config, _here: Here) -> None:
    """Copy everything but the experts from the federation's model, in every round and reading."""
    pfedsam.merge(model, config, Here())


def phase(_done: int, _steps: int) -> frozenset[Part]:
    """Every step trains only the private part."""
    return frozenset({Part.PRIVATE})


METHOD = replace(pfedsam.METHOD, declare=declare, loss=losses, merge=merge, phase=phase, joins=True)
