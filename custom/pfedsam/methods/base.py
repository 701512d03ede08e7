"""What a method is: the branches it builds, what it shares, its local step, and how it merges.

A method is one file in this folder with a `METHOD`; docs/method.md and the registry name them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfedsam.config import Config
from pfedsam.data.dataset import Augment, Dataset
from pfedsam.errors import UserFault
from pfedsam.exchange.schema import Schema
from pfedsam.exchange.server import Rule, mean
from pfedsam.files import Tensors
from pfedsam.model.backbones import Backbone
from pfedsam.model.build import Adapt, lora, segmenter
from pfedsam.model.partition import Declaration, Kind, Part, Partition, partition
from pfedsam.model.segmenter import Branches, Segmenter
from pfedsam.train.loop import Phase, RoundReport, always
from pfedsam.train.step import Gradient, LossOf, untouched


@dataclass(frozen=True)
class NoSettings:
    """Of a method without settings of its own."""


# a role's (global, personal) mean Dice on the site's validation split, as it stands; NaN: nothing to score
Dice = Callable[[str], float]
Augmented = Augment | None
Extras = Callable[[Schema, Config], Schema]


@dataclass(frozen=True)
class Here:
    """What a method's part at a site may go by in a round, beside its model. By default, nothing.

    Attributes:
        dice: scores a role's branch as it is; None: the site has no private part yet.
        data: the site's training split; it never leaves the site.
        extras: what the server's rule sent beside the shared tensors, by declared name.
        memory: what `tell` left after the site's last round of this run; empty before it.
    """

    dice: Dice | None = None
    data: Dataset | None = None
    extras: Tensors = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What a method says when a site has trained.

    Attributes:
        extras: goes up beside the update: what `Method.up` declares, exactly.
        memory: stays at the site, for its next round of the run.
    """

    extras: Tensors = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)


def no_extras(_shared: Schema, _config: Config) -> Schema:
    """Nothing travels beside the shared tensors."""
    return {}


def nothing_told(_model: Branches, _config: Config, _here: Here, _report: RoundReport) -> Told:
    """Nothing travels or stays beside update and private part."""
    return Told()


def as_it_is(augment: Augmented, _config: Config, _here: Here) -> Augmented:
    """The job's augmentation."""
    return augment


def note_received(model: Branches, _config: Config, _here: Here) -> None:
    """A `merge` that keeps a copy of what the global branch trains, as the server sent it."""
    live = model["global"].named_parameters()
    model.received = {name: p.detach().clone() for name, p in live if p.requires_grad}


def distance(branch: Segmenter, received: dict[str, Tensor]) -> Tensor:
    """|w - w_t|^2 over a branch's trained parameters, w_t as noted."""
    live = dict(branch.named_parameters())
    return torch.stack([(live[name] - there).square().sum() for name, there in received.items()]).sum()


@dataclass(frozen=True)
class Method:
    """One federated method.

    Attributes:
        build: the branches, from the global branch with its adapters.
        declare: shared, private or frozen, by branch and kind; may depend on the configuration.
        loss: the local step's losses, summed and minimised together.
        merge: called when a round's shared tensors and the site's private part have been loaded; brings the two in
            line, and hears what the server's rule sent. Also called before the final test, ahead of the stored private
            part; and with `Here()` where a model file is to predict.
        personal: the branch this method predicts with at its own site.
        global_: the branch it offers to a site it has never seen.
        adapt: puts adapters into the global branch.
        trains: kinds of the pretrained model that it trains; all others stay frozen.
        phase: which parts the next step trains, when so many of a round's steps are done.
        joins: whether it begins with the model of another run, and needs one.
        rule: what the server makes of the sites' contributions.
        up: what goes up beside the update, by name, from the shared tensors' schema: shape, dtype, bound.
        down: what goes down beside the shared tensors: these names of the rule's memory. They begin at zero.
        tell: called after training: what goes up, and what the site remembers. A site that lost it stops.
        gradient: called in each step between the gradient and the optimisers; may change gradients in place.
        augment: the augmentation of a round, made from the job's (None: off). Not with `train.cache`.
        settings: the frozen dataclass of its own settings, read from "method" in a job; no field may be called name.
    """

    build: Callable[[Segmenter, Config], Branches]
    declare: Callable[[Config], Declaration]
    loss: LossOf
    merge: Callable[[Branches, Config, Here], None]
    personal: str
    global_: str
    adapt: Adapt = lora
    trains: frozenset[Kind] = frozenset()
    phase: Phase = always
    joins: bool = False
    rule: Rule = mean
    up: Extras = no_extras
    down: Extras = no_extras
    tell: Callable[[Branches, Config, Here, RoundReport], Told] = nothing_told
    gradient: Gradient = untouched
    augment: Callable[[Augmented, Config, Here], Augmented] = as_it_is
    settings: type = NoSettings

    def model(self, parts: Backbone, config: Config) -> Branches:
        """The branches on a backbone; what is not pretrained drawn from the job's seed, experts as torch stands."""
        return self.build(segmenter(config, parts, self.adapt), config)

    def partition(self, model: Branches, config: Config) -> Partition:
        """Which parameter of `model` is shared, private or frozen under `config`.

        Raises:
            UserFault: there is a personal branch, and nothing in it is a site's own.
        """
        found = partition(model, self.declare(config), config.model.decoder, self.trains)
        if self.personal != self.global_ and not found.names(Part.PRIVATE):
            wanted = f"model.experts of 1 or more in {config.method}, where nothing else is a site's own"
            raise UserFault(expected=wanted, came=str(config.model.experts), do="raise it, or take fedavg")
        return found
