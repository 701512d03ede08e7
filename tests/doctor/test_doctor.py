"""The doctor: what it counts is exact, what it tries is real, what is amiss it names."""

import errno
import json
import math
import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from conftest import ROOT, TINY, tiny
from pfedsam.cli import main
from pfedsam.data.synthetic import write_site
from pfedsam.doctor import checks, memory, needs
from pfedsam.doctor.examine import Here, examine, together
from pfedsam.doctor.needs import Setting
from pfedsam.doctor.trial import Trial, server_memory, tried
from pfedsam.errors import UserFault
from pfedsam.exchange.privacy import Budget, Mechanism, budget_of
from pfedsam.federation import Plan, federate
from pfedsam.flare.recipe import render
from pfedsam.layout import Places
from pfedsam.settings import from_dict
from pfedsam.study import shared_schema

SLICES = {"train": 9, "val": 4, "test": 5}
TRIAL = Trial(
    3.0,
    SLICES,
    step_new=2.0,
    step=2.0,
    validation=0.2,
    final=0.3,
    round=0.4,
    test=0.6,
)


@pytest.mark.parametrize(
    ("wire", "method"), [({}, "pfedsam"), ({"up": "int8", "down": "bf16"}, "scaffold"), ({"up": "int4"}, "pfedsam")]
)
def test_bytes_are_those_that_a_run_then_sends(
    hospital: Path, tmp_path: Path, wire: dict[str, str], method: str
) -> None:
    config = tiny(wire=wire, method=method)
    found = federate(Plan(config, {"site-1": Places(hospital, tmp_path / "sites")}, 1, tmp_path))
    report = found["rounds"][0]["sites"]["site-1"]
    assert needs.wire_bytes(config) == needs.Bytes(report["bytes_sent"], report["bytes_received"])


def test_seconds_are_counted_from_steps_and_slices() -> None:
    config = from_dict({"train": {"batch_size": 2, "epochs": 2}})
    found = needs.seconds(config, TRIAL, Setting(3, flare=False))
    message = needs.MESSAGE_MB * needs.wire_bytes(config).up / 1e6
    later = 10 * 2.0 + 4 * 0.2 + 0.4 + message
    assert found.round == pytest.approx(later)
    assert found.first_round == pytest.approx(later + 5 * 0.3)
    assert found.test == pytest.approx(5 * 0.3 + 4 * 0.2 + 0.6)  # distances are of the test split alone
    assert found.run == pytest.approx(found.first_round + 2 * later + found.test)


def test_sites_beyond_the_trials_lanes_wait_for_each_other() -> None:
    config = from_dict({"train": {"batch_size": 2}})
    two, four = (needs.seconds(config, TRIAL, Setting(2, sites=n, lanes=2, flare=False)) for n in (2, 4))
    message = needs.MESSAGE_MB * needs.wire_bytes(config).up / 1e6
    assert four.round - message == pytest.approx(2 * (two.round - message))
    room = needs.memory(config, replace(TRIAL, peak=100), Setting(2, sites=4, lanes=2, flare=False), 0)
    assert room.all == 400


def test_what_files_hold_is_in_memory_once_for_all_sites() -> None:
    trial = replace(TRIAL, peak=100, mapped=40)
    assert needs.memory(from_dict({}), trial, Setting(2, sites=4, lanes=2, flare=False), 0).all == 4 * 60 + 40


def test_a_view_in_the_cache_is_not_computed_again_where_the_cache_holds_them_all() -> None:
    train = {"batch_size": 2, "cache": "memory", "views": 2, "cache_gb": 1.0}
    config, cached = from_dict({"train": train}), replace(TRIAL, step=0.5, entry=1000)
    assert needs.new_steps(config, cached, 50) == 2 * 5
    assert (
        needs.seconds(config, cached, Setting(5, flare=False)).round
        < needs.seconds(config, cached, Setting(1, flare=False)).round
    )
    crowded = replace(cached, entry=10**9)
    assert needs.new_steps(config, crowded, 50) == 50
    assert needs.memory(config, crowded, Setting(1), 0).site == 10**9


def test_a_trial_is_a_real_run_in_small(hospital: Path, tmp_path: Path) -> None:
    config = tiny(train={"max_steps": None, "cache": "memory", "views": 1}, model={"lora_last": 1})
    places = Places(hospital, tmp_path / "store", cache=tmp_path / "cache")
    found = tried("site-1", config, places, threads=1, seconds=0.5)
    assert found.slices == {"train": 6, "val": 2, "test": 3}
    assert min(found.step, found.step_new, found.validation, found.final, found.round, found.entry) > 0
    assert (tmp_path / "store/pfedsam/site-1/final/pictures.safetensors").is_file()


