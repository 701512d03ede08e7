"""What is told of compiling, and of the seconds to a Dice, is what was measured here."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import compiled
import machine
import pytest
import time_to_dice
import torch
from compiled import Timed, look_up, process, row, verdict
from suites import OWN_LORA, Row
from sweep import Run, settings
from time_to_dice import ROUNDS, cpu_seconds, demo, kept, products, run_of

from pfedsam.config import to_dict
from pfedsam.files import write_json
from pfedsam.model.backbones import BUILDERS
from pfedsam.model.tinyvit import TinyViTBlock

OPTIONS = Namespace(backbone="vit_b", size=64, runs=1, limit=600)
SOON = Timed(first=30.0, first_cpu=9.0, plain=0.3, compiled=0.2)


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        (SOON, True),
        (Timed(30.0, 10.5, 0.3, 0.2), False),
        (Timed(30.0, 9.0, 0.3, 0.28), False),
        (Timed(30.0, 9.0, 0.33, 0.3), True),
    ],
)
def test_compiling_is_offered_if_later_processes_start_soon_and_steps_gain_a_tenth(found: Timed, holds: bool) -> None:
    assert found.offered == holds


def test_a_row_of_compiling_is_of_a_process_with_empty_caches_and_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Path] = []

    def measure(_method: str, _way: str, caches: Path, _options: Namespace) -> Timed:
        ran.append(caches)
        return [Timed(300.0, 500.0, 1.0, 1.0), SOON][len(ran) - 1]

    monkeypatch.setattr(compiled, "process", measure)
    found = row("fedavg", "blocks", OPTIONS)
    assert found[2:] == [300.0, 30.0, 9.0, 0.3, 0.2, pytest.approx(1.5), "yes"]
    assert ran[0] == ran[1]
    assert "holds for fedavg, the encoder's blocks" in verdict([found])


def test_without_a_first_process_in_time_no_later_one_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(compiled, "process", lambda *_: calls.append("one"))
    found = row("pfedsam", "whole", OPTIONS)
    assert (found[2], found[-1], calls) == ("over 600", "no", ["one"])
    assert len(found) == len(compiled.COLUMNS)
    assert "not offered" in verdict([found])


def test_a_process_that_takes_longer_than_the_limit_is_ended(tmp_path: Path) -> None:
    assert process("fedavg", "blocks", tmp_path, Namespace(**{**vars(OPTIONS), "limit": 0.2})) is None
    assert not list(tmp_path.iterdir())


def test_a_block_that_looks_its_position_terms_up_by_size_gives_the_same() -> None:
    encoder = BUILDERS["tiny_vit"](64, None).encoder.requires_grad_(False)
    block = next(unit for unit in encoder.units if isinstance(unit, TinyViTBlock))
    x = torch.randn(1, 8, 8, block.attn.norm.bias.shape[0])
    before = block(x)
    look_up(block)
    assert torch.equal(block(x), before)


def test_seconds_take_turns_on_the_clock_that_is_given() -> None:
    clock = iter(range(100))
    found = machine.interleaved({"a": list, "b": list}, 2, clock=lambda: float(next(clock)))
    assert found == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_seconds_here_are_the_kept_rounds_times_a_round_here_the_quickest_first() -> None:
    known = [["slow", 3, 0.8, 2.0, 99.0, 99.0], ["quick", 1, 0.9, 8.0, 1.0, 1.0]]
    found = products(known, {"slow": 50.0, "quick": 5.0})
    assert found == [["quick", 1, 0.9, 8.0, 5.0, 40.0, 1.0], ["slow", 3, 0.8, 2.0, 50.0, 100.0, 2.5]]
    assert len(found[0]) == len(time_to_dice.COLUMNS_HERE)


def test_a_run_that_is_timed_stops_after_its_second_round_which_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def federate(plan: Any, tell: Any) -> None:
        for number in range(plan.rounds):
            told.append(number)
            tell({"round": number, "seconds": 1.0})

    clock = iter([10.0, 14.5])
    monkeypatch.setattr(time_to_dice, "federate", federate)
    monkeypatch.setattr(time_to_dice, "settings", lambda _run, _rounds: (None, 15))
    monkeypatch.setattr(time_to_dice, "sites", lambda *_: ["a"])
    monkeypatch.setattr(time_to_dice, "places", lambda *_: None)
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    assert cpu_seconds(Run("brain_mri", Row("fedavg", "FedAvg"), 0)) == 4.5
    assert len(told) == ROUNDS


def test_a_row_that_is_timed_has_the_settings_of_the_kept_runs() -> None:
    assert "method=ditto" in run_of("brain_mri", "ditto").row.changes
    with pytest.raises(SystemExit, match=r"expected a row among pfedsam, local.*came fedavgg"):
        run_of("brain_mri", "fedavgg")


def test_a_row_of_any_suite_can_be_timed() -> None:
    assert run_of("brain_mri", "own_lora").row == OWN_LORA
    assert "train.lr=1e-2" in run_of("nuclei", "local").row.changes


def test_rounds_of_runs_with_other_settings_are_not_multiplied_by_seconds_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.sizes", lambda _task: {"a": 8})
    run = run_of("brain_mri", "own_lora")
    config, rounds = settings(run, None)
    record = {"schema": 1, "method": "pfedsam", "rounds": [{"round": 0, "sites": {}}] * rounds}
    record["final"] = {"sites": {"a": {}}}
    write_json(run.folder(tmp_path) / "results.json", record | {"config": to_dict(config)})
    time_to_dice.demand_same(run, tmp_path)
    eight = replace(config, model=replace(config.model, experts=8))
    write_json(run.folder(tmp_path) / "results.json", record | {"config": to_dict(eight)})
    with pytest.raises(SystemExit, match=r"model\.experts 8"):
        time_to_dice.demand_same(run, tmp_path)


def test_the_demo_s_seconds_are_those_of_its_own_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = {"val": {"global": {"dice": 0.5}, "personal": {"dice": 0.5}}}
    entries = [{"round": number, "seconds": 99.0, "sites": {"a": scored}} for number in range(3)]
    record = {"rounds": entries, "final": {"sites": {"a": scored}}, "config": {"method": "pfedsam"}}

    def simulate(_job: Path, *, out: Path, on_round: Any) -> Any:
        for entry in entries:
            on_round(entry)
        return Namespace(record=record, out=out)

    clock = iter([10.0, 14.0, 15.0, 17.0])
    monkeypatch.setattr(time_to_dice, "simulate", simulate)
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    assert demo() == ["pfedsam", 1, 0.5, 1.0, 4.0, 7.0]


def test_a_row_that_was_not_run_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"expected fedavg in .*came none; to mend it"):
        kept(tmp_path, ["fedavg"])
