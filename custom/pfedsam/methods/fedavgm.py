"""FedAvgM (Hsu et al. 2019): FedAvg with momentum at the server, v <- beta v + mean, w <- w + v, without Nesterov's
look ahead."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.exchange.server import Contribution, ServerState, mean_update, moved
from pfedsam.methods import fedavg


@dataclass(frozen=True)
class Settings:
    """FedAvgM's own."""

    beta: float = number(0.9, least=0, most=1)  # our choice: the usual momentum; the paper tunes it


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """The model a step along the velocity, which the memory keeps."""
    past, beta = state.memory, config.own(Settings).beta
    velocity = {
        name: tensor + beta * past[name] if past else tensor for name, tensor in mean_update(contributions).items()
    }
    return replace(moved(state, velocity), memory=velocity)


METHOD = replace(fedavg.METHOD, rule=rule, settings=Settings)
