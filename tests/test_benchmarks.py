"""The benchmarks' slow reference must be the same model, or the ratios say nothing; the tables must say what ran."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from shards import shards
from stock import random_state
from suites import NAMES, Row, rows_of
from sweep import Run
from tables import Home, difference, read, table, within
from training_step import ROWS, Case, batch, ours, stock

from conftest import ROOT
from pfedsam.data.datalist import raw_rows
from pfedsam.jobs import settings_of


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
        rows = [dict(score, cls=1, dice=None if case == "b2" else score["dice"]) for case in cases]
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
    assert within(run, 1000) == within(run, float("inf")) == pytest.approx(0.4)


SIZES = {"tcga_cs": 65, "tcga_du": 96, "tcga_ht": 95}


@pytest.mark.parametrize("suite", NAMES)
def test_rows_of_a_suite_have_names_of_their_own_and_settings_that_are_known(suite: str) -> None:
    rows = rows_of(suite, SIZES)
    assert len({row.name for row in rows}) == len(rows)
    job = "pfedsam_fundus" if suite == "partial" else "pfedsam_brain_mri"
    for row in rows:
        settings_of(ROOT / "jobs" / job, row.changes)


def test_a_site_that_joins_late_was_not_there_before_and_waits_for_the_run_that_it_starts_from(tmp_path: Path) -> None:
    rows = {row.name: row for row in rows_of("late", SIZES)}
    joins = rows["joins_tcga_cs_5"]
    assert joins.sites == ("tcga_cs",)
    assert rows[joins.begins].sites == ("tcga_du", "tcga_ht")
    run = Run("brain_mri", joins, 0)
    assert not run.ready(tmp_path)
    (tmp_path / "brain_mri/without_tcga_cs/0").mkdir(parents=True)
    (tmp_path / "brain_mri/without_tcga_cs/0/results.json").touch()
    assert run.ready(tmp_path)


def test_a_table_is_about_the_sites_that_took_part(tmp_path: Path) -> None:
    whole = read(written(tmp_path, 0.0))
    part = replace(whole, scores={role: {("b1", 1): cases["b1", 1]} for role, cases in whole.scores.items()})
    line = table({Row("part", "part"): {0: part}}, HOMES)[2]
    assert line.startswith("| part | personal | 1 |  | 0.500 | 0.500 | 0.500 |")


def test_classes_are_paired_and_one_that_a_site_does_not_annotate_is_left_out(tmp_path: Path) -> None:
    whole, part = read(written(tmp_path / "whole", 0.0)), read(written(tmp_path / "part", 0.1))
    second = {(case, 2): dict(score, dice=0.0) for (case, _), score in whole.scores["personal"].items()}
    both = replace(whole, scores={role: scores | second for role, scores in whole.scores.items()})
    assert difference({0: part}, {0: both}, "personal", HOMES) == "+0.100 (+0.100 to +0.100)"
    assert table({Row("both", "both"): {0: both}}, HOMES)[2].startswith("| both | personal | 1 | 0.250 | 0.250 |")


def test_a_hospital_s_parts_are_alike_in_size_and_hold_whole_patients(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    lines = [
        f"h,images/{i}.png,images/{i}.png,{split},p{i // 2}" for i, split in enumerate(["train"] * 8 + ["test"] * 4)
    ]
    (data / "manifest.csv").write_text("site,image,mask,split,group\n" + "\n".join(lines) + "\n")
    (data / "images/3.png").touch()
    shards(data, tmp_path / "out", 2, seed=0)
    rows = raw_rows(tmp_path / "out/manifest.csv")
    assert sorted(Counter((row["site"], row["split"]) for row in rows).items()) == [
        (("h-1", "test"), 2),
        (("h-1", "train"), 4),
        (("h-2", "test"), 2),
        (("h-2", "train"), 4),
    ]
    assert len({(row["site"], row["group"]) for row in rows}) == len({row["group"] for row in rows})
    assert (tmp_path / "out" / rows[3]["image"]).is_file()
