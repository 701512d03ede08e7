"""FedNova (Wang et al. 2020): updates are divided by the site's number of steps before they are averaged.

w <- w + t (sum_k p_k d_k / t_k) with p_k = n_k / n and t = sum_k p_k t_k. So a site that does many steps in a round
does not pull the model towards itself. Our choices: t_k counts steps whatever the optimiser. No site's weight
p_k t / t_k is above `server.most_share` equal shares, so that a site cannot gain by claiming few steps. In t no t_k is
above the steps of n_k slices, with n_k bounded in the same way, so that nobody moves all by claiming many.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from pfedsam.config import Config
from pfedsam.exchange.bounded import fair
from pfedsam.exchange.schema import Schema, Spec
from pfedsam.exchange.server import Contribution, ServerState, moved, weighted
from pfedsam.methods import fedavg
from pfedsam.methods.base import Here, Told
from pfedsam.model.segmenter import Branches
from pfedsam.train.loop import RoundReport, steps_of

STEPS = "steps"
MOST = 1e7  # steps of a round: what `train.max_steps` can be


def up(_shared: Schema, _config: Config) -> Schema:
    """The round's number of steps, beside the update."""
    return {STEPS: Spec((1,), torch.float32, MOST)}


def tell(_model: Branches, _config: Config, _here: Here, report: RoundReport) -> Told:
    """The site sends its number of steps and remembers nothing."""
    return Told({STEPS: torch.tensor([float(report.steps)])})


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """The model moved by the mean update a step, times the mean number of steps."""
    total = sum(one.samples for one in contributions.values())
    steps = {site: max(1.0, float(one.extras[STEPS])) for site, one in contributions.items()}
    allowed = {site: max(1, steps_of(one.samples, config.train)) for site, one in contributions.items()}
    mean = sum(one.samples / total * min(steps[site], allowed[site]) for site, one in contributions.items())
    each = {s: replace(one, samples=one.samples / total * mean / steps[s]) for s, one in contributions.items()}
    shares = {site: one.samples for site, one in fair(each, config.server.most_share, state.sites).items()}
    return moved(state, weighted(shares, lambda site: contributions[site].update))


METHOD = replace(fedavg.METHOD, up=up, tell=tell, rule=rule)