@pytest.mark.parametrize(
    ("method", "always", "each", "counted"),
    [("pfedsam", 0, 0, 0), ("scaffold", 1, 1, 8), ("similarity", 0, 1, 0)],  # 8 bytes: SCAFFOLD counts samples
)
def test_a_trial_finds_what_the_server_remembers(
    hospital: Path, tmp_path: Path, method: str, always: int, each: int, counted: int
) -> None:
    places = Places(hospital, tmp_path / "store", cache=tmp_path / "cache")
    found = tried("site-1", tiny(method=method), places, threads=1, seconds=0.5)
    size = sum(math.prod(spec.shape) * 4 for spec in shared_schema(tiny(method=method)).values())
    assert found.memory == (always * size, each * size + counted)
    some, more = (needs.disk(tiny(method=method), found, Setting(2, sites=n), 0).server for n in (2, 3))
    assert more - some == (each * size + counted) * 4  # checkpoints after 0, 1 and 2 rounds, and one being written


@pytest.mark.parametrize("rule", ["krum", "trimmed", "median", "geometric"])
def test_a_trial_of_one_site_measures_under_a_rule_that_needs_more(open_site, rule: str) -> None:
    assert server_memory(open_site(tiny(method="fedavg", server={"rule": rule}))) == (0, 0)


def test_the_examination_measures_in_a_process_of_its_own_and_finds_the_machine_well(
    hospital: Path, tmp_path: Path
) -> None:
    here = Here(hospital, None, tmp_path, threads=1, site="site-1", seconds=0.5)
    found = examine(tiny(), here, Setting(2, flare=False))
    assert found.well, found.checks
    assert not found.assumed
    assert found.slices == {"train": 6, "val": 2, "test": 3}
    assert 2e8 < found.memory.site < 3e9
    assert 0 < found.seconds.round < found.seconds.run


def test_without_the_sites_data_a_pooled_job_is_tried_on_drawn_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfedsam.doctor.examine.together", lambda works, *_, **__: [work() for work in works])
    here = Here(None, None, tmp_path, threads=1, site="pooled", seconds=0.5)
    assert examine(tiny(data={"pool": True}), here, Setting(1, flare=False)).assumed


def test_missing_weights_and_data_are_named_with_what_to_do(tmp_path: Path) -> None:
    config = tiny(model={"backbone": "tiny_vit"})
    lacks = checks.weight_file(config, tmp_path)
    assert not lacks.ok
    assert "mobile_sam" in lacks.do
    (tmp_path / "mobile_sam.pt").write_bytes(b"something else")
    assert "sha256" in checks.weight_file(config, tmp_path).do
    assert not checks.data(config, None, "site-1").ok
    assert "datalist" in checks.data(config, tmp_path / "none", "site-1").do


def test_of_several_sites_in_a_folder_the_largest_is_taken(tmp_path: Path) -> None:
    for name, count in {"north": 2, "south": 3}.items():
        write_site(tmp_path / name, name, {"train": count, "val": 1, "test": 1}, 0)
    assert checks.site_of(from_dict({}), tmp_path) == "south"


def test_memory_that_would_just_fit_does_not_pass() -> None:
    assert checks.room("memory", 100, 115).ok
    assert not checks.room("memory", 100, 114).ok


def test_the_versions_installed_here_are_those_required() -> None:
    assert [check.ok for check in checks.versions()] == [True, True]


def test_every_site_that_a_simulated_job_names_must_have_data(
    tmp_path: Path, hospital: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render(
        ROOT / "jobs/pfedsam", tmp_path / "job", changes=["data.source=site"], code=False, sites=["site-1", "nowhere"]
    )
    assert main(["doctor", str(tmp_path / "job"), "--sites", "2", "--data", str(hospital), "--json"]) == 1
    seen = [check for check in json.loads(capsys.readouterr().out)["checks"] if check["name"] == "data"]
    assert [check["ok"] for check in seen] == [True, False]
    assert "nowhere" in seen[1]["do"]


@pytest.mark.parametrize(
    ("named", "sites", "ok", "told"),
    [
        (["north", "south"], "1", True, "site north: 6 train"),
        (["north", "south"], "2", False, "at both north and south"),
        (["site-2"], "1", True, "site site-2: 6 train"),
    ],
)
def test_the_data_are_those_of_a_site_of_the_job(
    tmp_path: Path,
    hospital: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    named: list[str],
    sites: str,
    ok: bool,
    told: str,
) -> None:
    """A folder with one datalist is one of the job's sites, and never two of them."""
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"settings": {"data": {"source": "site"}}, "rounds": 1, "sites": named}))
    folder = hospital / named[0] if (hospital / named[0]).exists() else hospital / "site-1"
    weights = ["--set", "model.backbone=tiny_vit", "--weights", str(tmp_path)]  # missing: no trial begins
    assert main(["doctor", str(job), "--sites", sites, "--data", str(folder), "--json", *weights]) == 1
    seen = [check for check in json.loads(capsys.readouterr().out)["checks"] if check["name"] == "data"]
    assert all(check["ok"] for check in seen) == ok
    assert told in f"{seen[0]['found']} {seen[-1]['do']}"


