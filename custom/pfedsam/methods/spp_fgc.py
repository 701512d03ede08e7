"""After SPP-FGC (arXiv 2511.10915): groups of alike hospitals, made once from a noised sketch of their images.

The paper clusters data of many sites by private structure that they share in one shot. It segments nothing. Ours: a
site's sketch is the mean over its patients of the frozen encoder's features, each image's scaled to length 1. One
patient moves it by at most 2 / P for P patients. The site adds normal noise of `method.noise` times that, once for its
images, and a projection leaves a few numbers. The server groups the sites in the first round, by the distances of
their sketches, and then averages in each group (`clustered`). The noise hides the sketch, not the updates.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

import torch
from torch import Tensor
from torch.func import functional_call

from pfedsam.bounds import Bounds, number
from pfedsam.config import Config
from pfedsam.data.dataset import Dataset
from pfedsam.exchange.schema import Schema, Spec
from pfedsam.exchange.server import Contribution, ServerState
from pfedsam.methods import fedavg
from pfedsam.methods.base import Here, Told
from pfedsam.methods.clustered import grouped, joined
from pfedsam.model.segmenter import Branches
from pfedsam.tensors import below, digest, under
from pfedsam.train.loop import RoundReport
from pfedsam.train.patients import patients_of
from pfedsam.train.representation import representations, without_adapters

SKETCH, OF_SITE = "sketch", "sketch/"
BOUND = 1e3  # of a sketch's values: without noise they are at most 1


@dataclass(frozen=True)
class Settings:
    """The method's own settings. All are our choice."""

    groups: int = number(2, least=1, most=100)  # of sites
    noise: float = number(0.5, least=0, most=1000)  # its deviation, in parts of what one patient can change
    size: int = number(16, least=1, most=1024)  # the numbers of a sketch

    def hold_derived(self, _config: Config) -> None:
        """UserFault if the sketch has more numbers than usual, or less noise."""
        Bounds(1, Settings.size).hold("method.size", self.size)
        Bounds(Settings.noise, 1000).hold("method.noise", self.noise)


def up(_shared: Schema, config: Config) -> Schema:
    """The site's sketch, in each round the same."""
    return {SKETCH: Spec((config.own(Settings).size,), torch.float32, BOUND)}


def merge(model: Branches, config: Config, here: Here) -> None:
    """Make the site's sketch in its first round of the run."""
    if here.data is not None and here.noise is not None:
        model.received = {SKETCH: here.memory[SKETCH] if here.memory else sketch(model, config, here.data, here)}


def sketch(model: Branches, config: Config, data: Dataset, here: Here) -> Tensor:
    """(size,): the noised mean of the patients' features, projected. What a server sends has no influence on it."""
    own, patients, features = config.own(Settings), patients_of(data), pretrained_features(model, data, config)
    mean = torch.stack([features[slices].mean(0) for slices in patients]).mean(0)
    purpose = f"spp_fgc/{own.noise}/{digest({SKETCH: mean})}"  # one mean has one noise, and two never have the same
    noise = here.noise(purpose).normal(mean) if here.noise else torch.zeros_like(mean)
    return projection(len(mean), own.size, config.seed) @ (mean + own.noise * 2 / len(patients) * noise)


def pretrained_features(model: Branches, data: Dataset, config: Config) -> Tensor:
    """(images, C): each image's representation by the encoder without its adapters, on the CPU."""
    encoder, device = model["global"].encoder, next(model.parameters()).device
    model.eval()
    encode = partial(functional_call, encoder, without_adapters(encoder))
    return representations(encode, data, range(len(data)), config=config, device=device).cpu()


def projection(wide: int, narrow: int, seed: int) -> Tensor:
    """(narrow, wide), drawn from the job's seed, with rows of length 1 in the mean. Alike at all sites."""
    return torch.randn(narrow, wide, generator=torch.Generator().manual_seed(seed)).div(math.sqrt(wide))


def tell(model: Branches, _config: Config, _here: Here, _report: RoundReport) -> Told:
    """The sketch. The site keeps it, so that it never draws another."""
    return Told(dict(model.received), dict(model.received))


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """A mean in each group. The first round's sites are split by their sketches, later ones join the most alike."""
    known = below(OF_SITE, state.memory)
    every = {site: one.extras[SKETCH] for site, one in contributions.items()} | known
    alike = {frozenset(pair): -distance(*(every[site] for site in pair)) for pair in combinations(sorted(every), 2)}
    groups = joined(state, contributions, alike, config.own(Settings).groups)
    return grouped(state, contributions, groups, under(OF_SITE, every), most=config.server.most_share)


def distance(one: Tensor, other: Tensor) -> float:
    """The distance of two sketches, rounded, so that the number of threads has no effect."""
    return round(float((one.double() - other.double()).norm()), 6)


METHOD = replace(
    fedavg.METHOD,
    merge=merge,
    up=up,
    tell=tell,
    rule=rule,
    own_models=True,
    looks=True,
    derived=frozenset({SKETCH}),
    settings=Settings,
)
