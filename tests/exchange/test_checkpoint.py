import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import tiny
from pfedsam.config import to_dict
from pfedsam.errors import UserFault
from pfedsam.exchange.checkpoint import KEEP, LEAST, Checkpoint, Checkpoints, thinned
from pfedsam.exchange.server import ServerState
from pfedsam.study import first_tensors
from pfedsam.tensors import digest


def point(done: int, run: str = "run") -> Checkpoint:
    results = {"config": to_dict(tiny()), "rounds": list(range(done))}
    return Checkpoint(run, done, "config", "base", results, ServerState({"a": torch.full((4,), float(done))}))


def filled(root: Path) -> Checkpoints:
    checkpoints = Checkpoints(root, "study")
    for done in (1, 2, 3):
        checkpoints.save(point(done))
    return checkpoints


def test_the_newest_pair_comes_back_whole(tmp_path: Path) -> None:
    found = filled(tmp_path).load("run")
    assert (found.done, found.results, found.config, found.base) == (3, point(3).results, "config", "base")
    assert torch.equal(found.state.shared["a"], point(3).state.shared["a"])


def test_what_bounds_remember_comes_back_and_an_older_version_s_checkpoint_has_none(tmp_path: Path) -> None:
    bounds, checkpoints = {"sites": 3, "usual": {"product": 0.1}}, Checkpoints(tmp_path, "study")
    checkpoints.save(replace(point(1), state=ServerState({"a": torch.ones(4)}, **bounds)))
    state = checkpoints.load("run").state
    assert {"sites": state.sites, "usual": state.usual} == bounds
    (path,) = checkpoints.folder.rglob("*.json")
    path.write_text(json.dumps({key: one for key, one in json.loads(path.read_text()).items() if key != "bounds"}))
    old = checkpoints.load("run").state
    assert (old.sites, old.usual) == (0, {})


def test_as_many_checkpoints_are_kept_as_the_server_says_and_others_leave_nothing(tmp_path: Path) -> None:
    for keep, kept in ((KEEP, [0, 14, 21, 24, 27, 28, 29, 30]), (LEAST, [0, 29, 30]), (1, [0, 29, 30])):
        checkpoints = Checkpoints(tmp_path / str(keep), "study", keep)
        for done in range(31):
            checkpoints.save(point(done))
        assert checkpoints.rounds("run") == kept
        assert len(list((checkpoints.folder / "run").iterdir())) == 2 * len(kept)


@pytest.mark.parametrize("keep", [3, 8, 40])
def test_the_first_and_the_last_two_stay_and_the_others_are_rarer_the_older_they_are(keep: int) -> None:
    kept: list[int] = []
    for done in range(1000):
        kept = thinned([*kept, done], keep)
        assert len(kept) == min(done + 1, keep)
        assert {0, max(done - 1, 0), done} <= set(kept)
    halves = [sum(low < done <= high for done in kept) for low, high in ((0, 500), (500, 1000))]
    assert halves[1] > halves[0]
    ages = [999 - done for done in kept[1:-2]]
    assert all(older < 20 * newer for older, newer in itertools.pairwise(ages))


def test_the_newest_after_at_most_so_many_rounds_is_found(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    assert [checkpoints.newest("run", most).done for most in (9, 3, 2, 1)] == [3, 3, 2, 1]
    assert checkpoints.newest("run", 0) is None


def test_a_run_before_its_first_round_is_nothing_to_begin_from(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "study")
    checkpoints.save(point(0))
    assert checkpoints.find("latest") == "run"
    with pytest.raises(UserFault, match="no folder of run latest"):
        checkpoints.find("latest", trained=True)
    with pytest.raises(UserFault, match="a finished round of run run"):
        first_tensors(tmp_path, "study/run", point(0).state.shared, "base", tiny())


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("harm", ["torn", "emptied", "gone", "of another round"])
def test_a_damaged_pair_is_noticed_and_the_one_before_used(tmp_path: Path, kind: str, harm: str) -> None:
    checkpoints = filled(tmp_path)
    path = checkpoints.folder / f"run/round.000003.{kind}"
    before = path.with_name(f"round.000002.{kind}").read_bytes()
    path.write_bytes({"torn": path.read_bytes()[:-9], "of another round": before}.get(harm, b""))
    if harm == "gone":
        path.unlink()
    assert checkpoints.load("run").done == 2


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_a_pair_that_cannot_be_read_now_is_told_and_not_trained_over(tmp_path: Path, kind: str) -> None:
    """A run that went on from the one before it would lose the rounds since."""
    checkpoints = filled(tmp_path)
    path = checkpoints.folder / f"run/round.000003.{kind}"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserFault, match=r"to read .*round\.000003\.json; came Is a directory"):
        checkpoints.load("run")


