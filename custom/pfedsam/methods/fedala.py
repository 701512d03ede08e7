"""FedALA (Zhang et al. 2023): each site learns, value by value, how far it follows the server's model.

A round begins at theta = theta_k + (theta_g - theta_k) * W with W in [0, 1], which the site trains on its own images:
W <- clip(W - eta * gradient * (theta_g - theta_k)). Then it trains and sends as in FedAvg. W stays at the site from
round to round. A release that we know of makes W new in each round, against its own text. Our choices: W for every
shared tensor instead of the upper layers alone, images without augmentation, and a bound on the passes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch, Dataset, View
from pfedsam.files import seed_of
from pfedsam.methods import ditto, fedavg
from pfedsam.methods.base import Here, Told, keep_trained, shared_alone
from pfedsam.model.segmenter import Branches
from pfedsam.tensors import Tensors, below, under
from pfedsam.train.ala import put, turn
from pfedsam.train.loop import RoundReport
from pfedsam.train.step import descend

WEIGHT, ROUNDS = "weight/", "rounds"


@dataclass(frozen=True)
class Settings:
    """FedALA's own settings. All are our choice: the paper's body was not at hand."""

    rate: float = number(1.0, above=0, most=1_000_000)  # eta of W
    share: float = number(0.8, above=0, most=1)  # of the site's images, drawn anew in each round
    first: int = number(5, least=1, most=1000)  # passes in the first round with W; one in each later round


def merge(model: Branches, config: Config, here: Here) -> None:
    """Begin between the site's own model and the received one. In its first round a site takes the received one."""
    if here.dice is None:  # a site that has not trained predicts with the server's model
        keep_trained(model)
    live = {name: p for name, p in model["global"].named_parameters() if p.requires_grad}
    known, rounds = below(WEIGHT, here.memory), int(here.memory.get(ROUNDS, torch.zeros(())))
    weights = {name: known[name].to(p.device) if known else torch.ones_like(p) for name, p in live.items()}
    if here.dice is not None and here.data is not None and known:
        received = {name: p.detach().clone() for name, p in live.items()}
        mine = dict(model["personal"].named_parameters())
        ways = {name: received[name] - mine[name].detach() for name in live}
        generator = torch.Generator().manual_seed(seed_of(f"{config.seed}/{here.name}/{rounds}"))
        model.eval()
        for batch in drawn(here.data, config, generator, passes=config.own(Settings).first if rounds == 1 else 1):
            put(live, mine, ways, weights)
            learn(model, batch, config, ways=ways, weights=weights)
        put(live, mine, ways, weights)
    model.received = under(WEIGHT, weights) | {ROUNDS: torch.tensor(rounds + 1)}


def drawn(data: Dataset, config: Config, generator: torch.Generator, passes: int) -> Iterator[Batch]:
    """The batches of some passes over a share of the site's images."""
    count, size = max(1, round(config.own(Settings).share * len(data))), config.train.batch_size
    chosen = torch.randperm(len(data), generator=generator)[:count]
    for _ in range(passes):
        order = chosen[torch.randperm(count, generator=generator)].tolist()
        yield from (data.batch([View(i) for i in order[at : at + size]]) for at in range(0, count, size))


def learn(model: Branches, batch: Batch, config: Config, *, ways: Tensors, weights: Tensors) -> None:
    """One step of W, in place. `ways` is theta_g - theta_k."""
    model.zero_grad(set_to_none=True)
    descend(model, batch, [], fedavg.losses, config)
    slopes = {n: p.grad for n, p in model["global"].named_parameters() if n in weights and p.grad is not None}
    turn({name: weights[name] for name in slopes}, ways, slopes, config.own(Settings).rate)
    model.zero_grad(set_to_none=True)


def tell(model: Branches, _config: Config, _here: Here, _report: RoundReport) -> Told:
    """The site remembers W. Its personal branch is what it trained."""
    keep_trained(model)
    return Told(memory=dict(model.received))


METHOD = replace(
    ditto.METHOD, loss=fedavg.losses, merge=merge, tell=tell, looks=True, phase=shared_alone, settings=Settings
)
