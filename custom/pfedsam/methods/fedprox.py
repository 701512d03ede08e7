"""FedProx (Li et al. 2020, equation 2): FedAvg with a pull towards what the server sent, mu / 2 |w - w_t|^2."""

from dataclasses import dataclass, replace

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods import fedavg
from pfedsam.methods.base import distance, note_received
from pfedsam.model.segmenter import Branches
from pfedsam.train.step import Losses


@dataclass(frozen=True)
class Settings:
    """FedProx's own settings."""

    mu: float = number(0.01, least=0, most=1_000_000)  # the pull's weight; our choice: the paper tunes it


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss and the pull, scalars by name."""
    pull = distance(model["global"], model.received)
    return fedavg.losses(model, batch, config) | {"prox": config.own(Settings).mu / 2 * pull}


METHOD = replace(fedavg.METHOD, loss=losses, terms=("prox",), merge=note_received, settings=Settings)
