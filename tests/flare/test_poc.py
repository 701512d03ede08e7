"""The documented commands in FLARE's POC mode: separate processes, http, a job with its code or without."""

import json
from pathlib import Path

import pytest
from federation import Federation, main

from conftest import ROOT, TINY, let_little_leave
from pfedsam.errors import UserFault


@pytest.mark.flare
@pytest.mark.long
@pytest.mark.parametrize("byoc", [[], ["--byoc"]], ids=["without code", "with code"])
def test_poc_runs_by_one_command_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str], byoc: list[str]) -> None:
    home = ["--home", str(tmp_path / "federation")]
    settings = [word for change in TINY for word in ("--set", change)]
    assert main(["prepare", "--mode", "poc", *byoc, *home]) == 0
    let_little_leave(Federation(tmp_path / "federation"))
    try:
        assert main(["start", *home]) == 0
        assert main(["watch", str(ROOT / "jobs/pfedsam"), "--rounds", "2", *settings, *home]) == 0
        (found,) = (tmp_path / "federation/results").rglob("results.json")
        assert set(json.loads(found.read_text())["final"]["sites"]) == {"hospital-a", "hospital-b", "hospital-c"}
    finally:
        assert main(["remove", *home]) == 0
    assert list(tmp_path.iterdir()) == []
    assert "results:" in capsys.readouterr().out


def test_a_federation_that_could_not_be_made_leaves_no_folder_in_the_way(tmp_path: Path, monkeypatch) -> None:
    def dies(*_: str) -> None:
        raise UserFault(expected="kits", came="none", do="try again")

    federation = Federation(tmp_path / "home")
    monkeypatch.setattr(Federation, "_nvflare", dies)
    with pytest.raises(UserFault, match="expected kits"):
        federation.prepare("provisioned", byoc=False)
    assert not (tmp_path / "home").exists()