def test_a_run_that_died_before_its_first_round_ended_begins_anew_under_its_name(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    checkpoints.begin("young")
    assert checkpoints.find("young") == checkpoints.find("latest") == "young"
    assert checkpoints.load("young") is None
    checkpoints.save(point(4))
    assert checkpoints.find("latest") == "run"


def test_the_latest_run_is_told_by_what_was_saved_and_not_by_times_of_files(tmp_path: Path) -> None:
    """A plain copy of the store gives its files new times, and a file that is deleted gives its folder one."""
    checkpoints = Checkpoints(tmp_path, "study")
    checkpoints.save(point(1))
    checkpoints.save(replace(point(1), run="younger"))
    for path in (checkpoints.folder / "younger").glob("*"):
        os.utime(path, (1, 1))
    os.utime(checkpoints.folder / "younger", (1, 1))
    (checkpoints.folder / "run/stray").touch()
    assert checkpoints.find("latest") == checkpoints.find("latest", trained=True) == "younger"
    checkpoints.begin("run")
    assert checkpoints.find("latest") == "run"


def test_a_stray_file_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    (checkpoints.folder / "run/round.old.json").touch()
    assert checkpoints.load("run").done == 3


def test_a_process_that_a_later_job_has_replaced_keeps_no_best_model(tmp_path: Path) -> None:
    left, later = (Checkpoints(tmp_path, "study") for _ in range(2))
    left.begin("run")
    later.begin("run")
    later.save_best("run", point(2).state.shared, {"val_dice": "0.9"})
    with pytest.raises(UserFault, match="a later job that has taken it over"):
        left.save_best("run", point(1).state.shared, {"val_dice": "0.5"})
    assert later.load_best("run")[1]["val_dice"] == "0.9"


def test_a_best_model_that_cannot_be_read_now_is_told(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    (checkpoints.folder / "run/best.safetensors").mkdir()
    with pytest.raises(UserFault, match=r"to read .*best\.safetensors; came Is a directory"):
        checkpoints.load_best("run")


def test_a_run_that_does_not_exist_is_told(tmp_path: Path) -> None:
    for run in ("nobody", "latest"):
        with pytest.raises(UserFault, match="no folder of run"):
            Checkpoints(tmp_path, "study").find(run)


def test_the_best_so_far_stays_with_its_metric(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    assert checkpoints.load_best("run") is None
    checkpoints.save_best("run", point(2).state.shared, {"val_dice": "0.5"})
    tensors, facts = checkpoints.load_best("run")
    assert facts["val_dice"] == "0.5"
    assert torch.equal(tensors["a"], point(2).state.shared["a"])


@pytest.mark.parametrize("name", ["../elsewhere", "/srv/other", "", ".hidden", "a/b"])
def test_a_run_s_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserFault, match="a run's name"):
        Checkpoints(tmp_path, "study").begin(name)
    assert not (tmp_path / "elsewhere").exists()


def test_the_latest_run_to_begin_from_is_one_that_has_trained(tmp_path: Path) -> None:
    """Not the run that asks, nor one that died before its first round."""
    checkpoints = Checkpoints(tmp_path, "study")
    checkpoints.save(point(1))
    checkpoints.begin("later")
    assert checkpoints.find("latest") == "later"
    assert checkpoints.find("latest", trained=True) == point(1).run
    begun = point(1).state.shared, point(1).base, tiny()
    tensors, source = first_tensors(tmp_path, "study/latest", *begun)
    assert tensors.keys() == point(1).state.shared.keys()
    assert source == {"run": f"study/{point(1).run}", "rounds": 1, "sha256": digest(tensors)}
    with pytest.raises(UserFault, match="study's name"):
        first_tensors(tmp_path, "../study/latest", *begun)
    with pytest.raises(UserFault, match=r"to begin with.*set PFEDSAM_STORE"):
        first_tensors(tmp_path, "other/latest", *begun)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"model": {"lora_alpha": 16.0}}, "model.lora_alpha"),
        ({"data": {"scale": "percentile"}}, "data.scale"),
        ({"model": {"num_classes": 2}}, "model.num_classes"),
        ({"model": {"experts": 2, "top_k": 1}, "study": "new", "method": "newcomer", "seed": 5}, None),
    ],
)
def test_a_run_begins_with_a_model_under_the_settings_that_give_its_tensors_their_meaning(
    tmp_path: Path, changes: dict, refused: str | None
) -> None:
    Checkpoints(tmp_path, "study").save(point(1))
    begun = point(1).state.shared, point(1).base, tiny(**changes)
    if refused is None:
        assert first_tensors(tmp_path, "study/run", *begun)[1]["rounds"] == 1
        return
    with pytest.raises(UserFault, match=rf"settings of run study/run.*there: {refused}"):
        first_tensors(tmp_path, "study/run", *begun)


def test_a_server_process_left_behind_cannot_write_into_a_run_that_went_on(tmp_path: Path) -> None:
    early, late = Checkpoints(tmp_path, "study"), Checkpoints(tmp_path, "study")
    early.begin("run")
    late.begin("run")
    with pytest.raises(UserFault, match="a later job"):
        early.save(point(1))
    late.save(point(1))
    assert late.load("run").done == 1
