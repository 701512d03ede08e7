"""The recipe in FLARE's own environments: it brings its code, and nobody has to allow its classes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.flare
SCRIPT = """
import sys
from nvflare.recipe import PocEnv, SimEnv
from pfedsam.flare.recipe import PFedSAMRecipe

model, train = {"image_size": 64}, {"max_steps": 2, "epochs": 1}
data = {"source": "synthetic", "train": 4, "val": 2, "test": 2}
recipe = PFedSAMRecipe("mine", rounds=1, min_sites=2, method="fedavg", model=model, train=train, data=data)
"""
SIMULATED = 'recipe.execute(SimEnv(clients=["site-1", "site-2"], workspace_root=sys.argv[1]))'
POC = """
env = PocEnv(num_clients=2)
try:
    print("results in", recipe.execute(env).get_result(timeout=400, clean_up=False))
finally:
    env.stop()
"""


def ran(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(folder), "NVFLARE_POC_WORKSPACE": str(folder / "poc"), "PFEDSAM_THREADS": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    (folder / "job.py").write_text(SCRIPT + script)
    return subprocess.run(
        [sys.executable, "job.py", str(folder / "ws")],
        cwd=folder,
        env={**os.environ, **environment, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )


def test_the_recipe_runs_in_the_simulator(tmp_path: Path) -> None:
    done = ran(tmp_path, SIMULATED)
    found = json.loads((tmp_path / "ws/mine/server/simulate_job/results.json").read_text())
    assert set(found["final"]["sites"]) == {"site-1", "site-2"}, done.stdout + done.stderr
    assert found["method"] == "fedavg"


@pytest.mark.long
def test_the_recipe_runs_in_poc_mode(tmp_path: Path) -> None:
    done = ran(tmp_path, POC)
    fetched = [json.loads(path.read_text()) for path in tmp_path.rglob("results.json")]
    assert [set(found["final"]["sites"]) for found in fetched] == [{"site-1", "site-2"}], done.stdout + done.stderr
