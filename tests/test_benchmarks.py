"""The benchmarks' slow reference must be the same model, or the ratios say nothing; the tables must say what ran."""

import json
from pathlib import Path

import pytest
from stock import random_state
from suites import SUITES, Row
from tables import Home, difference, read, table, within
from training_step import ROWS, Case, batch, ours, stock


def test_our_step_takes_the_same_steps_as_sam_as_published() -> None:
    case = Case("vit_b", 64, random_state(64))
    batches = [batch(64, 2, seed) for seed in range(3)]
    slow, fast = stock(case), ours(case, ROWS["plain, float32"])
    reference = [slow(b) for b in batches]
    assert [fast(b) for b in batches] == pytest.approx(reference, rel=1e-4)
    assert reference[0] != reference[2]


HOMES = {"a1": Home("a", "p1"), "a2": Home("a", "p1"), "a3": Home("a", "p2"), "b1": Home("b", "p3")}


def val(dice: float) -> dict:
    return {"val": {"personal": {"dice": dice}}}


def written(folder: Path, lift: float) -> Path:
    """A finished run of two sites whose cases score 0.5 plus `lift`; a case of site b has an empty reference."""
    report = {"bytes_sent": 2_000_000, "bytes_received": 4_000_000}
    for site, cases in {"a": ["a1", "a2", "a3"], "b": ["b1", "b2"]}.items():
        score = {"dice": 0.5 + lift, "iou": 0.4, "hd95": 3.0, "assd": 1.0}
        rows = [dict(score, dice=None) if case == "b2" else score for case in cases]
        (folder / site).mkdir(parents=True)
        (folder / site / "cases.json").write_text(
            json.dumps({"cases": cases, "scores": {"global": rows, "personal": rows}})
        )
    rounds = [{"seconds": 7.0, "sites": {"a": report | val(0.1 * i), "b": report | val(0.3 * i)}} for i in (1, 2)]
    (folder / "results.json").write_text(json.dumps({"rounds": rounds}))
    return folder / "results.json"


def test_a_table_says_what_the_runs_wrote(tmp_path: Path) -> None:
    first, other = read(written(tmp_path / "first", 0.0)), read(written(tmp_path / "other", 0.25))
    rows = table({Row("first", "first"): {0: first}, Row("other", "other"): {0: other}}, HOMES)
    assert rows[2].startswith(
        "| first | personal | 1 | 0.500 | 0.500 | 0.500 | 0.500 | 0.400 | 3.0 | 1.0 | 2.00 / 4.00 | 7 |"
    )
    assert rows[3].endswith("| +0.250 (+0.250 to +0.250) |")
    assert difference({0: other}, {1: first}, "personal", HOMES) == ""


def test_a_budget_of_bytes_pays_for_whole_rounds(tmp_path: Path) -> None:
    run = read(written(tmp_path, 0.0))
    assert within(run, 5.9) is None
    assert within(run, 11.9) == pytest.approx(0.2)
    assert within(run, 1000) == pytest.approx(0.4)


def test_rows_of_a_suite_have_names_of_their_own() -> None:
    for suite in SUITES.values():
        assert len({row.name for row in suite}) == len(suite)
