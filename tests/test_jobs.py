"""The job folders, and what `pfedsam render` makes of them."""

import importlib
import json
import os
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

from conftest import ROOT
from pfedsam import methods
from pfedsam.cli import main
from pfedsam.config import Config, to_dict
from pfedsam.errors import UserFault
from pfedsam.flare.recipe import PFedSAMRecipe, render
from pfedsam.jobs import FACTS, name_run, read_job

MAIN = ROOT / "jobs/pfedsam"
JOBS = [MAIN, *sorted((ROOT / "jobs").glob("*.json"))]
MORE = {"pooled": ["method=fedavg", "data.pool=true"]} | {name: [f"method={name}"] for name in methods.names()}
MORE |= {reading: [f"method.reading={reading}"] for reading in ("R1", "R2", "post")}


def files(job: Path) -> dict[str, dict]:
    return {p.name: json.loads(p.read_text()) for p in (job / "app/config").glob("*.json")}


def paths(value: object) -> list[str]:
    if isinstance(value, dict):
        return [v for k, v in value.items() if k == "path"] + [p for v in value.values() for p in paths(v)]
    return [p for v in value for p in paths(v)] if isinstance(value, list) else []


def accepted(job: Path) -> None:
    """FLARE takes the job, and every class in it exists."""
    valid, error, _ = JobMetaValidator().validate(job.name, zip_directory_to_bytes("", str(job)))
    assert valid, error
    for path in paths(list(files(job).values())):
        module, name = path.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), name), path


def test_the_main_job_s_folder_is_what_the_recipe_exports(tmp_path: Path) -> None:
    """After a change of the recipe: copy what it exports over jobs/pfedsam."""
    job = read_job(MAIN)
    assert (job.name, job.rounds, job.sites) == ("pfedsam", 12, ("site-1", "site-2", "site-3", "site-4"))
    PFedSAMRecipe.of(job, code=False).export(str(tmp_path))
    assert files(tmp_path / "pfedsam") == files(MAIN)
    assert json.loads((tmp_path / "pfedsam/meta.json").read_text()) == json.loads((MAIN / "meta.json").read_text())


@pytest.mark.parametrize("job", JOBS, ids=lambda j: j.stem)
def test_a_job_comes_out_as_one_flare_accepts_and_reads_back_as_it_was(job: Path, tmp_path: Path) -> None:
    said = read_job(job)
    render(job, tmp_path / "job", code=False, sites=list(said.sites))
    accepted(tmp_path / "job")
    assert read_job(tmp_path / "job") == said


@pytest.mark.parametrize("name", MORE)
def test_every_method_and_reading_is_a_setting_of_the_main_job(name: str) -> None:
    config = read_job(MAIN, MORE[name]).config
    assert MORE[name][0] in (
        f"method={config.method}",
        f"method.reading={getattr(config.method_settings, 'reading', None)}",
    )


def test_every_job_has_a_study_of_its_own() -> None:
    assert len({read_job(job).config.study for job in JOBS}) == len(JOBS)


def test_a_settings_file_and_the_recipe_s_words_make_the_same_job() -> None:
    said = read_job(ROOT / "jobs/polyp.json", ["seed=3"])
    sites = ["kvasir_inset", "kvasir_plain"]
    settings = {**said.settings, "seed": 3}
    assert PFedSAMRecipe("polyp", rounds=15, min_sites=2, sites=sites, **settings).job == said
    assert not set(FACTS) & {field.name for field in fields(Config)}  # the recipe takes both as its words


def test_a_job_that_pfedsam_brings_is_read_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [read_job(Path(path.stem)) for path in JOBS] == [read_job(path) for path in JOBS]


def test_a_file_or_a_job_folder_goes_before_the_name_of_a_job_that_pfedsam_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pfedsam").mkdir()  # such as a checkout: no job
    (tmp_path / "polyp").write_text(json.dumps({"settings": {"study": "own"}}))
    assert read_job(Path("polyp")).config.study == "own"
    assert read_job(Path("pfedsam")).config.study == "demo"


def test_the_quorum_is_never_above_the_sites_that_are_named(tmp_path: Path) -> None:
    render(MAIN, tmp_path / "job", code=False, sites=["site-1"])
    assert read_job(tmp_path / "job").min_sites == 1
    assert json.loads((tmp_path / "job/meta.json").read_text())["min_clients"] == 1


def test_the_quorum_is_never_below_what_the_server_s_rule_needs(tmp_path: Path) -> None:
    render(MAIN, tmp_path / "job", code=False, changes=["server.rule=trimmed"])
    assert read_job(tmp_path / "job").min_sites == 3
    assert read_job(MAIN, ["server.rule=median", "server.hostile=0"]).quorum == 2


def test_what_else_flare_is_told_of_a_job_goes_along(tmp_path: Path) -> None:
    more = {"resource_spec": {"site-1": {"num_of_gpus": 1}}, "scope": "pfedsam"}
    render(MAIN, tmp_path / "job", code=False, meta=more, grace=60, timeout=5, begin="demo/latest")
    render(tmp_path / "job", tmp_path / "again", code=False, run="mine", continues=True)
    again = read_job(tmp_path / "again")
    assert (again.meta, again.grace, again.timeout, again.begin) == (more, 60, 5, "demo/latest")
    assert (again.name, again.run, again.continues) == ("mine", "mine", True)


def test_a_folder_whose_flare_files_were_edited_is_not_rendered_without_the_edits(tmp_path: Path) -> None:
    render(MAIN, tmp_path / "job", code=False)
    client = tmp_path / "job/app/config/config_fed_client.json"
    client.write_text(client.read_text().replace("OnlySharedLeaves", "SitePolicy"))
    with pytest.raises(UserFault, match=r"config_fed_client\.json edited"):
        render(tmp_path / "job", tmp_path / "again", code=False)


