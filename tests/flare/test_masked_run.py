"""Masked sums through FLARE's simulator: the same model, and a site that is lost in the round."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_simulator import job, ledger, results, simulate

from pfedsam.exchange.masks import steps_of
from pfedsam.federation import Plan, federate
from pfedsam.layout import Places
from pfedsam.settings import from_dict, read_config
from pfedsam.study import shared_schema
from pfedsam.tensors import Tensors

pytestmark = [pytest.mark.flare, pytest.mark.long]
SITES = ("site-1", "site-2", "site-3")
MASKS = ("server.rule=mean", "server.secure=masks")
BOUND = len(SITES) / 2 / steps_of(100.0)


def model(workspace: Path) -> Tensors:
    return load_file(workspace / "server/simulate_job/models/shared.safetensors")


def alone(workspace: Path, folder: Path, sites: tuple[str, ...], secure: str) -> Tensors:
    """The model of the run in one process, on the data of a run through FLARE."""
    values = json.loads((workspace.parent / "job/app/config/pfedsam.json").read_text())
    values["server"] = {"rule": "mean", "secure": secure}
    data = {site: next((workspace / site / "simulate_job/synthetic_data").iterdir()) for site in sites}
    places = {site: Places(path, folder / "stores") for site, path in data.items()}
    federate(Plan(from_dict(values), places, 1, folder))
    return load_file(next((folder / "store").rglob("round.000001.safetensors")))


def close(one: Tensors, other: Tensors, bound: float) -> bool:
    """Whether two models are alike up to a bound, and the rounding of float32."""
    ulps = {name: torch.nextafter(tensor.abs(), torch.tensor(torch.inf)) - tensor.abs() for name, tensor in one.items()}
    return all(bool(((one[name] - other[name]).abs() <= bound + ulps[name]).all()) for name in one)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    log = simulate(job(folder / "job", *MASKS, sites=",".join(SITES), rounds=1), folder / "ws", threads=3)
    assert "no startup kit here: the keys of masked updates are not signed" in log
    return folder / "ws"


def test_the_final_model_is_the_plain_mean_s_up_to_the_rounding(run: Path, tmp_path: Path) -> None:
    assert sorted(results(run)["rounds"][0]["sites"]) == list(SITES)
    assert close(model(run), alone(run, tmp_path / "plain", SITES, "none"), BOUND)
    hidden = alone(run, tmp_path / "hidden", SITES, "masks")
    assert all(torch.equal(tensor, hidden[name]) for name, tensor in model(run).items())


def test_each_step_is_in_the_ledger_and_a_step_is_small(run: Path) -> None:
    declared = sorted(shared_schema(read_config(run.parent / "job/app/config/pfedsam.json")))
    for site in SITES:
        out = [line for line in ledger(run / site / "pfedsam_store", site) if line["direction"] == "out"]
        assert [line["task"] for line in out] == ["keys", "shares", "train", "open", "validate"]
        by_task = {line["task"]: line for line in out}
        assert by_task["train"]["tensors"] == declared
        assert by_task["open"]["tensors"] == ["opened"]
        assert all(by_task[step]["bytes"] < 1000 for step in ("keys", "shares", "open"))
        came = {line["task"]: line for line in ledger(run / site / "pfedsam_store", site) if line["direction"] == "in"}
        assert came["open"]["facts"]["there"] == list(SITES)


def test_no_secret_of_a_masked_sum_is_left_at_a_site(run: Path) -> None:
    for site in SITES:
        kept = json.loads((run / site / "simulate_job/masks.json").read_text())
        assert (kept["stage"], kept["agree"], kept["seal"], kept["own"]) == ("opened", "", "", "")


BARE_SITE = '''
from nvflare.apis.dxo import from_shareable
from pfedsam.flare.executor import PFedSAMExecutor

class Bare(PFedSAMExecutor):
    """A site that sends its update without a mask, and asks no filter."""

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        reply = super().execute(task_name, shareable, fl_ctx, abort_signal)
        if task_name == "train":
            for tensor in from_shareable(reply).data.values():
                tensor.fill_(7)
        return reply
'''


def with_a_bare_site(path: Path) -> Path:
    shutil.copytree(path / "app", path / "app_bare")
    (path / "app_bare/custom/bare_site.py").write_text(BARE_SITE)
    client = path / "app_bare/config/config_fed_client.json"
    settings = json.loads(client.read_text())
    for executor in settings["executors"]:
        executor["executor"]["path"] = "bare_site.Bare"
    settings["task_result_filters"] = []
    client.write_text(json.dumps(settings))
    meta = json.loads((path / "meta.json").read_text())
    meta["deploy_map"] = {"app": ["server", "site-1", "site-2"], "app_bare": ["site-3"]}
    (path / "meta.json").write_text(json.dumps(meta))
    return path


def test_a_site_that_is_lost_in_the_round_costs_its_own_update_alone(tmp_path: Path) -> None:
    path = with_a_bare_site(job(tmp_path / "job", *MASKS, sites=",".join(SITES), rounds=1))
    log = simulate(path, tmp_path / "ws", threads=3)
    (found,) = results(tmp_path / "ws")["rounds"]
    assert sorted(found["sites"]) == ["site-1", "site-2"], log
    assert "expected words that look random, came 100% small ones" in found["rejected"]["site-3"]
    plain = alone(tmp_path / "ws", tmp_path / "plain", SITES[:2], "none")
    assert close(model(tmp_path / "ws"), plain, 1.5 * BOUND)


def test_with_a_process_for_each_task_the_secrets_outlive_it(run: Path, tmp_path: Path) -> None:
    simulate(run.parent / "job", tmp_path / "ws", threads=1)
    assert all(torch.equal(tensor, model(run)[name]) for name, tensor in model(tmp_path / "ws").items())
