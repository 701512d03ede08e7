"""A run that goes back: to which model, with which private parts, and without whom."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import tiny
from pfedsam.errors import Diverged, UserFault
from pfedsam.exchange.checkpoint import Checkpoint, Checkpoints
from pfedsam.exchange.server import ServerState, message
from pfedsam.exchange.store import Moment
from pfedsam.federation import RUN, Plan, federate
from pfedsam.layout import Places
from pfedsam.record.back import came_from, go_back, left_out, line_in
from pfedsam.service import Turn, serve_round
from pfedsam.study import down_schema, initial_shared
from pfedsam.tensors import Tensors

LOSSY = {"up": "int4", "down": "int8"}
SITES = ("site-1", "site-2")


def plan(hospital: Path, folder: Path, rounds: int = 3, **changes: object) -> Plan:
    return Plan(tiny(**changes), dict.fromkeys(SITES, Places(hospital, folder / "sites")), rounds, folder)


def points(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "store", "pfedsam")


def cut(after: int, plan: Plan) -> None:
    """Run a plan, and let it die after so many rounds."""

    def die(entry: dict[str, Any]) -> None:
        if entry["round"] + 1 == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(plan, die)


def poison(folder: Path, done: int) -> None:
    """Put finite values on which nobody can train into a run's checkpoint, as one hostile site could once."""
    point = points(folder).newest(RUN, done)
    models = {site: huge(model) for site, model in point.state.models.items()}
    points(folder).save(replace(point, state=replace(point.state, shared=huge(point.state.shared), models=models)))


def huge(model: Tensors, value: float = 3e38) -> Tensors:
    return {name: torch.full_like(tensor, value) for name, tensor in model.items()}


def last(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"store/pfedsam/server/{run}/round.000003.safetensors")


REMEMBER = (
    "scaffold",
    "fedavgm",
    "similarity",
    "apple",
    "clustered",
    "drflm",
    "fca",
    "fedala",
    "fedda",
    "feddyn",
    "moon",
)
LONG = [pytest.param({"method": name}, marks=pytest.mark.long, id=name) for name in REMEMBER]


