"""The server's half of a round: what becomes of the sites' contributions. Pure; a method may bring a rule of its own.

FLARE's side and the in-process runner call the same rule with the same state, so that they come out bit-equal.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.exchange.codec import decode, encode
from pfedsam.exchange.schema import EXTRA, Schema, extras_of, misfits, shared_of
from pfedsam.files import Tensors, below, under, unprefixed

MEMORY, MODEL = "memory/", "model/"  # before a name in a checkpoint; no parameter's name holds a slash


@dataclass(frozen=True)
class Contribution:
    """What one site gave in a round.

    Attributes:
        samples: number of its training slices, its weight in a mean.
        opened: makes the update; asked when it is needed, so that many updates can be held as they travelled.
        extras: what the method declares beside the shared tensors, by declared name.
        losses: the site's mean training losses, by name.
    """

    samples: int
    opened: Callable[[], Tensors]
    extras: Tensors = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)

    @property
    def update(self) -> Tensors:
        """The differences to what the site was sent, by wire name; not to be changed in place."""
        return self.opened()


@dataclass(frozen=True)
class ServerState:
    """What the server knows after a round; a checkpoint holds all of it.

    Attributes:
        shared: the shared tensors, by wire name.
        memory: what the rule remembers from round to round, by names of its own.
        models: where a rule makes a model for each site, the shared tensors that the site is sent, by site.
    """

    shared: Tensors
    memory: Tensors = field(default_factory=dict)
    models: Mapping[str, Tensors] = field(default_factory=dict)

    def model_of(self, site: str) -> Tensors:
        """The shared tensors that a site is sent: its own, else everybody's."""
        return self.models.get(site, self.shared)

    def flat(self) -> Tensors:
        """All tensors under one name each, as a checkpoint's file holds them."""
        found = self.shared | under(MEMORY, self.memory)
        for site, model in self.models.items():
            found |= under(f"{MODEL}{site}/", model)
        return found


Rule = Callable[[ServerState, Mapping[str, Contribution], Config], ServerState]


def unflat(tensors: Tensors) -> ServerState:
    """The state out of `ServerState.flat`'s tensors."""
    sites = {name.split("/", 1)[0] for name in below(MODEL, tensors)}
    models = {site: below(f"{MODEL}{site}/", tensors) for site in sorted(sites)}
    return ServerState(unprefixed(tensors), below(MEMORY, tensors), models)


def begin_state(shared: Tensors, down: Schema) -> ServerState:
    """The state before the first round; what the method sends down beside the shared tensors begins at zero.

    Args:
        down: of what goes down, as the method declares it.
    """
    return ServerState(shared, {name: spec.zeros() for name, spec in extras_of(down).items()})


def message(state: ServerState, site: str, config: Config, down: Schema) -> Tensors:
    """What a site is sent, as it travels: its shared tensors, and from the rule's memory what the method declares."""
    extras = {name: state.memory[name] for name in extras_of(down)}
    return encode(state.model_of(site) | under(EXTRA, extras), config.wire.down)


def messages(state: ServerState, sites: Iterable[str], config: Config, down: Schema) -> dict[str, Tensors]:
    """The message of each site; the one that all sites without a model of their own are sent is encoded once."""
    everybody = message(state, "", config, down)
    return {site: message(state, site, config, down) if site in state.models else everybody for site in sites}


def contribution(
    wire: Tensors, samples: int, losses: Mapping[str, float], *, config: Config, up: Schema
) -> Contribution:
    """A site's contribution out of its message, which the guard has let through.

    Args:
        wire: as it travelled.
        up: of all that comes up.
    """
    held, schema = shared_of(wire), shared_of(up)
    return Contribution(samples, lambda: decode(held, schema, config.wire.up), extras_of(wire), losses)


def apply(
    rule: Rule, state: ServerState, contributions: Mapping[str, Contribution], *, config: Config, down: Schema
) -> ServerState:
    """The state that a method's rule makes of a round's contributions.

    Args:
        down: of all that goes down to a site.

    Raises:
        UserFault: the rule's result lacks what the sites are to be sent.
    """
    after = rule(state, contributions, config)
    sent = {name: tensor for name, tensor in under(EXTRA, after.memory).items() if name in down}
    for tensors in (after.shared | sent, *(model | sent for model in after.models.values())):
        if wrong := misfits(tensors, down):
            raise UserFault(
                expected=f"the rule of method {config.method} to keep the shape of all that sites are sent",
                came=f"{len(wrong)} tensors that lack or differ, e.g. {wrong[0]}",
                do="correct the method's file, or ask its authors",
            )
    return after


def mean(state: ServerState, contributions: Mapping[str, Contribution], _config: Config) -> ServerState:
    """The rule of FedAvg and of most methods: w_{t+1} = w_t + sum_k (n_k / n) update_k (Figure 1, "Server")."""
    return moved(state, mean_update(contributions))


def moved(state: ServerState, step: Tensors) -> ServerState:
    """The state with the shared tensors a step further."""
    return replace(state, shared={name: tensor + step[name] for name, tensor in state.shared.items()})


def mean_update(contributions: Mapping[str, Contribution]) -> Tensors:
    """The sample-weighted mean of the sites' updates."""
    total = sum(one.samples for one in contributions.values())
    shares = {site: one.samples / total for site, one in contributions.items()}
    return weighted(shares, lambda site: contributions[site].update)


def weighted(weights: Mapping[str, float], tensors_of: Callable[[str], Tensors]) -> Tensors:
    """The weighted sum of the sites' tensors, bit-equal whatever order the sites came in.

    Sites are summed in the order of their names, in float64, and rounded once.

    Args:
        weights: by site.
        tensors_of: makes a site's tensors, all with the same names; asked for one site at a time.

    Raises:
        ValueError: no sites.
    """
    if not weights:
        raise ValueError("expected at least one site, came none")
    sums: dict[str, Tensor] = {}
    tensors: Tensors = {}
    for site, weight in sorted(weights.items()):
        tensors = tensors_of(site)
        for name, tensor in tensors.items():
            term = tensor.to(torch.float64, copy=True).mul_(weight)
            sums[name] = sums[name].add_(term) if name in sums else term
    return {name: value.to(tensors[name].dtype) for name, value in sums.items()}
