"""A whole run in one process, without FLARE: the same sites, messages and rule, for long series of experiments.

It is bit-equal to the run through FLARE, as `tests/flare/test_simulator.py` tests. It leaves out processes, transport,
guards and policies. An interrupted run continues after its last finished round.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from monai.data import get_track_meta, set_track_meta

from pfedsam import methods
from pfedsam.config import Config, to_dict
from pfedsam.data.classes import check_one_meaning
from pfedsam.data.owners import require_own
from pfedsam.errors import UserFault
from pfedsam.exchange.aggregate import apply, far
from pfedsam.exchange.checkpoint import Checkpoint, Checkpoints
from pfedsam.exchange.masked_round import MaskedRound
from pfedsam.exchange.roster import new_attempt
from pfedsam.exchange.server import Contribution, begin_state, contribution, messages
from pfedsam.files import write_json
from pfedsam.layout import MODELS, RESULTS, Places
from pfedsam.record.back import came_from, left_out
from pfedsam.record.cards import write_part
from pfedsam.record.results import finish, joined, private_begun, sites_of, start, versions
from pfedsam.service import Turn, serve_round, serve_test
from pfedsam.settings import check_sites
from pfedsam.site import Site
from pfedsam.study import down_schema, first_tensors, initial_shared, same_settings, up_schema
from pfedsam.train.precision import best_device

RUN = "run"
OTHER = "name another folder, or remove that one"  # if the folder's run has other settings


@dataclass(frozen=True)
class Plan:
    """What to run, and where.

    Attributes:
        config: the settings.
        places: each site's folders, by its name.
        rounds: the number of rounds.
        folder: for results.json, the shared model and each site's files. Its `store` has the checkpoints.
        begin: another run's folder, to start from its last shared tensors. None: drawn from the seed.
        run: the run's name. `record.back.go_back` makes a new one.
    """

    config: Config
    places: dict[str, Places]
    rounds: int
    folder: Path
    begin: Path | None = None
    run: str = RUN


def federate(plan: Plan, told: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """The content of results.json, after running the remaining rounds and the final test.

    Args:
        told: called with each finished round's entry of results.json.

    Raises:
        UserFault: weights or data are missing or wrong. Or two sites have an image in common,
            or name a class differently. Or the folder holds a run with other settings, other sites,
            other data or another planned number of rounds.
    """
    torch.use_deterministic_algorithms(best_device().type == "cpu")
    check_sites(plan.config, plan.places, plan.rounds)
    checkpoints = Checkpoints(plan.folder / "store", plan.config.study)
    sites = {name: Site(name, plan.config, places) for name, places in sorted(plan.places.items())}
    if plan.config.data.source == "site" and not plan.config.data.pool:
        _check_apart(sites)
    past = checkpoints.load(plan.run)
    if past is None:
        for site in sites.values():
            site.store.forget(plan.run)  # each folder's run has this name
    planned = _planned(plan, sites)
    point = _same(plan, planned, past or _first(plan, planned))
    if past is None:
        checkpoints.save(point)
    for round_ in range(point.done, plan.rounds):
        point = _round(plan, sites, point, round_)
        checkpoints.save(point)
        told(point.results["rounds"][-1])
    return _finish(plan, sites, point)


def _check_apart(sites: dict[str, Site]) -> None:
    """Check what no site can see alone: that all have images of their own, and mean the same by a class."""
    require_own({name: [s.image for of in site.data.values() for s in of.slices] for name, site in sites.items()})
    check_one_meaning({name: site.data["train"].root for name, site in sites.items()})


def _first(plan: Plan, planned: dict[str, Any]) -> Checkpoint:
    any_site = next(iter(plan.places.values()))
    shared, base = initial_shared(plan.config, any_site.weights, any_site.prepared)
    root = (plan.begin or plan.folder) / "store"
    begin = f"{next(root.glob('*/server')).parent.name}/{RUN}" if plan.begin else ""
    shared, begun = first_tensors(root, begin, shared, base, plan.config)
    digest = plan.config.digest()
    results = {**start(to_dict(plan.config), digest, base, begun), "planned": planned, "seconds": 0.0}
    return Checkpoint(plan.run, 0, digest, base, results, begin_state(shared, down_schema(plan.config)))


def _planned(plan: Plan, sites: dict[str, Site]) -> dict[str, Any]:
    """What a run must keep to its end, beside the settings: its schedule and its scores are of all rounds."""
    data = {name: {split: found.content() for split, found in site.data.items()} for name, site in sites.items()}
    return {"rounds": plan.rounds, "sites": sorted(plan.places), "data": data}


def _same(plan: Plan, now: dict[str, Any], point: Checkpoint) -> Checkpoint:
    """The checkpoint, if the plan is that of its run. Its record then has today's versions and device too."""
    run, past = f"the run in {plan.folder}", point.results
    same_settings(plan.config, past["config"], run, OTHER)
    began = now | past.get("planned", {})  # an older version's does not say all
    if _spelt(began) != _spelt(now):
        raise UserFault(expected=f"{_spelt(began)}, as {run} began", came=_spelt(now), do=OTHER)
    if changed := [name for name, data in now["data"].items() if data != began["data"][name]]:
        came = f"changed files, or another datalist, at {', '.join(changed)}"
        raise UserFault(expected=f"the data with which {run} began", came=came, do=OTHER)
    device = torch.cuda.get_device_name() if best_device().type == "cuda" else "CPU"
    ran = {"versions": versions(past["versions"]), "device": joined(past.get("device", ""), device), "planned": began}
    return replace(point, results={**past, **ran})