def test_no_link_and_no_copy_of_the_package_lies_in_jobs() -> None:
    for path in (ROOT / "jobs").rglob("*"):
        assert not os.path.islink(path)
        assert path.suffix != ".py"


def test_a_job_brings_the_methods_that_its_own_needs_and_all_if_it_begins_with_another_run_s_model(
    tmp_path: Path,
) -> None:
    for name, more in (("own", []), ("begins", ["--begin", "demo/latest"])):
        assert main(["render", str(MAIN), str(tmp_path / name), "--set", "method=fedrep", *more]) == 0
    found = [
        {path.stem for path in (tmp_path / name / "app/custom/pfedsam/methods").glob("*.py")} - {"__init__", "base"}
        for name in ("own", "begins")
    ]
    assert found == [{"fedrep", "fedper", "fedavg"}, methods.OURS]


def test_a_job_brings_its_method_and_those_that_it_is_built_from() -> None:
    assert methods.needed("fedrep") == {"fedrep", "fedper", "fedavg"}
    assert methods.needed("spp_fgc") == {"spp_fgc", "clustered", "similarity", "fedavg"}
    assert methods.needed("local") == {"local", "fedavg"}  # from pfedsam.methods.fedavg import merge
    assert methods.needed("of another distribution") == methods.OURS


def test_a_rendered_job_brings_its_code_and_its_changes(tmp_path: Path) -> None:
    out = tmp_path / "job"
    change = ["--set", "train.lr=0.5", "--set", "study=other", "--rounds", "3"]
    assert main(["render", str(MAIN), str(out), *change]) == 0
    assert (out / "app/custom/pfedsam/site.py").is_file()
    assert not any((out / "app/custom/pfedsam" / name).exists() for name in ("prepare", "inference", "api.py"))
    assert {path.stem for path in (out / "app/custom/pfedsam/methods").glob("*.py")} == {"__init__", "base", "pfedsam"}
    assert {path.suffix for path in (out / "app/custom/pfedsam/assets").iterdir()} == {".safetensors", ".json"}
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    assert size < 4_075_000  # POC deploys at most 4 MiB, and FLARE adds 110 kB of its own
    job = read_job(out)
    assert (job.config.train.lr, job.config.study, job.rounds) == (0.5, "other", 3)
    assert json.loads((out / "meta.json").read_text())["deploy_map"] == {"app": ["@ALL"]}
    accepted(out)


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
    config = read_job(MAIN, changes).config
    assert to_dict(config)["method"] == method


def torn(folder: Path) -> Path:
    """Job folders, each with one file that is not what it should be."""
    for name in ("settings", "server", "meta", "old"):
        shutil.copytree(MAIN, folder / "torn" / name)
    (folder / "torn/settings/app/config/pfedsam.json").write_text('{"seed": ')
    (folder / "torn/server/app/config/config_fed_server.json").write_text('{"workflows": []}')
    (folder / "torn/meta/meta.json").unlink()
    old = folder / "torn/old/app/config/config_fed_server.json"
    old.write_text(old.read_text().replace('"rounds": 12', '"num_rounds": 12'))
    (folder / "torn/settings/app/config/bare.json").write_text('{"study": "mine"}')
    (folder / "torn/odd.json").write_text('{"settings": {}, "min_clients": 2}')
    (folder / "torn/sites.json").write_text('{"settings": {}, "sites": "site-1"}')
    return folder / "torn"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["render", "nowhere", "{out}"], "a settings file or a job folder"),
        (["render", "nowhere", "{out}"], "brain_mri, breast_us, fedavg, fundus, mixed, nuclei, nuclei_he, pfedsam"),
        (["project", "{job}/meta.json"], "does not exist yet"),
        (["render", "{torn}/settings/app/config/bare.json", "{out}"], "name the folder"),
        (["render", "{torn}/odd.json", "{out}"], "settings of a job among"),
        (["render", "{torn}/sites.json", "{out}"], "sites to be"),
        (["render", "{torn}/old", "{out}"], "came no rounds"),
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
        (["convert", "{job}/meta.json"], "whole weights in"),
    ],
)
def test_a_wrong_command_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    names = {"job": str(MAIN), "out": str(tmp_path / "out"), "torn": str(torn(tmp_path))}
    assert main([a.format(**names) for a in arguments]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["file/job", "file/deep/job"])
def test_a_place_where_no_job_can_be_is_told(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserFault, match=where):
        render(MAIN, tmp_path / where)
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
        render(MAIN, tmp_path / "job")
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("sites", [None, ["site-1"]])
def test_a_job_without_code_has_no_folder_for_it_which_a_strict_hospital_would_refuse(
    tmp_path: Path, sites: list[str] | None
) -> None:
    render(MAIN, tmp_path / "job", code=False, sites=sites)
    assert not (tmp_path / "job/app/custom").exists()


def test_render_leaves_to_a_job_what_it_says_of_its_run(tmp_path: Path) -> None:
    (tmp_path / "late.json").write_text(json.dumps({"begin": "demo/latest", "run": "mine", "settings": {}}))
    assert main(["render", str(tmp_path / "late.json"), str(tmp_path / "job"), "--no-code"]) == 0
    job = read_job(tmp_path / "job")
    assert (job.begin, job.run, job.continues) == ("demo/latest", "mine", False)
    name_run(tmp_path / "job", "latest", must_exist=True)
    again = read_job(tmp_path / "job")
    assert (again.name, again.run, again.continues) == ("mine", "latest", True)
