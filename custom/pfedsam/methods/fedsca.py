"""FedSCA (arXiv 2503.15390): only the first blocks' adapters travel. The server mixes sites by similarity.

A site's model is the average of all sites' models with the weights n_j exp(cos_ij / T), scaled to a sum of 1. Built
from a description, without the paper's equations. Our choices: cosines of the round's updates, the sample numbers in
the weights, and that the later blocks' LoRA and the whole decoder stay at the site.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.exchange.server import Contribution, ServerState
from pfedsam.methods import fedavg
from pfedsam.methods.similarity import Cosines, mixed
from pfedsam.model.build import lora
from pfedsam.model.lora import loras
from pfedsam.model.partition import Declaration, Kind, Part
from pfedsam.model.segmenter import Segmenter

EARLY = frozenset({Kind.EARLY_LORA_A, Kind.EARLY_LORA_B})


@dataclass(frozen=True)
class Settings:
    """FedSCA's own settings. Both are our choice: the paper's values are not known."""

    early: float = number(0.5, above=0, most=1)  # the share of the adapted blocks, from the first, whose LoRA travels
    temperature: float = number(0.2, least=0.01, most=1000)  # T; a high one makes every site's model the mean


def adapters(branch: Segmenter, config: Config) -> None:
    """Put LoRA into the encoder, as in the other methods, and mark that of the first blocks. At least one block."""
    lora(branch, config)
    blocks = [found for unit in branch.encoder.units if (found := loras(unit))]
    for one in chain(*blocks[: math.ceil(config.own(Settings).early * len(blocks))]):
        one.early = True


def declare(_: Config) -> Declaration:
    """The first blocks' LoRA is shared, all else is private."""
    return lambda _branch, kind: Part.SHARED if kind in EARLY else Part.PRIVATE


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """A new model for each site that sent an update. The other sites keep theirs."""
    samples = {site: one.samples for site, one in contributions.items()}
    temperature = config.own(Settings).temperature
    return mixed(state, contributions, lambda site, cosines: weights(site, cosines, samples, temperature))


def weights(site: str, cosines: Cosines, samples: Mapping[str, float], temperature: float) -> dict[str, float]:
    """The weight of each site in this site's model. Weights add up to 1. A site's cosine with itself is 1."""
    alike = {other: cosines.get(frozenset({site, other}), 1.0) for other in samples}
    found = {other: samples[other] * math.exp((value - 1) / temperature) for other, value in alike.items()}
    total = sum(found.values())
    return {other: value / total for other, value in found.items()}


METHOD = replace(fedavg.METHOD, adapt=adapters, declare=declare, rule=rule, own_models=True, settings=Settings)
