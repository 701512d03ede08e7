"""FURL (FedCA, arXiv 2010.08982): the sites train the adapters together without labels, as a start for few labels.

Two views of an image should have like representations, unlike those of other images of the batch and of a dictionary to
which all sites contribute. Representations should stay near a base model's, here SAM without adapters: the paper trains
one on public data. Our choices: a representation is the embedding's mean, the second view is the first one perturbed,
and all numbers. The decoder is shared but not trained, so that a job of another method can begin with the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from pfedsam.bounds import Bounds, number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.exchange.schema import Schema, Spec
from pfedsam.exchange.server import Contribution, ServerState, banked, mean
from pfedsam.methods import fedavg
from pfedsam.methods.base import Here, Told, encoder_alone, of_others, uncached
from pfedsam.model.backbones import VITS
from pfedsam.model.segmenter import Branches
from pfedsam.train.loop import RoundReport
from pfedsam.train.pseudo import perturbed
from pfedsam.train.representation import representations, represented, without_adapters
from pfedsam.train.step import Losses

ENTRIES, BANK = "entries", "dictionary"


@dataclass(frozen=True)
class Settings:
    """FURL's own settings. All are our choice."""

    entries: int = number(16, least=1, most=10_000)  # representations that a site sends in a round
    dictionary: int = number(64, least=1, most=100_000)  # representations that a site is sent
    temperature: float = number(0.1, above=0, most=1_000)  # of the contrast
    align_weight: float = number(1.0, least=0, most=1_000_000)  # of staying near the base model

    def hold_derived(self, _config: Config) -> None:
        """UserFault if the representations are of more images than usual."""
        Bounds(1, Settings.entries).hold("method.entries", self.entries)


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The contrast of both views, and the distance to the base model's representations. Scalars by name."""
    own, encoder = config.own(Settings), model["global"].encoder
    one, other = represented(encoder(batch.image)), represented(encoder(perturbed(batch.image, config.model.pixels)))
    with torch.no_grad():
        base = represented(functional_call(encoder, without_adapters(encoder), (batch.image,)))
    both = (contrast(*pair, model.received[BANK], own.temperature) for pair in ((one, other), (other, one)))
    near = own.align_weight * (1 - (one * base).sum(1)).mean()
    return {"contrast": torch.stack(list(both)).mean(), "align": near}


def contrast(one: Tensor, other: Tensor, dictionary: Tensor, temperature: float) -> Tensor:
    """The mean of -log(e(own) / sum of e(all)), a scalar: each of `one` (B, C) among `other` and the dictionary.

    e is the exponential of the cosine over the temperature. All vectors have length 1 (Chen et al. 2020, SimCLR).
    """
    scores = one @ torch.cat([other, dictionary]).T / temperature
    return F.cross_entropy(scores, torch.arange(len(one), device=one.device))


def width(config: Config) -> int:
    """The channels of the backbone's embedding."""
    return int(getattr(VITS.get(config.model.backbone), "channels", 256))


def up(_shared: Schema, config: Config) -> Schema:
    """A site sends representations of some images."""
    return {ENTRIES: Spec((config.own(Settings).entries, width(config)), torch.float32, most=1.01)}


def down(_shared: Schema, config: Config) -> Schema:
    """The server sends the dictionary, with zeros in places that nothing fills."""
    return {BANK: Spec((config.own(Settings).dictionary, width(config)), torch.float32, most=1.01)}


def merge(model: Branches, config: Config, here: Here) -> None:
    """Keep the dictionary's representations that are not this site's own."""
    empty = torch.zeros(0, width(config))
    others = of_others(here.extras.get(BANK, empty), here.memory.get(ENTRIES))
    model.received = {BANK: others.to(next(model.parameters()).device)}


def tell(model: Branches, config: Config, here: Here, _report: RoundReport) -> Told:
    """The representations of the images that the site's seed draws, the same images in each round."""
    assert here.data is not None
    draw, device = torch.Generator().manual_seed(here.seed), next(model.parameters()).device
    drawn = torch.randint(len(here.data), (config.own(Settings).entries,), generator=draw).tolist()
    entries = representations(model["global"].encoder, here.data, drawn, config=config, device=device)
    return Told({ENTRIES: entries}, {ENTRIES: entries})


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """FedAvg's model, and the dictionary of the sites' last representations."""
    return replace(mean(state, contributions, config), memory=banked(state, contributions, ENTRIES, BANK))


METHOD = replace(
    fedavg.METHOD,
    loss=losses,
    terms=("contrast", "align"),
    merge=merge,
    tell=tell,
    gradient=encoder_alone,
    augment=uncached,
    unlabelled=True,
    rule=rule,
    up=up,
    down=down,
    derived=frozenset({ENTRIES}),
    settings=Settings,
)
