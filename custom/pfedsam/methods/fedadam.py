"""FedAdam (Reddi et al. 2021, algorithm 2): Adam at the server, on the sites' mean update. Without a bias correction.

m <- b1 m + (1 - b1) mean, v <- b2 v + (1 - b2) mean^2, w <- w + rate m / (sqrt(v) + tau).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.exchange.server import Contribution, ServerState, mean_update, moved
from pfedsam.methods import fedavg
from pfedsam.tensors import below, under

FIRST, SECOND = "first/", "second/"  # moments, in the state's memory


@dataclass(frozen=True)
class Settings:
    """FedAdam's own settings. All are our choice: the paper tunes the rate and tau."""

    rate: float = number(1e-2, above=0, most=10)  # the longest usual step of a value in a round; 1e-3 learned nothing
    beta1: float = number(0.9, least=0, below=1)  # how much of the past mean stays
    beta2: float = number(0.99, least=0, below=1)  # how much of the past square stays
    tau: float = number(1e-3, above=0, most=10)  # below about this size of an update, a step shrinks with it


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """The model one step of Adam on. The state's memory keeps both moments."""
    own, mean = config.own(Settings), mean_update(contributions)
    past1, past2 = below(FIRST, state.memory), below(SECOND, state.memory)
    first = {n: (1 - own.beta1) * u + own.beta1 * past1.get(n, 0) for n, u in mean.items()}
    second = {n: (1 - own.beta2) * u.square() + own.beta2 * past2.get(n, own.tau**2) for n, u in mean.items()}
    step = {n: own.rate * first[n] / (second[n].sqrt() + own.tau) for n in mean}
    return replace(moved(state, step), memory=under(FIRST, first) | under(SECOND, second))


METHOD = replace(fedavg.METHOD, rule=rule, settings=Settings)
