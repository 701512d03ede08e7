"""SCAFFOLD (Karimireddy et al. 2020, algorithm 1): control variates correct each site's steps for its drift.

Option II sets c_i to c_i - c + (x - y_i) / (K lr). With SGD this is the mean of the gradients that the site computed.
We take that mean itself, so that it also holds with AdamW. A site sends c_i instead of its change, and the server
keeps each site's. This is our choice: a change that arrived too late would leave c wrong for good. c is the mean over
the sites that have trained. From three sites on, no c_i is longer than their median under `server.rule` clipped (our
choice). Updates and c_i are weighted by samples, as in all methods here. For c these are each site's last.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import fsum
from statistics import fmean

import torch

from pfedsam.config import Config
from pfedsam.exchange.bounded import MAJORITY, middle
from pfedsam.exchange.change import norm
from pfedsam.exchange.schema import Schema
from pfedsam.exchange.server import Contribution, ServerState, mean, weighted
from pfedsam.methods import fedavg
from pfedsam.methods.base import Here, Told
from pfedsam.model.segmenter import Branches
from pfedsam.tensors import Tensors, below, under
from pfedsam.train.loop import RoundReport

BOUND = 1e6  # of a control variate's values: no working training has gradients that large
OWN, SAMPLES, CORRECTION, SUM = "own/", "samples/", "correction/", "sum/"


def controls(shared: Schema, _config: Config) -> Schema:
    """A control variate for each shared tensor: a site sends its own, the server sends c."""
    return {name: replace(spec, most=BOUND) for name, spec in shared.items()}


@torch.no_grad()
def merge(model: Branches, _config: Config, here: Here) -> None:
    """Keep c - c_i for the round's steps."""
    live = {name: p for name, p in model["global"].named_parameters() if name in here.extras}
    own = here.memory or {name: torch.zeros_like(c) for name, c in here.extras.items()}
    model.received = {CORRECTION + name: (here.extras[name] - own[name]).to(p.device) for name, p in live.items()}
    model.received |= {SUM + name: torch.zeros_like(p) for name, p in live.items()}


@torch.no_grad()
def gradient(model: Branches, _config: Config) -> None:
    """Add the step's gradient to the round's sum, then c - c_i to the gradient."""
    for name, p in model["global"].named_parameters():
        if p.grad is not None and SUM + name in model.received:
            model.received[SUM + name] += p.grad
            p.grad += model.received[CORRECTION + name]


def tell(model: Branches, _config: Config, _here: Here, report: RoundReport) -> Told:
    """The new c_i, the round's mean gradient. It is sent, and the site keeps it."""
    now = {name: total.cpu() / max(report.steps, 1) for name, total in below(SUM, model.received).items()}
    return Told(now, now)


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """The model moved by the mean of the updates, and c, the mean of the sites' c_i, both weighted by samples."""
    known = {key: tensor for key, tensor in state.memory.items() if key.startswith(OWN)}
    for site, one in contributions.items():
        known |= under(f"{OWN}{site}/", one.extras)
    sites = {key.split("/")[1] for key in known}
    cut = config.server.rule == "clipped" and max(len(sites), state.sites) >= MAJORITY
    known = bounded(known, sites) if cut else known
    counts = {site: float(count) for site, count in below(SAMPLES, state.memory).items()}
    counts |= {site: one.samples for site, one in contributions.items()}
    counts = dict.fromkeys(sites, fmean(counts.values())) | counts  # an earlier version's checkpoint knows no samples
    shares = {site: count / fsum(counts.values()) for site, count in counts.items()}
    control = weighted(shares, lambda site: below(f"{OWN}{site}/", known))
    samples = {site: torch.tensor([count], dtype=torch.float64) for site, count in counts.items()}
    return replace(mean(state, contributions, config), memory=control | known | under(SAMPLES, samples))


def bounded(known: Tensors, sites: Collection[str]) -> Tensors:
    """The sites' c_i, none longer than their median: else one site's could lead all others."""
    lengths = {site: norm(below(f"{OWN}{site}/", known).values()) for site in sites}
    most = middle(lengths.values())
    short = {site: min(1.0, most / length) if length else 1.0 for site, length in lengths.items()}
    return {key: tensor * short[key.split("/")[1]] for key, tensor in known.items()}


METHOD = replace(fedavg.METHOD, merge=merge, gradient=gradient, tell=tell, rule=rule, up=controls, down=controls)
