"""A run in one process, cut and gone on."""

from pathlib import Path
from typing import Any

import pytest

from conftest import tiny
from pfedsam.federation import Plan, federate
from pfedsam.site import Places


def plan(hospital: Path, folder: Path) -> Plan:
    names = ("site-1", "site-2")
    return Plan(tiny(), {name: Places(hospital, folder / "sites") for name in names}, 3, folder)


def test_a_run_that_was_cut_goes_on_to_the_same_result(hospital: Path, tmp_path: Path) -> None:
    whole = federate(plan(hospital, tmp_path / "whole"))

    def cut(entry: dict[str, Any]) -> None:
        if entry["round"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(plan(hospital, tmp_path / "cut"), cut)
    assert not (tmp_path / "cut/results.json").exists()
    told: list[int] = []
    found = federate(plan(hospital, tmp_path / "cut"), lambda entry: told.append(entry["round"]))
    assert told == [2]
    assert [entry["round"] for entry in found["rounds"]] == [0, 1, 2]
    assert found["final"] == whole["final"]
