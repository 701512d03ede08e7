"""What a method is: the branches it builds, what it shares, its local step, and how it merges.

A method is one file in this folder with a `METHOD`. docs/method.md lists all methods.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfedsam.config import Config
from pfedsam.data.dataset import Augment, Dataset
from pfedsam.errors import UserFault
from pfedsam.exchange.privacy import Noise
from pfedsam.exchange.schema import Schema
from pfedsam.exchange.server import Rule, mean
from pfedsam.model.backbones import Backbone
from pfedsam.model.build import Adapt, lora, segmenter
from pfedsam.model.partition import Declaration, Kind, Part, Partition, partition
from pfedsam.model.segmenter import Branches, Segmenter
from pfedsam.tensors import Tensors
from pfedsam.train.loop import Phase, RoundReport, always
from pfedsam.train.step import Hook, LossOf, untouched


@dataclass(frozen=True)
class NoSettings:
    """The settings of a method that has none of its own."""


# a role's (global, personal) current mean Dice on the site's validation split; NaN: nothing to score
Dice = Callable[[str], float]
Augmented = Augment | None
Extras = Callable[[Schema, Config], Schema]


@dataclass(frozen=True)
class Here:
    """What a method may use at a site in a round, beside its model. By default, nothing.

    Attributes:
        dice: scores a role's current branch. None: the site has no private part yet.
        data: the site's training split. It never leaves the site.
        extras: what the server's rule sent beside the shared tensors, by declared name.
        memory: what `tell` left in the site's last round of this run. Empty in the first.
        name: the site's name.
        noise: gives for a purpose random numbers that nobody outside the site can guess, each time the same.
        seed: the site's own, for the method's draws. The same in every round and process.
    """

    dice: Dice | None = None
    data: Dataset | None = None
    extras: Tensors = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)
    name: str = ""
    noise: Callable[[str], Noise] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Told:
    """What a method hands over after a site has trained.

    Attributes:
        extras: tensors that go up beside the update, exactly those that `Method.up` declares.
        memory: tensors that stay at the site, for its next round of the run.
    """

    extras: Tensors = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)


def no_extras(_shared: Schema, _config: Config) -> Schema:
    """Nothing travels beside the shared tensors."""
    return {}


def nothing_told(_model: Branches, _config: Config, _here: Here, _report: RoundReport) -> Told:
    """Nothing is sent beside the update, and nothing is kept beside the private part."""
    return Told()


def all_of_it(_model: Branches, _config: Config, update: Tensors) -> Tensors:
    """The whole update."""
    return update


def as_it_is(augment: Augmented, _config: Config, _here: Here) -> Augmented:
    """The job's augmentation, unchanged."""
    return augment


def uncached(augment: Augmented, _config: Config, _here: Here) -> Augmented:
    """The job's augmentation, for a method whose steps need the image: not being `as_it_is`, it forbids a cache."""
    return augment


def of_others(bank: Tensor, own: Tensor | None) -> Tensor:
    """The rows of a bank (`exchange.server.bank`) that are filled, and are none of the site's own rows."""
    mine = [] if own is None else list(own)
    return bank[[i for i, row in enumerate(bank) if row.any() and not any(torch.equal(row, one) for one in mine)]]


def note_received(model: Branches, _config: Config, _here: Here) -> None:
    """A `merge` that copies the global branch's trained parameters, as the server sent them, to `model.received`."""
    live = model["global"].named_parameters()
    model.received = {name: p.detach().clone() for name, p in live if p.requires_grad}


@torch.no_grad()
def copy_trained(model: Branches, branch: str) -> None:
    """Make another branch a copy of the global one, in all that is trained."""
    target = dict(model[branch].named_parameters())
    for name, p in model["global"].named_parameters():
        if p.requires_grad:
            target[name].copy_(p)


def keep_trained(model: Branches) -> None:
    """Make the personal branch a copy of the trained global one. It is private: the site predicts with it."""
    copy_trained(model, "personal")


def shared_alone(_done: int, _steps: int) -> frozenset[Part]:
    """A `phase` in which every step trains only the shared part."""
    return frozenset({Part.SHARED})


def encoder_alone(model: Branches, _config: Config) -> None:
    """A `gradient` that takes all but the global branch's encoder out of the step. Weight decay would still move it."""
    for name, p in model["global"].named_parameters():
        if not name.startswith("encoder."):
            p.grad = None


def distance(branch: Segmenter, received: dict[str, Tensor]) -> Tensor:
    """|w - w_t|^2 over a branch's trained parameters, a scalar. `received` is w_t (Li et al. 2020, FedProx)."""
    live = dict(branch.named_parameters())
    return torch.stack([(live[name] - there).square().sum() for name, there in received.items()]).sum()


