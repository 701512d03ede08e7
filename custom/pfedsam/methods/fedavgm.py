"""FedAvgM (Hsu et al. 2019, section 4.3): FedAvg with momentum at the server, v <- beta v + mean, w <- w + v."""

from collections.abc import Mapping
from dataclasses import replace

from pfedsam.config import Config
from pfedsam.exchange.server import Contribution, ServerState, mean_update, moved
from pfedsam.methods import fedavg

BETA = 0.9


def rule(state: ServerState, contributions: Mapping[str, Contribution], _config: Config) -> ServerState:
    """The model a step along the velocity, which the memory keeps."""
    past = state.memory
    velocity = {
        name: tensor + BETA * past[name] if past else tensor for name, tensor in mean_update(contributions).items()
    }
    return replace(moved(state, velocity), memory=velocity)


METHOD = replace(fedavg.METHOD, rule=rule)