def test_a_wrong_number_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(ROOT / "jobs/pfedsam"), "--sites", "0"]) == 2
    assert "--sites above 0" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["no folder", "full"])
def test_a_temporary_folder_that_takes_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    if what == "full":
        (tmp_path / "temporary").mkdir()
        monkeypatch.setattr("pfedsam.doctor.examine.write_site", full)
    with pytest.raises(UserFault, match=f"{tmp_path}/temporary.*TMPDIR"):
        examine(tiny(), Here(None, None, tmp_path, threads=1, seconds=0.5), Setting(2, flare=False))


def test_a_trial_that_left_no_word_is_told_with_the_room_that_there_was(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match=f"killed.*free in {tmp_path}"):
        together([partial(os._exit, 1)], tmp_path, flare=False)


def test_a_fault_in_a_trial_is_told_as_it_is(hospital: Path, tmp_path: Path) -> None:
    places = Places(hospital / "nowhere", tmp_path / "store")
    with pytest.raises(UserFault, match="nowhere") as fault:
        together([partial(tried, "site-1", tiny(), places, threads=1, seconds=0)], tmp_path, flare=False)
    assert fault.value.do


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 1000),
        ({"memory.max": "max", "memory.current": "7"}, 1000),
        ({"memory.max": "900", "memory.current": "300"}, 600),
        ({"memory.max": "900", "memory.current": "300", "memory.stat": "anon 1\ninactive_file 100\n"}, 700),
        ({"memory.max": "5000", "memory.current": "300"}, 1000),
        ({"memory.max": "100", "memory.current": "300"}, 0),
        ({"memory/memory.limit_in_bytes": "900", "memory/memory.usage_in_bytes": "300"}, 600),
        ({"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "300"}, 1000),
        ({"memory.max": "nonsense", "memory.current": "300"}, 1000),
    ],
)
def test_in_a_container_memory_is_what_its_limit_leaves(tmp_path: Path, files: dict[str, str], free: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert memory.free(1000, tmp_path) == free


@pytest.mark.long
def test_the_verb_answers_no_where_something_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PFEDSAM_DATA", "PFEDSAM_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    changes = [part for change in TINY for part in ("--set", change)]
    command = ["doctor", str(ROOT / "jobs/pfedsam"), *changes, "--json", "--threads", "1"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["well"]
    assert found["slices"] == {"train": 4, "val": 2, "test": 2}
    assert main([*command, "--set", "data.source=site"]) == 1
    missing = [check for check in json.loads(capsys.readouterr().out)["checks"] if not check["ok"]]
    assert [check["name"] for check in missing] == ["data"]


def test_the_doctor_says_whether_the_privacy_budget_pays_the_job(tmp_path: Path) -> None:
    config = from_dict({"model": {"experts": 0}, "privacy": {"unit": "patient", "noise": 2.0}})
    plan = partial(checks.privacy, config, tmp_path, "site-1", 30, 60)  # 15 steps a round, of 4 in 30 patients
    assert plan(rounds=10).ok
    file = tmp_path / "budget/site-1.json"
    assert plan(rounds=10).found.startswith(f"epsilon 0 spent (no file {file}), 4.35 after 10 rounds, of 8")
    assert not plan(rounds=100).ok
    Budget(tmp_path, "site-1").pay("of another study", Mechanism(2.0, 4 / 30, 375), config.privacy)
    assert not plan(rounds=10).ok


def test_the_doctor_asks_for_the_budget_that_the_job_s_rounds_are_paid_from(open_site, tmp_path: Path) -> None:
    """Drawn images have one of their own."""
    hidden = {"model": {"experts": 0}, "privacy": {"unit": "patient", "noise": 2.0}}
    config = tiny(**hidden, data={"source": "synthetic"})
    assert open_site(config).budget.path == budget_of(tmp_path / "store", "site-1", config).path
    budget_of(tmp_path, "site-1", config).pay("a round", Mechanism(2.0, 4 / 30, 375), config.privacy)
    found = {
        of: checks.privacy(tiny(**hidden, data={"source": of}), tmp_path, "site-1", 30, 60, rounds=1).found
        for of in ("synthetic", "site")
    }
    assert not found["synthetic"].startswith("epsilon 0 spent")
    assert found["site"].startswith("epsilon 0 spent")