@pytest.mark.parametrize("changes", [pytest.param({"wire": LOSSY}, id="pfedsam in integers"), *LONG])
def test_a_poisoned_run_goes_back_to_the_bits_of_the_run_that_was_never_disturbed(
    hospital: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """The newest checkpoint was the poisoned one, and the run could never go on."""
    whole = federate(plan(hospital, tmp_path / "whole", **changes))
    bad = plan(hospital, tmp_path / "bad", **changes)
    cut(2, bad)
    poison(tmp_path / "bad", 2)
    for _ in range(2):
        with pytest.raises(Diverged):
            federate(bad)
    new = go_back(points(tmp_path / "bad"), RUN)
    assert new.done == 1
    found = federate(replace(bad, run=new.run))
    assert found["final"] == whole["final"]
    assert [entry["round"] for entry in found["rounds"]] == [0, 1, 2]
    assert found["back"] == [{"run": RUN, "round": 1, "without": []}]
    state = last(tmp_path / "bad", new.run)
    assert all(torch.equal(tensor, state[name]) for name, tensor in last(tmp_path / "whole", RUN).items())


@pytest.mark.parametrize("done", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_a_finished_run_goes_back_to_any_round_that_sites_still_have_and_trains_the_same_again(
    hospital: Path, tmp_path: Path, done: int
) -> None:
    the = plan(hospital, tmp_path)
    whole = federate(the)
    new = go_back(points(tmp_path), RUN, done)
    assert new.done == done
    assert federate(replace(the, run=new.run))["final"] == whole["final"]
    twice = go_back(points(tmp_path), new.run, 1)
    assert came_from(twice.results) == (Moment(RUN, done), Moment(new.run, 1))
    assert federate(replace(the, run=twice.run))["final"] == whole["final"]


def test_nothing_of_the_run_before_is_touched_at_the_server_or_at_a_site(hospital: Path, tmp_path: Path) -> None:
    the = plan(hospital, tmp_path)
    federate(the)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "owner"}
    new = go_back(points(tmp_path), RUN, 1)
    federate(replace(the, run=new.run, folder=tmp_path, rounds=3))
    later = {path: path.read_bytes() for path in before if "store" in path.parts or "sites" in path.parts}
    assert later
    assert later.items() <= before.items()


def test_a_site_without_the_experts_of_then_goes_on_with_the_oldest_that_it_has(hospital: Path, tmp_path: Path) -> None:
    the = plan(hospital, tmp_path, rounds=6)
    federate(the)
    kept = {"run": RUN, "round": 3}  # its store has rounds 3, 4 and 5
    found = federate(replace(the, run=go_back(points(tmp_path), RUN, 2).run))
    assert [found["rounds"][2]["sites"][site]["private"] for site in SITES] == [kept, kept]
    assert found["rounds"][3]["sites"]["site-1"]["private"]["round"] == 2
    assert len(found["rounds"]) == 6


def test_a_site_that_had_not_trained_yet_begins_as_it_began(hospital: Path, tmp_path: Path) -> None:
    """What it trained later has seen models of later rounds."""
    the = plan(hospital, tmp_path, every={"site-2": 2})
    federate(the)
    new = go_back(points(tmp_path), RUN, 0)
    found = federate(replace(the, run=new.run))
    assert [found["rounds"][0]["sites"][site]["private"] for site in SITES] == [{}, {}]


def test_a_site_that_leaves_is_out_from_before_its_first_update(hospital: Path, tmp_path: Path) -> None:
    """As if it had never been there: the run of the others alone gives the same bits."""
    alone = federate(plan(hospital, tmp_path / "alone", every={"site-2": 0}))
    the = plan(hospital, tmp_path / "both")
    federate(the)
    new = go_back(points(tmp_path / "both"), RUN, without="site-2")
    assert (new.done, left_out(new.results)) == (0, {"site-2"})
    found = federate(replace(the, run=new.run))
    assert [set(entry["sites"]) for entry in found["rounds"]] == [{"site-1"}] * 3
    assert found["final"]["sites"] == {"site-1": alone["final"]["sites"]["site-1"]}
    assert left_out(go_back(points(tmp_path / "both"), new.run, 1).results) == {"site-2"}


def point(done: int, **sites: int) -> Checkpoint:
    """A run after `done` rounds. Each site joined in the round that it is given with."""
    rounds = [{"round": n, "sites": {s: {} for s, since in sites.items() if n >= since}} for n in range(done)]
    return Checkpoint(RUN, done, "config", "base", {"rounds": rounds}, ServerState({"a": torch.full((2,), done / 1)}))


def written(root: Path, rounds: int, keep: int = 100, **sites: int) -> Checkpoints:
    found = Checkpoints(root, "study", keep)
    for done in range(rounds + 1):
        found.save(point(done, **sites))
    return found


def test_the_newest_model_is_not_good_yet_and_an_earlier_one_is(tmp_path: Path) -> None:
    found = written(tmp_path, 6)
    assert go_back(found, RUN).done == 5
    assert go_back(found, RUN, 6).done == 5
    new = go_back(found, RUN, 3)
    assert (new.done, float(new.state.shared["a"][0]), len(new.results["rounds"])) == (3, 3.0, 3)
    assert found.load(new.run).done == 3
    assert found.load(RUN).done == 6


def test_a_damaged_or_dropped_checkpoint_means_the_one_before(tmp_path: Path) -> None:
    found = written(tmp_path, 6)
    (found.folder / RUN / "round.000004.safetensors").write_bytes(b"torn")
    assert go_back(found, RUN, 4).done == 3
    (found.folder / RUN / "round.000003.json").unlink()
    assert go_back(found, RUN, 4).done == 2


def test_what_a_run_no_longer_has_is_looked_for_in_the_run_that_it_went_back_from(tmp_path: Path) -> None:
    found = written(tmp_path, 6, a=0, b=2)
    new = go_back(found, RUN, 4)
    again = go_back(found, new.run, without="b")
    assert again.done == 2
    assert came_from(again.results) == (Moment(RUN, 4), Moment(new.run, 2))


def test_the_best_model_goes_along_if_it_is_from_before(tmp_path: Path) -> None:
    found = written(tmp_path, 6)
    found.save_best(RUN, point(3).state.shared, {"round": "2", "val_dice": "0.5"})  # counted from 0
    assert found.load_best(go_back(found, RUN, 3).run)[1]["val_dice"] == "0.5"
    assert found.load_best(go_back(found, RUN, 2).run) is None


def test_a_best_model_with_the_update_of_a_site_that_leaves_stays_behind(tmp_path: Path) -> None:
    found = written(tmp_path, 6, a=0, b=2)
    found.save_best(RUN, point(3).state.shared, {"round": "2", "val_dice": "0.5"})
    assert found.load_best(go_back(found, RUN, without="b").run) is None


def test_a_best_model_that_no_round_made_goes_along_always(tmp_path: Path) -> None:
    found = written(tmp_path, 6)
    found.save_best(RUN, point(0).state.shared, {"val_dice": "0.5"})
    assert found.load_best(go_back(found, RUN, 0).run)[1] == {"val_dice": "0.5"}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"most": 7}, "number of finished rounds of run run, from 0 to 6; came 7"),
        ({"most": -1}, "came -1"),
        ({"without": "c"}, "a site that trained in run run: a, b; came c"),
    ],
)
def test_an_unknown_round_or_site_is_told(tmp_path: Path, asked: dict[str, Any], told: str) -> None:
    found = written(tmp_path, 6, a=0, b=2)
    with pytest.raises(UserFault, match=told):
        go_back(found, RUN, **asked)
    assert [path.name for path in found.folder.iterdir()] == [RUN]


def test_if_no_checkpoint_of_that_time_is_left_the_earliest_is_named(tmp_path: Path) -> None:
    found = written(tmp_path, 6, a=0, b=2)
    for done in range(4):
        (found.folder / RUN / f"round.{done:06d}.json").unlink()
    with pytest.raises(UserFault, match="after at most 2 rounds; came the earliest is after 4"):
        go_back(found, RUN, without="b")


def test_a_run_that_has_trained_nothing_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="came none but its newest"):
        go_back(written(tmp_path, 0), RUN)


@pytest.mark.parametrize("value", [3e38, 1e30, -3e38])
def test_values_on_which_nobody_can_train_are_a_divergence_though_a_site_knows_no_earlier_model(
    open_site: Any, value: float
) -> None:
    config = tiny()
    site, shared = open_site(config), initial_shared(config)[0]
    wire = message(ServerState(huge(shared, value)), site.name, config, down_schema(config))
    with pytest.raises(Diverged):
        serve_round(site, wire, Turn("run", site.base, 1, 3))
    assert site.store.load() is None


@pytest.mark.parametrize(
    "told", ["run", [["run"]], [["run", "1"]], [["run", True]], [[1, 1]], {"run": 1}, [["../x", 1]]]
)
def test_a_message_that_names_runs_in_another_way_is_refused(told: object) -> None:
    with pytest.raises(UserFault):
        line_in(told)
    assert line_in([["run", 1]]) == (Moment("run", 1),)
    assert line_in(None) == ()
