"""A hospital that joins later: the federation's model stays as it came, the site trains its own experts alone.

Our protocol, the paper has none. The job begins with the last shared tensors of an earlier run (`pfedsam render
--begin STUDY/RUN`); updates are zero, so any number of newcomers may do it in one job without touching the model.
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
    """As pFedSAM's, but of the personal branch only the experts are trained."""
    own = {Kind.EXPERT: Part.PRIVATE}
    return lambda branch, kind: Part.SHARED if branch == "global" else own.get(kind, Part.FROZEN)


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss of the personal branch and the balance term."""
    logits = model(batch.image, ("personal",), stemmed=batch.stemmed)["personal"]
    balance = config.train.balance_weight * balance_term(model["personal"])
    return {"personal": segmentation_loss(logits, batch, config.train), "balance": balance}


def merge(model: Branches, config: Config, _here: Here) -> None:
    """All but the experts is the federation's, in every round and reading."""
    pfedsam.merge(model, config, Here())


def phase(_done: int, _steps: int) -> frozenset[Part]:
    """The private part alone, in every step."""
    return frozenset({Part.PRIVATE})


METHOD = replace(pfedsam.METHOD, declare=declare, loss=losses, merge=merge, phase=phase, joins=True)
