"""The server's half of a round: what becomes of the sites' contributions. Pure. A method may bring its own rule.

FLARE's side and the in-process runner call the same rule with the same state, so their results are bit-equal.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pfedsam.config import Config
from pfedsam.exchange.codec import decode, encode
from pfedsam.exchange.schema import EXTRA, Schema, extras_of, shared_of
from pfedsam.tensors import Tensors, below, under, unprefixed

MEMORY, MODEL = "memory/", "model/"  # before a name in a checkpoint; no parameter's name holds a slash
OWN = "own/"  # before a site's name, in a memory that keeps what the site last sent


@dataclass(frozen=True)
class Contribution:
    """What one site sent in a round.

    Attributes:
        samples: the number of its training slices, its weight in a mean. `bounded.fair` may lower it.
        opened: decodes the update. It is called only when needed, so that many updates can be held encoded.
        extras: what the method declares beside the shared tensors, by declared name.
        losses: the site's mean training losses, by name.
    """

    samples: float
    opened: Callable[[], Tensors]
    extras: Tensors = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)

    @property
    def update(self) -> Tensors:
        """The differences to what the site was sent, by wire name. They must not be changed in place."""
        return self.opened()


@dataclass(frozen=True)
class ServerState:
    """What the server knows after a round. A checkpoint holds all of it.

    Attributes:
        shared: the shared tensors, by wire name.
        memory: what the rule remembers from round to round, by its own names.
        models: for a rule that makes a model for each site: the shared tensors that the site is sent, by site.
        sites: the most sites that the run has had. An older version's checkpoint does not say: 0.
        usual: how long updates were by kind (`bounded.KINDS`), in the last round in which three sites or more answered.
    """

    shared: Tensors
    memory: Tensors = field(default_factory=dict)
    models: Mapping[str, Tensors] = field(default_factory=dict)
    sites: int = 0
    usual: Mapping[str, float] = field(default_factory=dict)

    def model_of(self, site: str) -> Tensors:
        """The shared tensors that a site is sent: its own model if it has one, else everybody's."""
        return self.models.get(site, self.shared)

    def flat(self) -> Tensors:
        """All tensors under different names, as a checkpoint's file holds them. No two have one memory."""
        found = under(MEMORY, self.memory)
        for site, model in self.models.items():
            found |= under(f"{MODEL}{site}/", model)
        return self.shared | {name: tensor.clone() for name, tensor in found.items()}


Given = Mapping[str, Contribution]  # by site
Rule = Callable[[ServerState, Given, Config], ServerState]


def unflat(tensors: Tensors) -> ServerState:
    """The state, from the tensors of `ServerState.flat`."""
    sites = {name.split("/", 1)[0] for name in below(MODEL, tensors)}
    models = {site: below(f"{MODEL}{site}/", tensors) for site in sorted(sites)}
    return ServerState(unprefixed(tensors), below(MEMORY, tensors), models)


def begin_state(shared: Tensors, down: Schema) -> ServerState:
    """The state before the first round. What the method sends down beside the shared tensors begins at zero.

    Args:
        down: the schema of all that goes down to a site.
    """
    return ServerState(shared, {name: spec.zeros() for name, spec in extras_of(down).items()})


def message(state: ServerState, site: str, config: Config, down: Schema) -> Tensors:
    """The encoded message to a site: its shared tensors, and what the method declares of the rule's memory."""
    extras = {name: state.memory[name] for name in extras_of(down)}
    return encode(state.model_of(site) | under(EXTRA, extras), config.wire.down)


def messages(state: ServerState, sites: Iterable[str], config: Config, down: Schema) -> dict[str, Tensors]:
    """The message to each site. The message that sites without their own model have in common is encoded once."""
    everybody = message(state, "", config, down)
    return {site: message(state, site, config, down) if site in state.models else everybody for site in sites}


def contribution(
    wire: Tensors, samples: float, losses: Mapping[str, float], *, config: Config, up: Schema
) -> Contribution:
    """A site's contribution, from a message that the guard has accepted.

    Args:
        wire: the encoded message.
        up: the schema of all that comes up from a site.
    """
    held, schema = shared_of(wire), shared_of(up)
    return Contribution(samples, lambda: decode(held, schema, config.wire.up), extras_of(wire), losses)


def mean(state: ServerState, contributions: Mapping[str, Contribution], _config: Config) -> ServerState:
    """The rule of FedAvg and of most methods: w_{t+1} = w_t + sum_k (n_k / n) update_k (Figure 1, "Server")."""
    return moved(state, mean_update(contributions))


def moved(state: ServerState, step: Tensors) -> ServerState:
    """The state with `step` added to the shared tensors."""
    return replace(state, shared={name: tensor + step[name] for name, tensor in state.shared.items()})


def mean_update(contributions: Mapping[str, Contribution]) -> Tensors:
    """The sample-weighted mean of the sites' updates."""
    total = sum(one.samples for one in contributions.values())
    shares = {site: one.samples / total for site, one in contributions.items()}
    return weighted(shares, lambda site: contributions[site].update)


def trained(state: ServerState, contributions: Mapping[str, Contribution], site: str) -> Tensors:
    """A site's model after the round: what it was sent plus its update, if it sent one."""
    sent = state.model_of(site)
    moves = contributions[site].update if site in contributions else {}
    return {name: tensor + moves[name] if moves else tensor for name, tensor in sent.items()}


def mean_model(state: ServerState, contributions: Mapping[str, Contribution]) -> Tensors:
    """The sample-weighted mean of the models of all sites that sent an update, whatever each was sent."""
    total = sum(one.samples for one in contributions.values())
    shares = {site: one.samples / total for site, one in contributions.items()}
    return weighted(shares, lambda site: trained(state, contributions, site))


def banked(state: ServerState, contributions: Mapping[str, Contribution], extra: str, name: str) -> Tensors:
    """The rule's memory with what each site last sent under `extra`, and under `name` the bank of all, to be sent."""
    own = below(OWN, state.memory) | {site: one.extras[extra] for site, one in contributions.items()}
    return {name: bank(own, state.memory[name])} | under(OWN, own)


def bank(of_sites: Tensors, slots: Tensor) -> Tensor:
    """A tensor like `slots` whose rows are the sites' rows in turn: the first of each site, then the second of each.

    Sites come in the order of their names. What does not fit is left out, and what nothing fills is zero.

    Args:
        of_sites: by site, all with the same number of rows.
    """
    found = torch.zeros_like(slots)
    rows = torch.stack([of_sites[site] for site in sorted(of_sites)], 1).flatten(0, 1)[: len(slots)]
    found[: len(rows)] = rows
    return found


def weighted(weights: Mapping[str, float], tensors_of: Callable[[str], Tensors]) -> Tensors:
    """The weighted sum of the sites' tensors. It is bit-equal in whatever order the sites answered.

    Sites are summed in the order of their names, in float64, and rounded once. This is our choice.

    Args:
        weights: by site.
        tensors_of: makes a site's tensors, all with the same names. Called for one site at a time.

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
