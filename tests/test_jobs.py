"""The job folders, and what `pfedsam render` makes of them."""

import importlib
import json
import os
import shutil
from pathlib import Path

import pytest
from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

from conftest import ROOT
from pfedsam import methods
from pfedsam.cli import main
from pfedsam.config import to_dict
from pfedsam.errors import UserFault
from pfedsam.jobs import render, settings_of
from pfedsam.methods.pfedsam import Settings
from pfedsam.settings import read_config

JOBS = sorted(p.parent for p in (ROOT / "jobs").glob("*/meta.json"))


def files(job: Path) -> dict[str, dict]:
    return {p.name: json.loads(p.read_text()) for p in (job / "app/config").glob("*.json")}


def paths(value: object) -> list[str]:
    if isinstance(value, dict):
        return [v for k, v in value.items() if k == "path"] + [p for v in value.values() for p in paths(v)]
    return [p for v in value for p in paths(v)] if isinstance(value, list) else []


@pytest.mark.parametrize("job", JOBS, ids=lambda j: j.name)
def test_a_job_is_one_flare_accepts_and_every_class_in_it_exists(job: Path) -> None:
    valid, error, _ = JobMetaValidator().validate(job.name, zip_directory_to_bytes("", str(job)))
    assert valid, error
    for path in paths(list(files(job).values())):
        module, name = path.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), name), path
    read_config(job / "app/config/pfedsam.json")
    assert json.loads((job / "meta.json").read_text())["name"] == job.name


@pytest.mark.parametrize("job", JOBS, ids=lambda j: j.name)
def test_jobs_differ_in_their_settings_and_rounds_alone(job: Path) -> None:
    first, this = files(ROOT / "jobs/pfedsam"), files(job)
    assert this["config_fed_client.json"] == first["config_fed_client.json"]
    for server in (first["config_fed_server.json"], this["config_fed_server.json"]):
        server["workflows"][0]["args"].pop("num_rounds")
        if job.name in ("pooled", "newcomer"):  # one site
            server["workflows"][0]["args"].pop("min_clients")
            next(c for c in server["components"] if c["id"] == "aggregator")["args"].pop("min_sites")
        if job.name == "newcomer":  # begins with another run's model
            next(c for c in server["components"] if c["id"] == "persistor")["args"].pop("begin", None)
    assert this["config_fed_server.json"] == first["config_fed_server.json"]


def test_every_method_and_reading_has_a_job_and_every_job_a_study_of_its_own() -> None:
    configs = {job.name: read_config(job / "app/config/pfedsam.json") for job in JOBS}
    assert {config.method for config in configs.values()} == set(methods.names())
    assert {c.own(Settings).reading for c in configs.values() if c.method == "pfedsam"} == {"R1", "R2", "R3", "post"}
    assert len({config.study for config in configs.values()}) == len(configs)


def test_no_link_and_no_copy_of_the_package_lies_in_jobs() -> None:
    for path in (ROOT / "jobs").rglob("*"):
        assert not os.path.islink(path)
        assert path.suffix != ".py"


