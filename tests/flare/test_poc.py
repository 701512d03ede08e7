"""The rendered job in FLARE's POC mode: separate processes, submitted by command."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT
from pfedsam.jobs import render

pytestmark = [pytest.mark.flare, pytest.mark.long]
TINY = ["train.max_steps=2", "data.train=4", "data.val=2", "data.test=2", "model.image_size=64"]


def nvflare(*words: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "nvflare.cli", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, env=environment, stdin=subprocess.DEVNULL
    )
    return done.stdout + done.stderr


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[dict[str, str]]:
    places = {"HOME": str(tmp_path), "NVFLARE_POC_WORKSPACE": str(tmp_path / "poc"), "PFEDSAM_THREADS": "1"}
    environment = {**os.environ, **places}
    nvflare("poc", "prepare", "-n", "2", "--force", environment=environment)
    nvflare("poc", "start", environment=environment)
    yield environment
    nvflare("poc", "stop", environment=environment)


def test_a_rendered_job_runs_as_submitted(federation: dict[str, str], tmp_path: Path) -> None:
    render(ROOT / "jobs/pfedsam", tmp_path / "job", changes=TINY, rounds=2)
    said = nvflare("--format", "json", "job", "submit", "-j", str(tmp_path / "job"), environment=federation)
    job = json.loads(next(line for line in said.splitlines() if '"job_id"' in line))["data"]["job_id"]
    nvflare("job", "wait", job, "--timeout", "300", environment=federation)
    nvflare("job", "download", job, "-o", str(tmp_path / "out"), environment=federation)
    (found,) = (tmp_path / "out").rglob("results.json")
    assert set(json.loads(found.read_text())["final"]["sites"]) == {"site-1", "site-2"}
    stores = list((tmp_path / "poc").rglob("pfedsam_store/demo/*/private.safetensors"))
    assert len(stores) == 2
    assert not list((tmp_path / "out").rglob("private.safetensors"))