def _spelt(planned: dict[str, Any]) -> str:
    return f"{planned['rounds']} rounds of {', '.join(planned['sites'])}"


def _round(plan: Plan, sites: dict[str, Site], point: Checkpoint, round_: int) -> Checkpoint:
    began = time.monotonic()
    config = plan.config
    given: dict[str, Contribution] = {}
    reports: dict[str, Any] = {}
    gone, part = left_out(point.results), sites_of(point.results["rounds"])
    due = {name: site for name, site in sites.items() if config.trains(name, round_) and name not in gone}
    sent = messages(point.state, due, config, down_schema(config))
    samples = {name: len(site.data["train"]) for name, site in due.items()}
    hidden = MaskedRound(new_attempt(RUN, round_), config.server, samples) if config.server.secure == "masks" else None
    for name, site in due.items():
        turn = Turn(plan.run, point.base, round_, plan.rounds, name in part, came_from(point.results))
        update, reports[name] = serve_round(site, sent[name], turn)
        losses = update.report.losses
        wire = hidden.masked(name, update.wire) if hidden else update.wire
        given[name] = contribution(wire, update.samples, losses, config=config, up=up_schema(config))
    given = hidden.opened(given, up_schema(config)) if hidden else given
    rule, down, part_of = methods.get(config.method).rule, down_schema(config), sites.keys() - gone
    state = apply(rule, point.state, given, config=config, down=down, sites=part_of)
    seconds = time.monotonic() - began
    done = {"round": round_, "seconds": seconds, "sites": reports, "rejected": far(point.state, given, config)}
    past = point.results
    begun = private_begun(past, reports)
    rounds = [*past["rounds"], done]
    results = {**past, "begun_with": begun, "rounds": rounds, "seconds": past["seconds"] + seconds}
    return Checkpoint(plan.run, round_ + 1, point.config, point.base, results, state)


def _finish(plan: Plan, sites: dict[str, Site], point: Checkpoint) -> dict[str, Any]:
    began = time.monotonic()
    part, tested = sites_of(point.results["rounds"]), {}
    sent = messages(point.state, sites, plan.config, down_schema(plan.config))
    for name in sorted(sites.keys() - left_out(point.results)):
        turn = Turn(plan.run, point.base, point.done, plan.rounds, name in part, came_from(point.results))
        tested[name] = serve_test(sites[name], sent[name], turn, plan.folder / name)
    results = {**point.results, "final": {**point.results["final"], "sites": tested}}
    results = finish(results, point.results["seconds"] + time.monotonic() - began)
    facts = {"run": plan.run, "round": str(point.done - 1), "config": point.config, "base": point.base}
    write_part(plan.folder / MODELS / "shared", "shared", point.state.shared, config=plan.config, facts=facts)
    write_json(plan.folder / RESULTS, results)
    return results


@contextmanager
def torch_as_it_was() -> Iterator[None]:
    """Afterwards torch's threads, random numbers and algorithms, and MONAI's tracking, are the caller's again."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    lenient, tracked = torch.is_deterministic_algorithms_warn_only_enabled(), get_track_meta()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_available() else ()):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict, warn_only=lenient)
            set_track_meta(tracked)
