"""pfedsam simulate, as a user calls it."""

import json
from pathlib import Path

import pytest

from conftest import ROOT, TINY
from pfedsam.cli import main
from pfedsam.jobs import read_job

COMMAND = ["simulate", str(ROOT / "jobs/pfedsam"), "--rounds", "2", "--sites", "2"]
CHANGES = [word for change in (*TINY, "model.experts=3") for word in ("--set", change)]


def test_a_run_that_was_stopped_goes_on_and_ends_with_each_site_s_files_and_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    command = [*COMMAND, "--out", str(out), *CHANGES]
    with monkeypatch.context() as once:
        once.setattr("pfedsam.cli.simulate.console.counted", Stopping)
        assert main(command) == 130
    assert capsys.readouterr().err == "pfedsam: stopped; run the same command again to continue\n"
    assert not (out / "results.json").exists()
    assert main(command) == 0
    told = capsys.readouterr()
    assert told.err == ""  # no bar where stderr is no terminal
    assert "pfedsam, test split (synthetic data)" in told.out
    results = json.loads((out / "results.json").read_text())
    assert [entry["round"] for entry in results["rounds"]] == [0, 1]
    assert set(results["final"]["sites"]) == {"site-1", "site-2"}
    assert (out / "models/shared.safetensors").is_file()
    for site in ("site-1", "site-2"):
        assert (out / site / "cases.json").is_file()
        assert (out / site / "private.safetensors").is_file()
    assert main(["report", str(out), "--out", str(tmp_path / "report.html")]) == 0


class Stopping:
    """A bar at whose first step the user stops the run."""

    def __init__(self, what: str, total: int) -> None:
        pass

    def __enter__(self):
        return self

    def __call__(self, done: int) -> None:
        raise KeyboardInterrupt

    def __exit__(self, *fault: object) -> None:
        pass


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--sites", "5"], "at most the job's 4 sites"),
        (["--sites", "a b"], "a site's name"),
        (["--set", "data.source=site"], "data folder of site site-1"),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str], told: str
) -> None:
    monkeypatch.delenv("PFEDSAM_DATA", raising=False)
    assert main([*COMMAND[:2], "--out", str(tmp_path / "run"), *CHANGES, *more]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_job_names_the_sites_where_nobody_else_does() -> None:
    from pfedsam.api import _sites
    from pfedsam.cli.simulate import _named

    own = read_job(ROOT / "jobs/polyp.json").sites
    assert _sites(_named(""), own) == own == ("kvasir_inset", "kvasir_plain")
    assert _sites(_named("1"), own) == ("kvasir_inset",)
    assert _sites(_named("2"), ()) == ("site-1", "site-2")
    assert _sites(_named("ward-a, ward-b"), own) == ("ward-a", "ward-b")


def test_a_job_that_begins_with_another_run_s_model_is_refused_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "late.json"
    job.write_text(json.dumps({"sites": ["a"], "begin": "demo/latest", "settings": {"method": "newcomer"}}))
    assert main(["simulate", str(job)]) == 2
    assert "a job that starts a new run; came begin demo/latest" in capsys.readouterr().err
