"""FedDyn (Acar et al. 2021): each site's loss is changed from round to round, until its minimum is the federation's.

Site: loss - <g_k, w> + alpha / 2 |w - w_t|^2, then g_k <- g_k - alpha (w_k - w_t). Server: w <- mean(w_k) + s, where s
sums the mean updates of all rounds, each times the share of all samples that took part. So s is the paper's -h / alpha.
Our choices: sites are weighed by samples, as in all methods here, and "all" are the sites that have ever trained, with
the samples of their last round. When a site is new, s is scaled to the larger whole, as if the site had never moved.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import fsum

import torch

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.exchange.server import Contribution, ServerState, mean_update, moved
from pfedsam.methods import fedavg
from pfedsam.methods.base import Here, Told, distance, note_received
from pfedsam.model.segmenter import Branches
from pfedsam.tensors import below, under
from pfedsam.train.loop import RoundReport
from pfedsam.train.step import Losses

SUM, SITE, SLOPE, BEGAN = "sum/", "site/", "slope/", "began/"


@dataclass(frozen=True)
class Settings:
    """FedDyn's own settings."""

    alpha: float = number(0.1, above=0, most=1_000_000)  # the pull's weight; our choice: the paper tunes it


def merge(model: Branches, config: Config, here: Here) -> None:
    """Keep the received model, and g_k of the site's last round. g_k begins at zero."""
    note_received(model, config, here)
    slopes = {n: here.memory[n].to(t.device) if here.memory else torch.zeros_like(t) for n, t in model.received.items()}
    model.received = under(BEGAN, model.received) | under(SLOPE, slopes)


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss, the pull and the slope, scalars by name."""
    live, pull = dict(model["global"].named_parameters()), config.own(Settings).alpha / 2
    slope = torch.stack([(live[name] * g).sum() for name, g in below(SLOPE, model.received).items()]).sum()
    near = distance(model["global"], below(BEGAN, model.received))
    return fedavg.losses(model, batch, config) | {"prox": pull * near, "slope": -slope}


@torch.no_grad()
def tell(model: Branches, config: Config, _here: Here, _report: RoundReport) -> Told:
    """The site remembers g_k - alpha (w_k - w_t) and sends nothing beside its update."""
    live, alpha = dict(model["global"].named_parameters()), config.own(Settings).alpha
    began = below(BEGAN, model.received)
    return Told(memory={n: g - alpha * (live[n] - began[n]) for n, g in below(SLOPE, model.received).items()})


def rule(state: ServerState, contributions: Mapping[str, Contribution], _config: Config) -> ServerState:
    """The mean of the sites' models, plus the sum of the mean updates.

    A checkpoint of an earlier version has a 1 for each site. Such a site counts as one sample until it next takes part.
    """
    past, mean = below(SUM, state.memory), mean_update(contributions)
    known = {site: float(count) for site, count in below(SITE, state.memory).items()}
    samples = known | {site: one.samples for site, one in contributions.items()}
    before, here = (fsum(samples[site] for site in some) / fsum(samples.values()) for some in (known, contributions))
    total = {name: before * past.get(name, 0) + here * tensor for name, tensor in mean.items()}
    after = moved(state, {name: mean[name] + total[name] for name in mean})
    sites = {site: torch.tensor([count], dtype=torch.float64) for site, count in samples.items()}
    return replace(after, memory=under(SUM, total) | under(SITE, sites))


METHOD = replace(
    fedavg.METHOD, loss=losses, terms=("prox", "slope"), merge=merge, tell=tell, rule=rule, settings=Settings
)
