"""FedAvgM (Hsu et al. 2019): FedAvg with momentum at the server, v <- beta v + mean, w <- w + v. Plain momentum,
without Nesterov's look-ahead: our choice."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.exchange.server import Contribution, ServerState, mean_update, moved
from pfedsam.methods import fedavg


@dataclass(frozen=True)
class Settings:
    """FedAvgM's own settings."""

    beta: float = number(0.9, least=0, most=1)  # the usual momentum; our choice: the paper tunes it


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """The model one step along the velocity. The state's memory keeps the velocity."""
    past, beta = state.memory, config.own(Settings).beta
    velocity = {
        name: tensor + beta * past[name] if past else tensor for name, tensor in mean_update(contributions).items()
    }
    return replace(moved(state, velocity), memory=velocity)


METHOD = replace(fedavg.METHOD, rule=rule, settings=Settings)
