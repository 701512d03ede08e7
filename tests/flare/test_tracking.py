"""FLARE's own line puts a pFedSAM job's curves into MLflow, a run a site, and a kit lets the server alone do so."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from nvflare.lighter.entity import Project
from nvflare.lighter.spec import ProvisionContext

from conftest import ROOT
from pfedsam.files import read_json, write_json
from pfedsam.flare.kit import CLASSES, HospitalKit

pytestmark = pytest.mark.flare
RECEIVER = "nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver"
SCRIPT = """
import sys
from nvflare.recipe import SimEnv
from nvflare.recipe.utils import add_experiment_tracking
from pfedsam.flare.recipe import PFedSAMRecipe

model, train = {"image_size": 64, "experts": 2}, {"max_steps": 2, "epochs": 1}
data = {"source": "synthetic", "train": 4, "val": 2, "test": 2}
recipe = PFedSAMRecipe("mine", rounds=2, min_sites=2, model=model, train=train, data=data)
add_experiment_tracking(recipe, "mlflow", tracking_config={"tracking_uri": f"sqlite:///{sys.argv[1]}/mlflow.db"})
recipe.execute(SimEnv(clients=["site-1", "site-2"], workspace_root=f"{sys.argv[1]}/ws"))
"""
METRICS = "select runs.name, key, step, value from metrics join runs on runs.run_uuid = metrics.run_uuid"


@pytest.mark.long
def test_dice_and_losses_of_every_site_and_round_arrive_in_mlflow(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "job.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "job.py"), str(tmp_path)]
    usual = {key: value for key, value in os.environ.items() if not key.startswith("PFEDSAM_")}
    done = subprocess.run(command, cwd=tmp_path, env=usual, capture_output=True, text=True, timeout=550, check=False)
    found = json.loads((tmp_path / "ws/mine/server/simulate_job/results.json").read_text())
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        rows = {(name.split("-mine")[0][:6], key, step): value for name, key, step, value in store.execute(METRICS)}
    for done_round in found["rounds"]:
        for site, said in done_round["sites"].items():
            for name, value in said["losses"].items():
                assert rows[site, f"loss/{name}", done_round["round"]] == pytest.approx(value), done.stderr[-2000:]
            for role, row in said["val"].items():
                assert rows[site, f"val_dice/{role}", done_round["round"]] == pytest.approx(row["dice"])
    assert {name for name, _, _ in rows} == {"site-1", "site-2"}


def test_a_kit_allows_more_classes_at_the_server_and_at_no_site(tmp_path: Path) -> None:
    project = Project("tried", "of a kit")
    project.set_server("server", "hub", {})
    project.add_client("hospital-a", "hospital_a", {})
    context = ProvisionContext(str(tmp_path), project)
    for party in ("server", "hospital-a"):
        local = Path(context.get_local_dir(next(p for p in project.get_all_participants() if p.name == party)))
        local.mkdir(parents=True)
        components = [{"id": "job_manager", "args": {}}]
        write_json(local / "resources.json.default", {"components": components})
        roles = {"permissions": {"lead": {}, "project_admin": {}}}
        write_json(local / "authorization.json.default", roles)
    HospitalKit(at_server=[RECEIVER]).build(project, context)
    allowed = {
        party: read_json(next(tmp_path.rglob(f"{party}/local/resources.json")))["class_allow_list"]
        for party in ("server", "hospital-a")
    }
    assert allowed == {"server": [*CLASSES, RECEIVER], "hospital-a": CLASSES}


def test_the_project_file_names_the_receiver_that_exists() -> None:
    line = next(line for line in (ROOT / "poc/project.yml").read_text().splitlines() if "at_server" in line)
    (named,) = yaml.safe_load(line.strip("# "))["at_server"]
    assert named == RECEIVER
