"""A model for each site: the average of all sites' models, weighted by how similar the sites' updates are.

After HeurFedAMP (Huang et al. 2021, "Personalized Cross-Silo Federated Learning on Non-IID Data"): a softmax over
cosines, with a fixed weight for the site itself. Our choice: cosines of the round's updates, because models that began
at one pretrained model are all alike. There is no proximal term. A site that never trained gets the mean model.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.exchange.change import cosine
from pfedsam.exchange.server import Contribution, ServerState, mean_model, trained, weighted
from pfedsam.methods import fedavg

Cosines = Mapping[frozenset[str], float]  # of two sites' updates, by the pair of sites


@dataclass(frozen=True)
class Settings:
    """The rule's own settings. Both are our choice, because the paper tunes them."""

    own: float = number(0.5, least=0, most=1)  # a site's weight in its own model
    sharpness: float = number(5.0, least=0, most=100)  # the factor on the cosines


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """A new model for each site that sent an update. The other sites keep theirs."""
    settings = config.own(Settings)
    return mixed(state, contributions, lambda site, cosines: weights(site, cosines, settings))


def mixed(
    state: ServerState,
    contributions: Mapping[str, Contribution],
    weights_of: Callable[[str, Cosines], Mapping[str, float]],
) -> ServerState:
    """The state with a model for each site that sent an update: a weighted sum of all sites' trained models.

    Args:
        weights_of: gives each site's weight in one site's model, from the cosines of all pairs of updates.
    """
    moves = {site: one.update for site, one in contributions.items()}
    cosines = {frozenset(pair): cosine(*(moves[site] for site in pair)) for pair in combinations(moves, 2)}
    models = {
        site: weighted(weights_of(site, cosines), lambda other: trained(state, contributions, other)) for site in moves
    }
    return replace(state, shared=mean_model(state, contributions), models={**state.models, **models})


def weights(site: str, cosines: Cosines, settings: Settings) -> dict[str, float]:
    """The weight of each site in this site's model, from the cosines of all pairs of sites. Weights add up to 1."""
    of_mine = {pair - {site}: value for pair, value in cosines.items() if site in pair}
    alike = {other: math.exp(settings.sharpness * value) for (other,), value in of_mine.items()}
    total = sum(alike.values())
    return {other: (1 - settings.own) * value / total for other, value in alike.items()} | {
        site: settings.own if alike else 1.0
    }


METHOD = replace(fedavg.METHOD, rule=rule, own_models=True, settings=Settings)