@dataclass(frozen=True)
class Method:
    """One federated method.

    Attributes:
        build: makes the branches from the global branch with its adapters.
        declare: says shared, private or frozen, by branch and kind. It may depend on the configuration.
        loss: gives the local step's losses, which are summed and minimised together.
        terms: the names of its losses beside "global" and "personal". A site's report may have no other name.
        merge: called when a round's shared tensors and the site's private part are loaded. It combines the two and
            gets what the server's rule sent. It is also called before the final test, ahead of loading the private
            part, and with `Here()` when a model file predicts.
        personal: the branch that predicts at its own site.
        global_: the branch for a site that never took part.
        adapt: puts adapters into the global branch.
        encoder_lora: whether `adapt` puts LoRA into the encoder's blocks.
        trains: kinds of the pretrained model that are trained. All others stay frozen.
        decoder_lora: whether SAM's decoder may have LoRA (`model.decoder` lora). A method that says itself what of the
            decoder is trained or averaged would be another one with it.
        phase: gives the parts that the next step trains, from the numbers of done and of all steps of the round.
        joins: whether the method needs the model of another run to begin with.
        rule: what the server makes of the sites' contributions.
        own_models: whether the rule makes a model for each site. Then no site tests the shared one.
        blends: whether `merge` changes the global branch by what the site remembers. No site then predicts with the
            server's tensors as they are.
        up: what goes up beside the update, by name, from the shared tensors' schema: shape, dtype, bound.
        down: what goes down beside the shared tensors: these names of the rule's memory. They begin at zero.
        tell: called after training. It gives what goes up and what the site remembers. A site that lost that stops.
        sends: what of its update a site sends, from the difference to what it received. It keeps names and shapes.
        looks: whether `merge` learns from the site's images, whose patients no noise would hide there.
        couples: whether its loss keeps something from one image to the next. It then goes with no DP-SGD.
        gradient: called in each step between the gradient and the optimisers. It may change gradients in place.
        stepped: called in each step after the optimisers. It sees the weights that the step made.
        augment: makes the round's augmentation from the job's (None: off). It cannot be used with `train.cache`.
        unlabelled: whether it learns from images without labels. Otherwise they are left out and do not count.
        prompts: whether it has SAM label the site's images. Its model then holds SAM's prompt encoder.
        derived: names of `up` whose values are made of images themselves. A hospital must permit such a method.
        drawn: whether what is shared goes with adapters that the seed draws and nobody sends.
        keeps: whether it is another method if nothing of its one branch stays at the site.
        settings: the frozen dataclass of its own settings, read from "method" in a job. No field may be called name.
    """

    build: Callable[[Segmenter, Config], Branches]
    declare: Callable[[Config], Declaration]
    loss: LossOf
    merge: Callable[[Branches, Config, Here], None]
    personal: str
    global_: str
    terms: tuple[str, ...] = ()
    adapt: Adapt = lora
    encoder_lora: bool = True
    trains: frozenset[Kind] = frozenset()
    decoder_lora: bool = True
    phase: Phase = always
    joins: bool = False
    rule: Rule = mean
    own_models: bool = False
    blends: bool = False
    up: Extras = no_extras
    down: Extras = no_extras
    tell: Callable[[Branches, Config, Here, RoundReport], Told] = nothing_told
    sends: Callable[[Branches, Config, Tensors], Tensors] = all_of_it
    looks: bool = False
    couples: bool = False
    gradient: Hook = untouched
    stepped: Hook = untouched
    augment: Callable[[Augmented, Config, Here], Augmented] = as_it_is
    unlabelled: bool = False
    prompts: bool = False
    derived: frozenset[str] = frozenset()
    drawn: bool = False
    keeps: bool = False
    settings: type = NoSettings

    @property
    def losses(self) -> frozenset[str]:
        """The names that its losses may have."""
        return frozenset(("global", "personal", *self.terms))

    def shares(self, config: Config) -> bool:
        """Whether a site sends anything of its model."""
        part_of = self.declare(config)
        return any(part_of(self.global_, kind) is Part.SHARED for kind in Kind)

    def model(self, parts: Backbone, config: Config) -> Branches:
        """The branches on a backbone. The job's seed draws what is not pretrained, torch's generator the experts."""
        model = self.build(segmenter(config, parts, self.adapt), config)
        model.prompts = parts.prompts if self.prompts else None
        return model

    def partition(self, model: Branches, config: Config) -> Partition:
        """Which parameter of `model` is shared, private or frozen under `config`.

        Raises:
            UserFault: there is a personal branch, but nothing in it is private.
        """
        found = partition(model, self.declare(config), config.model.decoder, self.trains)
        if self.personal != self.global_ and not found.names(Part.PRIVATE):
            wanted = f"model.experts or model.experts_rank of 1 or more in {config.method}: nothing else is private"
            raise UserFault(expected=wanted, came="0 and 0", do="raise one of them, or use fedavg")
        if self.keeps and not found.names(Part.PRIVATE):
            wanted = f"another model.decoder in {config.method}: nothing but the decoder is private"
            raise UserFault(expected=wanted, came=config.model.decoder, do="set it to full or lean, or use fedavg")
        return found