def test_a_rendered_job_brings_its_code_and_its_changes(tmp_path: Path) -> None:
    out = tmp_path / "job"
    change = ["--set", "train.lr=0.5", "--set", "study=other", "--rounds", "3"]
    assert main(["render", str(ROOT / "jobs/pfedsam"), str(out), *change]) == 0
    assert (out / "app/custom/pfedsam/site.py").is_file()
    assert not (out / "app/custom/pfedsam/prepare").exists()
    assert (out / "app/custom/pfedsam/assets/demo_sam.safetensors").is_file()
    assert sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) < 4_100_000  # POC deploys at most 4 MiB
    config = read_config(out / "app/config/pfedsam.json")
    assert (config.train.lr, config.study) == (0.5, "other")
    assert files(out)["config_fed_server.json"]["workflows"][0]["args"]["num_rounds"] == 3
    assert json.loads((out / "meta.json").read_text())["deploy_map"] == {"app": ["@ALL"]}
    valid, error, _ = JobMetaValidator().validate("job", zip_directory_to_bytes("", str(out)))
    assert valid, error


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        (["method=fedprox"], {"name": "fedprox", "mu": 0.01}),
        (["method=fedprox", "method.mu=0.1"], {"name": "fedprox", "mu": 0.1}),
        (["method.mu=0.1", "method=fedprox"], {"name": "fedprox", "mu": 0.1}),
        (["method.name=ditto", "method.lam=0.1"], {"name": "ditto", "lam": 0.1}),
        (['method={"name": "iat", "orthogonal_weight": 1}'], {"name": "iat", "orthogonal_weight": 1}),
        (["method=fedprox", "train.prox_weight=0.1"], {"name": "fedprox", "mu": 0.1}),
    ],
)
def test_a_method_is_chosen_and_set_on_the_command_line(changes: list[str], method: dict) -> None:
    config, _ = settings_of(ROOT / "jobs/pfedsam", changes)
    assert to_dict(config)["method"] == method


def torn(folder: Path) -> Path:
    """Job folders, each with one file that is not what it should be."""
    for name in ("settings", "server", "meta"):
        shutil.copytree(ROOT / "jobs/pfedsam", folder / "torn" / name)
    (folder / "torn/settings/app/config/pfedsam.json").write_text('{"seed": ')
    (folder / "torn/server/app/config/config_fed_server.json").write_text('{"workflows": []}')
    (folder / "torn/meta/meta.json").unlink()
    return folder / "torn"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["render", "nowhere", "{out}"], "a job folder"),
        (["render", "{job}", "{job}"], "does not exist yet"),
        (["render", "{job}", "{out}", "--set", "train.speed=9"], "speed"),
        (["render", "{job}", "{out}", "--set", "method.mu=1"], "settings of method pfedsam among reading, distill"),
        (
            ["render", "{job}", "{out}", "--set", "method=fedavg", "--set", "method.mu=1"],
            "no settings of method fedavg",
        ),
        (["render", "{job}", "{out}", "--set", "nonsense"], "KEY=VALUE"),
        (["render", "{job}", "{out}", "--set", "train.lr.x=3"], "settings below lr"),
        (["render", "{job}", "{out}", "--rounds", "-3"], "rounds of 1 or more"),
        (["render", "{job}", "{out}", "--continue", "../else"], "a run's name"),
        (["render", "{torn}/settings", "{out}"], "a JSON file"),
        (["render", "{torn}/server", "{out}"], "rounds among the workflows"),
        (["render", "{torn}/meta", "{out}"], "a JSON file at"),
        (["convert", "{job}/meta.json"], "a published SAM file"),
    ],
)
def test_a_wrong_command_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    names = {"job": str(ROOT / "jobs/pfedsam"), "out": str(tmp_path / "out"), "torn": str(torn(tmp_path))}
    assert main([a.format(**names) for a in arguments]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["file/job", "file/deep/job"])
def test_a_place_where_no_job_can_be_is_told(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserFault, match=where):
        render(ROOT / "jobs/pfedsam", tmp_path / where)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("nth", [1, 2])
def test_a_disk_that_fills_leaves_no_half_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    copy, calls = shutil.copytree, []

    def full(source: Path, target: Path, *deeper: object, **how: object) -> object:
        if deeper:  # copytree's own calls of itself
            return copy(source, target, *deeper, **how)
        calls.append(target)
        copy(source, target, **how)
        if len(calls) < nth:
            return target
        raise shutil.Error([(str(source), str(target), "[Errno 28] No space left on device")])

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(UserFault, match="No space left on device"):
        render(ROOT / "jobs/pfedsam", tmp_path / "job")
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("sites", [None, ["site-1"]])
def test_a_job_without_code_has_no_folder_for_it_which_a_strict_hospital_would_refuse(
    tmp_path: Path, sites: list[str] | None
) -> None:
    render(ROOT / "jobs/pfedsam", tmp_path / "job", code=False, sites=sites)
    assert not (tmp_path / "job/app/custom").exists()
