"""FLARE's real simulator: a poisoned round stops the run, and the run goes on from before it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_simulator import job, results, simulate

from pfedsam.cli import main
from pfedsam.flare.ends import DIVERGED, Trace, cause_of
from pfedsam.jobs import name_run

pytestmark = [pytest.mark.flare, pytest.mark.long]
SITES = ("site-1", "site-2", "site-3")
MEAN = ("server.rule=mean", "server.most_share=1000000")  # bounds nothing: one site owns the model
HUGE = '''
from nvflare.apis.dxo import from_shareable
from pfedsam.flare.executor import PFedSAMExecutor

class Bad(PFedSAMExecutor):
    """A site that sends huge finite values in its second round."""

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        reply = super().execute(task_name, shareable, fl_ctx, abort_signal)
        hostile = fl_ctx.get_identity_name() == "site-3"
        if hostile and task_name == "train" and shareable.get_header("current_round") == 1:
            for tensor in from_shareable(reply).data.values():
                tensor.fill_(3e38)
        return reply
'''
LAME = '''
from pfedsam.errors import Diverged
from pfedsam.flare.executor import PFedSAMExecutor

class Bad(PFedSAMExecutor):
    """A site whose training diverges in its second round."""

    def _train(self, site, shareable, fl_ctx, stop):
        if site.name == "site-3" and shareable.get_header("current_round") == 1:
            raise Diverged(expected="finite weights", came="NaN", do="look at the images")
        return super()._train(site, shareable, fl_ctx, stop)
'''


def disturbed(folder: Path, executor: str) -> Path:
    """A job whose sites run another executor."""
    path = job(folder, *MEAN, sites=",".join(SITES), rounds=3)
    (path / "app/custom/bad_site.py").write_text(executor)
    client = path / "app/config/config_fed_client.json"
    settings = json.loads(client.read_text())
    settings["executors"][0]["executor"]["path"] = "bad_site.Bad"
    client.write_text(json.dumps(settings))
    return path


def shared(workspace: Path) -> dict[str, torch.Tensor]:
    return load_file(workspace / "server/simulate_job/models/shared.safetensors")


def poisoned(folder: Path) -> tuple[str, dict[str, str]]:
    """A run that one of three sites has stopped with 3e38 in its second round, and the setting of its store."""
    store = {"PFEDSAM_STORE": str(folder / "store")}
    log = simulate(disturbed(folder / "poisoned", HUGE), folder / "poisoned_ws", threads=3, **store)
    cause = cause_of(
        Trace("FINISHED:EXECUTION_EXCEPTION", log=(*(folder / "poisoned_ws/server/log.txt").read_text().splitlines(),))
    )
    assert cause.kind == DIVERGED, log
    assert "after 2 rounds; came 3 of 3 sites where the training diverged: site-1, site-2, site-3" in cause.what
    (run,) = (path.name for path in (folder / "store/demo/server").iterdir())
    bad = load_file(folder / f"store/demo/server/{run}/round.000002.safetensors")
    assert max(float(tensor.abs().max()) for tensor in bad.values()) > 1e37
    return run, store


def test_a_poisoned_run_goes_back_as_the_watcher_lets_it_to_the_bits_of_the_undisturbed_one(tmp_path: Path) -> None:
    """One site's 3e38 stopped a run for good: its newest checkpoint was the poisoned one."""
    run, store = poisoned(tmp_path)
    honest = job(tmp_path / "job", *MEAN, sites=",".join(SITES), rounds=3)
    simulate(honest, tmp_path / "steady", threads=3)
    name_run(honest, f"{run}-backabcdef", must_exist=True, back=f"{run}/1")
    log = simulate(honest, tmp_path / "ws", threads=3, **store)
    whole, found = results(tmp_path / "steady"), results(tmp_path / "ws")
    assert found["final"]["sites"] == whole["final"]["sites"], log
    assert found["back"] == [{"run": run, "round": 1, "without": []}]
    assert f"[site-1] begins with its private part of run {run}, round 1" in log
    last = shared(tmp_path / "ws")
    assert all(torch.equal(last[name], tensor) for name, tensor in shared(tmp_path / "steady").items())


def test_a_run_is_freed_of_the_site_that_poisoned_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The hostile site takes part in the job, but is asked nothing and is sent nothing."""
    run, store = poisoned(tmp_path)
    assert main(["back", run, "--without", "site-3", "--store", str(tmp_path / "store")]) == 0
    new = capsys.readouterr().out.split(" goes on as run ")[1].split(".\n")[0]
    folder = disturbed(tmp_path / "others", HUGE)
    name_run(folder, new, must_exist=True)
    log = simulate(folder, tmp_path / "ws", threads=3, **store)
    found = results(tmp_path / "ws")
    both = ["site-1", "site-2"]
    assert [sorted(entry["sites"]) for entry in found["rounds"]] == [both] * 3, log
    assert sorted(found["final"]["sites"]) == both
    lines = [json.loads(line) for line in (tmp_path / "store/demo/site-3/ledger.jsonl").read_text().splitlines()]
    assert {line["run"] for line in lines} == {run}


def test_a_model_on_which_one_site_alone_cannot_train_costs_that_site_the_round(tmp_path: Path) -> None:
    """Its images may be at fault: more sites train than diverge."""
    log = simulate(disturbed(tmp_path / "job", LAME), tmp_path / "ws", threads=3)
    found = results(tmp_path / "ws")
    both = ["site-1", "site-2"]
    assert [sorted(entry["sites"]) for entry in found["rounds"]] == [[*SITES], both, [*SITES]], log
    assert "could not train on from the server's model" in found["rounds"][1]["rejected"]["site-3"]
