"""pfedsam back at the server, on checkpoints as runs leave them."""

from pathlib import Path

import pytest
import torch

from pfedsam.cli import main
from pfedsam.exchange.checkpoint import Checkpoint, Checkpoints
from pfedsam.exchange.server import ServerState

RUN = "liver-1a2b3c4d"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Six rounds of a run. Hospital b joined in the third."""
    points = Checkpoints(tmp_path, "liver")
    for done in range(7):
        rounds = [{"round": n, "sites": {"a": {}} | ({"b": {}} if n >= 2 else {})} for n in range(done)]
        points.save(Checkpoint(RUN, done, "", "", {"rounds": rounds}, ServerState({"x": torch.full((2,), done / 1)})))
    return tmp_path


def back(store: Path, *more: str) -> int:
    return main(["back", *more, "--store", str(store)])


def new_run(store: Path) -> Checkpoint:
    points = Checkpoints(store, "liver")
    (name,) = {path.name for path in points.folder.iterdir()} - {RUN}
    return points.load(name)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_goes_back_and_the_verb_says_what_it_did_and_what_comes(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(store)
    assert back(store, RUN, "4") == 0
    new, told = new_run(store), capsys.readouterr().out
    assert (new.done, float(new.state.shared["x"][0])) == (4, 4.0)
    assert f"goes back to its model after 4 rounds, and goes on as run {new.run}" in told
    assert f"Nothing is deleted: {store}/liver/server/{RUN} stays as it is" in told
    assert "Each site begins round 5 with its own private part from before that round" in told
    assert f"pfedsam watch JOB --kit KIT --continue {new.run}" in told
    assert before.items() <= files(store).items()


def test_a_round_whose_model_is_not_good_or_not_kept_becomes_the_last_good_one(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert back(store, RUN, "6") == 0
    assert new_run(store).done == 5
    assert "the last good one that is kept after at most 6 rounds" in capsys.readouterr().out


def test_a_site_is_taken_out_from_before_its_first_update(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert back(store, RUN, "--without", "b") == 0
    new, told = new_run(store), capsys.readouterr().out
    assert (new.done, new.results["back"]) == (2, [{"run": RUN, "round": 2, "without": ["b"]}])
    assert f"The server neither asks nor sends b anything in run {new.run}" in told
    assert "Delete them once nobody needs them" in told


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("liver-0", "4"), "came no folder of that run"),
        ((RUN, "4", "--study", "kidney"), "in study kidney of"),
        ((RUN, "7"), "from 0 to 6; came 7"),
        ((RUN, "--without", "c"), "a site that trained in run liver-1a2b3c4d: a, b; came c"),
        ((RUN,), "a round, or --without SITE"),
        (("../liver", "4"), "a run's name"),
    ],
)
def test_what_cannot_be_gone_back_to_is_told_and_nothing_is_written(
    store: Path, asked: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(store)
    assert back(store, *asked) == 2
    assert told in capsys.readouterr().err
    assert files(store) == before


def test_a_run_of_two_studies_needs_the_study_s_name(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Checkpoints(store, "kidney").save(Checkpoint(RUN, 0, "", "", {"rounds": []}, ServerState({})))
    assert back(store, RUN, "4") == 2
    assert "came the run in kidney, liver; to mend it: name it with --study" in capsys.readouterr().err
    assert back(store, RUN, "4", "--study", "liver") == 0
    assert new_run(store).done == 4
