"""APPLE (Luo and Wu 2022, arXiv 2110.08394) on LoRA cores: a site's model is a learned mix of all sites' cores.

Every site trains its own core alone, and the server hands out all of them. A site's model is sum_j p_j core_j. It
learns p, which stays at the site, and a fading pull holds p near n_j / n. Our choices: a core is a site's LoRA, and its
factors are mixed as they are; the decoder is averaged as in FedAvg; p begins at n_j / n once a core is known, and the
others then give up that share; the pull falls along half a cosine; every site gets all cores.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.exchange.change import A, B
from pfedsam.exchange.schema import Schema
from pfedsam.exchange.server import Contribution, ServerState, mean_model, trained
from pfedsam.exchange.slots import SAMPLES, WHOSE, filled, slotted, tag
from pfedsam.methods import ditto
from pfedsam.methods.base import Here, Told, keep_trained
from pfedsam.model.aside import Aside
from pfedsam.model.segmenter import Branches, Segmenter
from pfedsam.tensors import below, under
from pfedsam.train.loop import RoundReport
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.step import Losses

ROUNDS, KNOWN, CORE = "rounds", "known", "core/"


@dataclass(frozen=True)
class Settings:
    """APPLE's own settings. All are our choice: the paper tunes them."""

    sites: int = number(8, least=2, most=100)  # the most sites of the run, which sets the size of a message
    mu: float = number(0.1, least=0, most=1_000_000)  # the pull's weight in the first round
    fades: int = number(10, least=1, most=100_000)  # the rounds after which there is no pull


def down(shared: Schema, config: Config) -> Schema:
    """Every site's core, in slots."""
    return slotted({name: spec for name, spec in shared.items() if name.endswith((A, B))}, config.own(Settings).sites)


def branches(segmenter: Segmenter, config: Config) -> Branches:
    """The site's core in the global branch, its model in the personal one, and p beside them, which is private too."""
    model = ditto.branches(segmenter, config)
    model.aside = Aside(nn.Linear(config.own(Settings).sites, 1, bias=False))
    return model


def relation(model: Branches) -> nn.Parameter:
    """p, (1, slots)."""
    return next(cast(Aside, model.aside).parameters())


@torch.no_grad()
def merge(model: Branches, config: Config, here: Here) -> None:
    """Take the other sites' cores, once there is one of the site's own. p of a new core begins at its site's share."""
    if here.dice is None:  # a site that has not trained predicts with the server's model
        keep_trained(model)
    if not here.extras:
        return
    p, own = relation(model), config.own(Settings)
    whose, samples = here.extras[WHOSE].to(p.device), here.extras[SAMPLES].to(p.device)
    known, share = whose != 0, samples / samples.sum().clamp_min(1)
    before = here.memory.get(KNOWN, torch.zeros(own.sites)).to(p.device) != 0
    p.copy_(torch.where(known & before, p[0] * (1 - share[known & ~before].sum()), share)[None])
    mine, rounds = whose == tag(here.name), here.memory.get(ROUNDS, torch.zeros(())).to(p.device)
    pull = own.mu * (1 + torch.cos(math.pi * (rounds / own.fades).clamp(max=1))) / 2
    model.received = {"share": share, "mine": mine.float(), KNOWN: known.float(), ROUNDS: rounds + 1, "pull": pull}
    for name in (n for n, _ in model["global"].named_parameters() if f"0/{n}" in here.extras):
        cores = torch.stack([here.extras[f"{slot}/{name}"] for slot in range(own.sites)]).to(p.device)
        model.received[CORE + name] = cores * (known & ~mine & mine.any()).view(-1, *[1] * (cores.dim() - 1))


def mixed(model: Branches) -> dict[str, Tensor]:
    """sum_j p_j core_j by name, with the site's own core as it is now. A site without a slot is its own core."""
    p, mine, live = relation(model)[0], model.received["mine"], dict(model["global"].named_parameters())
    own = (p * mine).sum() + 1 - mine.sum()  # sums of products, not a matrix product: autocast would round it
    return {n: own * live[n] + (p.view(-1, 1, 1) * c).sum(0) for n, c in below(CORE, model.received).items()}


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss of the site's model, and the pull on p, scalars by name."""
    swapped = under("branch.global.", mixed(model))
    found = functional_call(model, swapped, (batch.image, ("global",)), {"stemmed": batch.stemmed})["global"]
    pull = model.received["pull"] / 2 * (relation(model)[0] - model.received["share"]).square().sum()
    return {"global": segmentation_loss(found, batch, config.train), "pull": pull}


@torch.no_grad()
def tell(model: Branches, _config: Config, _here: Here, _report: RoundReport) -> Told:
    """The site remembers which cores it knows. Its personal branch is the mix of them."""
    keep_trained(model)
    personal = dict(model["personal"].named_parameters())
    for name, tensor in mixed(model).items():
        personal[name].copy_(tensor)
    return Told(memory={name: model.received[name] for name in (KNOWN, ROUNDS)})


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """Each site's own core, and the mean of the decoders for all. A site without a core begins at the cores' mean."""
    shared, cores = mean_model(state, contributions), {}
    for site in state.models.keys() | contributions.keys():
        now = trained(state, contributions, site)
        cores[site] = {name: tensor for name, tensor in now.items() if name.endswith((A, B))}
    memory = filled(state.memory, cores, {site: one.samples for site, one in contributions.items()})
    return replace(state, shared=shared, models={site: shared | core for site, core in cores.items()}, memory=memory)


LOCAL = replace(ditto.METHOD, build=branches, loss=losses, terms=("pull",), merge=merge, tell=tell, settings=Settings)
METHOD = replace(LOCAL, rule=rule, own_models=True, down=down, decoder_lora=False)
