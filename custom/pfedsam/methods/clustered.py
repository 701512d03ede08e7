"""Clustered federated learning (Sattler et al. 2020): a model for each group of sites whose updates point alike.

In round `method.after` the sites are split for good, by the cosines of that round's updates. A group's model then is
the mean of its members' models. As in the paper no pair of sites across two groups is more alike than the pairs that
join a group (single linkage). Our choices: a number of groups and a round for the split, instead of the paper's tests
on the updates' norms; the split waits for a round in which as many sites answer as there are to be groups; a site that
comes later joins the group of the site that is most like it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import torch

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.exchange.bounded import fair
from pfedsam.exchange.change import cosine
from pfedsam.exchange.server import Contribution, ServerState, mean, mean_model
from pfedsam.methods import fedavg
from pfedsam.methods.similarity import Cosines
from pfedsam.tensors import Tensors, below, under

GROUP, ROUNDS = "group/", "rounds"  # in the state's memory: the number of each site's group; the rounds that are done
Groups = Mapping[str, int]  # by site


@dataclass(frozen=True)
class Settings:
    """The rule's own settings. Both are our choice."""

    groups: int = number(2, least=1, most=100)  # of sites
    after: int = number(1, least=1, most=100_000)  # the round whose updates split the sites, counted from 1


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """The mean of all sites until the split, then a mean in each group."""
    own, done = config.own(Settings), int(state.memory.get(ROUNDS, torch.zeros(1))) + 1
    memory = state.memory | {ROUNDS: torch.tensor([done])}
    if done < own.after:
        return replace(mean(state, contributions, config), memory=memory)
    moves = {site: one.update for site, one in sorted(contributions.items())}
    alike = {frozenset(pair): cosine(*(moves[site] for site in pair)) for pair in combinations(moves, 2)}
    groups = joined(state, moves, alike, own.groups)
    return grouped(state, contributions, groups, memory, most=config.server.most_share)


def groups_in(state: ServerState) -> Groups:
    """The group of each site, as the rule remembers it. Empty before the split."""
    return {site: int(group) for site, group in below(GROUP, state.memory).items()}


def joined(state: ServerState, sites: Collection[str], alike: Cosines, count: int) -> Groups:
    """The group of each known and each new site. If none is known, the sites are split now. Empty: they are too few.

    Args:
        alike: how alike two sites are, by pair.
        count: the number of groups.
    """
    known = groups_in(state)
    if not known and len(sites) < min(count, state.sites):
        return {}
    if not known:
        return {site: number for number, group in enumerate(split(sites, alike, count)) for site in group}
    found = dict(known)
    for site in sorted(set(sites) - known.keys()):
        near = {other: alike[frozenset({site, other})] for other in known if frozenset({site, other}) in alike}
        found[site] = known[max(sorted(near) or sorted(known), key=lambda other: near.get(other, 0.0))]
    return found


def split(sites: Iterable[str], alike: Cosines, count: int) -> list[frozenset[str]]:
    """At most `count` groups, in the order of their first sites' names: the two that hold the most alike pair join."""
    groups = [frozenset({site}) for site in sorted(sites)]
    while len(groups) > count:
        pairs = {(a, b): max(alike[frozenset({x, y})] for x in a for y in b) for a, b in combinations(groups, 2)}
        a, b = max(pairs, key=lambda pair: pairs[pair])  # the first of equal pairs
        groups = sorted([a | b, *(one for one in groups if one not in (a, b))], key=min)
    return groups


def grouped(
    state: ServerState, given: Mapping[str, Contribution], groups: Groups, memory: Tensors, *, most: float
) -> ServerState:
    """The state after a mean in each group. All members get it, those that were away too. `memory` is kept as well.

    Args:
        most: a site's most weight in its group, in equal shares there. In a run of three sites or more.
    """
    models = dict(state.models)
    for group in sorted(set(groups.values())):
        members = {site for site, number in groups.items() if number == group}
        if sent := {site: one for site, one in given.items() if site in members}:
            models |= dict.fromkeys(members, mean_model(state, fair(sent, most, state.sites)))
    kept = memory | under(GROUP, {site: torch.tensor([number]) for site, number in groups.items()})
    return replace(state, shared=mean_model(state, given), models=models, memory=kept)


METHOD = replace(fedavg.METHOD, rule=rule, own_models=True, settings=Settings)
