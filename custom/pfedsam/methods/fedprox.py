"""FedProx (Li et al. 2020, equation 2): FedAvg, and a pull towards what the server sent, mu / 2 |w - w_t|^2."""

from dataclasses import replace

from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods import fedavg
from pfedsam.methods.base import distance, note_received
from pfedsam.model.segmenter import Branches
from pfedsam.train.step import Losses


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss and the pull."""
    pull = distance(model["global"], model.received)
    return fedavg.losses(model, batch, config) | {"prox": config.train.prox_weight / 2 * pull}


METHOD = replace(fedavg.METHOD, loss=losses, merge=note_received)
