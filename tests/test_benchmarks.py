"""The benchmarks' slow reference must be the same model, or the ratios say nothing; the tables must say what ran."""

import csv
import json
import shutil
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from pathlib import Path

import field
import gpu
import pytest
import torch
from between import draw_near
from ceiling import graded, perfect, sure
from evidence import EARLIER, HERE, pack, unpack
from field import beside_of
from kept import as_kept
from machine import Table
from parts import worth
from shards import shards
from stock import random_state
from suites import NAMES, SUITES, Row, rows_of
from sweep import FOLDERS, Run, done, settings, sizes, sweep, trained_before
from tables import (
    Found,
    Home,
    budgets,
    caption,
    codes,
    difference,
    read,
    read_homes,
    rival,
    runs,
    table,
    validation,
    within,
)
from time_to_dice import reached
from training_step import ROWS, Case, batch, ours, stock

from conftest import ROOT, after_a_round, tiny
from pfedsam.config import to_dict
from pfedsam.data.dataset import open_site
from pfedsam.data.records import raw_rows
from pfedsam.errors import UserFault
from pfedsam.federation import Plan, federate
from pfedsam.files import write_json
from pfedsam.jobs import read_job
from pfedsam.layout import Places
from pfedsam.model import moe
from pfedsam.model.lora import adapted, taking
from pfedsam.record.cases import read_cases
from pfedsam.record.scores import coarse, summary
from pfedsam.train.loop import steps_of


def test_our_step_takes_the_same_steps_as_sam_as_published() -> None:
    case = Case("vit_b", 64, random_state(64))
    batches = [batch(64, 2, seed) for seed in range(3)]
    slow, fast = stock(case), ours(case, ROWS["plain, float32"])
    reference = [slow(b) for b in batches]
    assert [fast(b) for b in batches] == pytest.approx(reference, rel=1e-4)
    assert reference[0] != reference[2]


HOMES = {"a1": Home("a", "p1"), "a2": Home("a", "p1"), "a3": Home("a", "p2"), "b1": Home("b", "p3")}


def val(dice: float) -> dict:
    return {"val": {"global": {"dice": dice}, "personal": {"dice": dice + 0.05}}}


def ran(folder: Path, lift: float, method: str = "pfedsam") -> Found:
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
    tested = {role: coarse({"dice": 0.5 + lift}) for role in ("global", "personal")}
    final = {"sites": {"a": tested | val(0.3), "b": tested | val(0.4)}}
    settings = {"method": method, "data": {"pool": False}}
    record = {"config": settings, "rounds": rounds, "final": final}
    write_json(folder / "results.json", record)
    return read(folder, record)


def test_a_run_s_cases_are_those_that_it_told_of(tmp_path: Path) -> None:
    ran(tmp_path / "one", 0.0)
    ran(tmp_path / "other", 0.25)
    ran(tmp_path / "third", 1 / 3)  # of which four digits left the site
    record = json.loads((tmp_path / "one/results.json").read_text())
    (tmp_path / "other/b/cases.json").replace(tmp_path / "one/b/cases.json")
    with pytest.raises(UserFault, match=r"global Dice 0\.75 in cases\.json, 0\.5 in results\.json"):
        read(tmp_path / "one", record)
    (tmp_path / "one/b/cases.json").unlink()
    with pytest.raises(UserFault, match=r"cases\.json"):
        read(tmp_path / "one", record)


def test_a_table_says_what_the_runs_wrote(tmp_path: Path) -> None:
    first, other = ran(tmp_path / "first", 0.0), ran(tmp_path / "other", 0.25)
    rows = table({Row("first", "first"): {0: first}, Row("other", "other"): {0: other}}, HOMES)
    assert rows[2].startswith(
        "| first | one | 1 | 0.500 | 0.500 | 0.500 | 0.500 | 0.400 | 1.000 |  | 3.0 | 1.0 | 2.00 / 4.00 | 7 |"
    )
    assert rows[3].endswith("| +0.250 (+0.250 to +0.250) |")
    assert difference({0: other}, {1: first}, "personal", HOMES) == ""


def test_a_difference_of_fewer_seeds_than_its_row_has_says_so(tmp_path: Path) -> None:
    """The other way round it is the row's own number of seeds, which stands beside it."""
    first, other = ran(tmp_path / "first", 0.0), ran(tmp_path / "other", 0.25)
    part = {Row("first", "first"): {0: first}, Row("other", "other"): {0: other, 1: other}}
    assert table(part, HOMES)[3].endswith("| +0.250 (+0.250 to +0.250) (1 seed) |")
    whole = {Row("first", "first"): {0: first, 1: first}, Row("other", "other"): {0: other}}
    assert table(whole, HOMES)[3].endswith("| +0.250 (+0.250 to +0.250) |")


def test_a_table_s_caption_has_the_test_patients_and_the_unit(tmp_path: Path) -> None:
    one = ran(tmp_path, 0.0)
    assert caption({Row("one", "one"): {0: one}}, HOMES) == "Test patients: a 2, b 1."
    measured = replace(one, units=frozenset({"px"}))
    assert caption({Row("one", "one"): {0: measured}}, HOMES) == "Test patients: a 2, b 1. HD95 and ASSD in px."
    both = replace(one, units=frozenset({"mm", "px"}))
    line = table({Row("both", "both"): {0: both}}, HOMES)[2]
    assert line.startswith("| both | one | 1 | 0.500 | 0.500 | 0.500 | 0.500 | 0.400 | 1.000 |  |  |  | 2.00")


def test_a_site_without_a_scored_validation_case_counts_in_no_mean() -> None:
    record = {"config": {"method": "pfedsam"}, "rounds": [], "final": {"sites": {"a": val(0.6), "b": val(0.4)}}}
    record["final"]["sites"]["b"]["val"]["personal"]["dice"] = None
    assert validation(record) == [pytest.approx(0.65)]


def test_a_row_is_compared_with_the_one_that_it_wants_beside_it(tmp_path: Path) -> None:
    found = {
        Row(name, name.upper(), beside=beside): {0: ran(tmp_path / name, lift)}
        for name, lift, beside in (("a", 0.0, ""), ("b", 0.25, "c"), ("c", 0.5, ""), ("d", 0.25, "not run"))
    }
    assert [line.split(" | ")[-1] for line in table(found, HOMES)[2:]] == [
        " |",
        "-0.250 (-0.250 to -0.250), C |",
        " |",
        " |",
    ]


@pytest.mark.parametrize("suite", NAMES)
def test_what_a_row_begins_with_and_is_compared_with_is_of_its_suite(suite: str) -> None:
    rows = rows_of(suite, "brain_mri", SIZES)
    names = {row.name for row in rows}
    for row in rows:
        assert {row.begins, row.beside} - {None, ""} <= names


def test_a_budget_of_bytes_pays_for_whole_rounds(tmp_path: Path) -> None:
    run = ran(tmp_path, 0.0)
    assert within(run, 5.9) is None
    assert within(run, 11.9) == pytest.approx(0.25)
    assert within(run, 1000) == within(run, float("inf")) == pytest.approx(0.4)


def test_a_method_of_one_branch_pays_for_the_download_that_brings_the_mean(tmp_path: Path) -> None:
    run = ran(tmp_path, 0.0, "fedavg")  # 6 MB a round, 4 MB of them down
    assert [within(run, size) for size in (9.9, 10, 15.9, 16)] == [None, *map(pytest.approx, (0.4, 0.4, 0.4))]
    changed = replace(run, validation=[0.1, 0.2])
    assert [within(changed, size) for size in (9.9, 10, 15.9, 16)] == [None, 0.1, 0.1, 0.2]


def test_validation_is_of_the_model_that_a_site_predicts_with(tmp_path: Path) -> None:
    """Of one branch: the mean that the next round begins with, not what the site had trained before it was averaged."""
    assert ran(tmp_path / "own", 0.0).validation == pytest.approx([0.25, 0.4])
    assert ran(tmp_path / "one", 0.0, "fedavg").validation == pytest.approx([0.4, 0.4])


def test_the_time_to_a_dice_is_that_of_the_rounds_until_it() -> None:
    rounds = [{"seconds": 7.0, "sites": {"a": val(dice)}} for dice in (0.1, 0.3, 0.74, 0.7)]
    record = {"rounds": rounds, "final": {"sites": {"a": val(0.7)}}, "config": {"method": {"name": "pfedsam"}}}
    assert reached(record) == (pytest.approx(0.75), 3, 21.0, 28.0)


def test_a_site_that_sat_a_round_out_counts_with_what_it_had() -> None:
    rounds = [{"sites": {"a": val(0.1), "b": val(0.3)}}, {"sites": {"a": val(0.5)}}, {"sites": {}}]
    record = {"config": {"method": "pfedsam"}, "rounds": rounds, "final": {"sites": {"a": val(0.6), "b": val(0.4)}}}
    assert validation(record) == pytest.approx([0.25, 0.45, 0.55])


def test_a_table_of_several_codes_says_which_ran_which_and_marks_validation_of_pooled_data(tmp_path: Path) -> None:
    one = replace(ran(tmp_path / "one", 0.0), ran=("aa", "torch 2", ""))
    other = replace(ran(tmp_path / "other", 0.0), ran=("bb", "torch 2", ""), pooled=True)
    found = {Row("one", "One"): {0: one, 1: one}, Row("other", "Other"): {0: other}}
    assert codes(found) == ["Code: aa, One; bb, Other."]
    assert codes({Row("one", "One"): {0: one}}) == []
    moved = replace(one, ran=("aa", "torch 2", "CPU"))
    mixed = {Row("one", "One"): {0: one, 1: moved, 2: moved}}
    assert codes(mixed) == ["Code: , One (seed 0); CPU, One (seed 1, 2)."]
    assert [line.split(" | ")[0] for line in budgets(found)[2:]] == ["| One", "| Other (mean over cases)"]


def test_the_rival_has_at_each_site_what_validates_higher_there(tmp_path: Path) -> None:
    fedavg, local = ran(tmp_path / "fedavg", 0.0, "fedavg"), ran(tmp_path / "local", 0.3, "local")
    local = replace(local, last={"a": fedavg.last["a"] - 0.1, "b": fedavg.last["b"] + 0.1})
    both = {Row("fedavg", "FedAvg"): {0: fedavg}, Row("local", "local"): {0: local, 1: local}}
    (rows,) = rival(both, HOMES).values()
    assert rows.keys() == {0}
    dice = {case: score["dice"] for (case, _), score in rows[0].scores["personal"].items()}
    assert dice == {"a1": 0.5, "a2": 0.5, "a3": 0.5, "b1": 0.8}
    assert rival({Row("fedavg", "FedAvg"): {0: fedavg}}, HOMES) == {}


def test_seeds_that_differ_widen_the_interval(tmp_path: Path) -> None:
    first, same, other = (ran(tmp_path / name, lift) for name, lift in (("0", 0.0), ("1", 0.0), ("2", 0.2)))
    assert difference({0: same, 1: same}, {0: first, 1: first}, "personal", HOMES) == "+0.000 (+0.000 to +0.000)"
    assert (
        difference({0: same, 1: other}, {0: first, 1: first}, "personal", HOMES) == "+0.100 (-1.000 to +1.000)"
    )  # two seeds


@pytest.mark.parametrize("task", ["polyp_hospitals", "mixed"])
def test_a_case_s_home_is_the_site_that_the_job_joins_it_to(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / FOLDERS[task]
    folder.mkdir()
    job = read_job(ROOT / "jobs" / f"{task}.json", [])
    parts = {site: job.config.data.rows_of(site) for site in job.sites}
    assert any(len(of) > 1 for of in parts.values())
    lines = [f"{part},{part}.png,m.png,test,p1" for of in parts.values() for part in of]
    (folder / "manifest.csv").write_text("\n".join(["site,image,mask,split,group", *lines]) + "\n")
    monkeypatch.setenv("PFEDSAM_DATA_ROOT", str(tmp_path))
    wanted = {f"{part}.png": site for site, of in parts.items() for part in of}
    assert {case: home.site for case, home in read_homes(task).items()} == wanted


@pytest.fixture
def manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of which no more is there than their sites' names."""
    for task, of_site in TRAINING_ROWS.items():
        (tmp_path / "tasks" / task).mkdir(parents=True)
        lines = ["site,image,mask,split,group", *(f"{site},a,b,train,p" for site in of_site)]
        (tmp_path / "tasks" / task / "manifest.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("PFEDSAM_DATA_ROOT", str(tmp_path / "tasks"))


@pytest.mark.usefixtures("manifests")
def test_runs_with_other_settings_or_rounds_are_no_part_of_a_sweep(tmp_path: Path) -> None:
    run = Run("brain_mri", Row("local", "local", ("method=local",)), 0)
    config, rounds = settings(run, None)
    entry = {"round": 0, "sites": {}}
    final = {"sites": {site: {} for site in SIZES}}
    record = {"schema": 1, "method": "local", "final": final, "rounds": [entry] * rounds}
    assert not done(run, tmp_path, None)
    write_json(run.folder(tmp_path) / "results.json", record | {"config": to_dict(config)})
    assert done(run, tmp_path, None)
    with pytest.raises(UserFault, match=f"expected 8 rounds.*came {rounds}"):
        done(run, tmp_path, 8)
    elsewhere = replace(run, row=replace(run.row, sites=("tcga_cs",)))
    with pytest.raises(UserFault, match=r"expected sites tcga_cs in .*came tcga_cs, tcga_du, tcga_ht"):
        done(elsewhere, tmp_path, None)
    before = to_dict(replace(config, train=replace(config.train, lr=0.5)))
    write_json(run.folder(tmp_path) / "results.json", record | {"config": before})
    with pytest.raises(UserFault, match=r"train\.lr 0\.5"):
        done(run, tmp_path, None)
    with pytest.raises(UserFault, match=r"train\.lr 0\.5"):
        runs(tmp_path, run.task, run.row)


@pytest.mark.usefixtures("manifests")
@pytest.mark.parametrize("archive", sorted(HERE.rglob("*.tar.xz")), ids=lambda path: path.name.split(".")[0])
def test_what_is_kept_of_the_runs_behind_the_tables_has_the_settings_of_its_rows(tmp_path: Path, archive: Path) -> None:
    unpack(tmp_path, archive.parent)
    task = archive.name.split(".")[0]
    rows = {row.name: row for suite in NAMES for row in rows_of(suite, task, TRAINING_ROWS[task])}
    found = [path.parent for path in (tmp_path / task).glob("*/*/results.json")]
    assert found
    for folder in found:
        row = rows[folder.parent.name]
        row = as_kept(row) if archive.parent.name == EARLIER else row
        assert done(Run(task, row, int(folder.name)), tmp_path, None)


@pytest.mark.parametrize(("size", "least"), [(64, 0.9), (128, 1.0)])
def test_a_perfect_learner_loses_what_scaling_takes_and_no_more(hospital: Path, size: int, least: float) -> None:
    config = tiny(model={"image_size": size})
    data = open_site(hospital / "site-1", "site-1", config)["test"]
    assert data.slices[0].shape == (128, 128)
    dice, finer = (summary(perfect(data, learner))["dice"] for learner in (sure, graded))
    assert dice == finer == 1.0 if least == 1.0 else least < dice < finer < 1.0


def test_runs_are_packed_alike_each_time_and_come_back_whole(tmp_path: Path) -> None:
    ran(tmp_path / "out/task/row/0", 0.0)
    write_json(tmp_path / "out/task/row/0/results.json", {"schema": 1})
    (tmp_path / "out/task/row/0/a/pictures.safetensors").touch()
    pack(tmp_path / "out/task", tmp_path / "kept/task.tar.xz")
    first = (tmp_path / "kept/task.tar.xz").read_bytes()
    unpack(tmp_path / "again", tmp_path / "kept")
    there = sorted(str(path.relative_to(tmp_path / "again")) for path in (tmp_path / "again").rglob("*.json"))
    assert there == [f"task/row/0/{name}" for name in ("a/cases.json", "b/cases.json", "results.json")]
    assert not list((tmp_path / "again").rglob("*.safetensors"))
    pack(tmp_path / "again/task", tmp_path / "kept/task.tar.xz")
    assert (tmp_path / "kept/task.tar.xz").read_bytes() == first
    (tmp_path / "again/task/row/0/results.json").unlink()
    (tmp_path / "again/task/row/0/a/cases.json").write_text("of a run that was stopped")
    unpack(tmp_path / "again", tmp_path / "kept")
    assert read_cases(tmp_path / "again/task/row/0/a/cases.json").scores


def test_taking_a_part_out_of_a_model_tells_its_worth_and_leaves_the_model_as_it_was(open_site) -> None:
    site = after_a_round(open_site, tiny(model={"lora_on": "linear"}, train={"lr": 1e-2, "max_steps": 8}))
    for place in adapted(site.model["personal"]):
        torch.nn.init.normal_(place.own.b.weight)
    before = {name: tensor.clone() for name, tensor in site.model.state_dict().items()}
    found = worth(site)
    assert found["without the private part"] == site.summary("val", "global")["dice"] != found["as trained"]
    assert {f"without LoRA at {layer}" for layer in ("qkv", "proj", "lin1", "lin2")} < found.keys()
    assert found["as trained"] == site.summary("val", "personal")["dice"]
    assert found["without any"] != found["as trained"]
    assert all(torch.equal(before[name], tensor) for name, tensor in site.model.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        *({"own": {"reading": reading}, "method": "pfedsam"} for reading in ("R2", "R3")),
        *({"method": method} for method in ("ditto", "dual_lora")),
    ],
    ids=str,
)
def test_weights_between_the_branches_begin_at_the_global_one_and_end_at_the_personal_one(open_site, changes) -> None:
    """Whatever share the run's job takes."""
    site = after_a_round(open_site, tiny(model={"experts": 0, "experts_rank": 2, "experts_share": 0.5}, **changes))
    taking(site.model, 1.0)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found = site.model(image)
        apart = {1.0: found["personal"], 0.0: found["global"]}
        assert not torch.equal(*apart.values())
        taking(site.model, 0.5)
        for share, logits in apart.items():
            draw_near(site.model["personal"], site.model["global"], share)
            torch.testing.assert_close(site.model(image)["personal"], logits, rtol=1e-4, atol=1e-4)


def test_a_row_that_no_suite_has_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brain_mri").mkdir()
    (tmp_path / "brain_mri/manifest.csv").write_text("image,mask,split,group,site\na,b,train,p,north\n")
    monkeypatch.setenv("PFEDSAM_DATA_ROOT", str(tmp_path))
    asked = Namespace(suite=["methods"], tasks=["brain_mri"], rows=["fedavgg"], seeds=[0], out=tmp_path)
    with pytest.raises(UserFault, match="fedavgg"):
        sweep(asked)


@pytest.mark.parametrize("task", ["brain_mri", "nuclei"])
def test_a_name_stands_for_the_same_settings_in_every_suite(task: str) -> None:
    """Suites may have a folder in common."""
    found: dict[str, tuple[str, ...]] = {}
    for suite in SUITES:
        for row in rows_of(suite, task, SIZES):
            assert found.setdefault(row.name, row.changes) == row.changes


def test_a_task_has_its_own_rates_in_every_suite() -> None:
    def rate(task: str, suite: str, name: str) -> float:
        (row,) = [row for row in rows_of(suite, task, SIZES) if row.name == name]
        return settings(Run(task, row, 0), None)[0].train.lr

    for suite, name in (("methods", "local"), ("unequal", "third_local"), ("late", "alone_tcga_cs_5")):
        assert rate("brain_mri", suite, name) == 3e-3
        assert rate("nuclei", suite, name) == 1e-2
    assert rate("nuclei", "rates", "local_3e-3_3e-4") == 3e-3


def test_a_pooled_row_joins_no_sites_of_a_task() -> None:
    (pooled,) = [row for row in SUITES["methods"] if row.name == "pooled"]
    data = settings(Run("polyp_hospitals", pooled, 0), None)[0].data
    assert (data.pool, data.joined) == (True, {})


SIZES = {"tcga_cs": 65, "tcga_du": 96, "tcga_ht": 95}
TRAINING_ROWS = {
    "brain_mri": SIZES,
    "nuclei": {"fluo_256": 84, "fluo_520": 63, "histology": 75, "smear_1024": 48},
    "polyp": {"kvasir_inset": 105, "kvasir_plain": 105},
    "nuclei_he": {
        "curie_breast": 36,
        "monusac_kidney": 35,
        "monuseg_breast": 25,
        "monuseg_kidney": 24,
        "monuseg_prostate": 25,
        "vienna_organs": 28,
    },
    "polyp_hospitals": {"bkai_hanoi": 51, "cvc_colondb": 53, "etis_paris": 25, "kvasir": 210},
    "breast_us": {"busbra_rio": 25, "busi_cairo": 58, "stu_shantou": 30, "uclm_ciudadreal": 55},
}


@pytest.mark.parametrize("suite", NAMES)
def test_rows_of_a_suite_have_names_of_their_own_and_settings_that_are_known(suite: str) -> None:
    rows = rows_of(suite, "brain_mri", SIZES)
    assert len({row.name for row in rows}) == len(rows)
    task = "fundus" if suite == "partial" else "brain_mri"
    for row in rows:
        config, rounds = settings(Run(task, row, 0), None)
        assert (
            suite in ("late", "efficiency", "scarce", "unlabelled", "few") or config.train.epochs * rounds == 15
        )  # one budget


@pytest.mark.parametrize(("task", "epochs"), [("brain_mri", 15), ("nuclei_he", 10)])
def test_a_row_of_one_round_has_the_epochs_of_all_rounds_of_its_task_s_job(task: str, epochs: int) -> None:
    found = [row for row in rows_of("rates", task, SIZES) if row.name.endswith("_once")]
    assert len(found) == 3
    for row in found:
        config, rounds = settings(Run(task, row, 0), None)
        assert (rounds, config.train.epochs, config.train.lr) == (1, epochs, float(row.name.split("_")[1]))


def test_a_task_s_sites_are_its_job_s_where_the_manifest_has_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest of polyp has the hospitals of polyp_hospitals too. Fundus has one, until `shards.py` parts it."""
    monkeypatch.setenv("PFEDSAM_DATA_ROOT", str(tmp_path))
    three = ["bkai_hanoi", "cvc_colondb", "etis_paris"]
    for folder, names in {"polyp": ["kvasir_inset", "kvasir_plain", *three], "fundus": ["drishti_gs"]}.items():
        (tmp_path / folder).mkdir()
        lines = ["site,image,mask,split,group", *(f"{name},a,b,train,p" for name in names)]
        (tmp_path / folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    assert list(sizes("polyp")) == ["kvasir_inset", "kvasir_plain"]
    assert sizes("polyp_hospitals") == {**dict.fromkeys(three, 1), "kvasir": 2}
    assert list(sizes("fundus")) == ["drishti_gs"]


def test_a_site_that_joins_late_was_not_there_before_and_waits_for_the_run_that_it_starts_from(tmp_path: Path) -> None:
    rows = {row.name: row for row in rows_of("late", "brain_mri", SIZES)}
    joins = rows["joins_tcga_cs_5"]
    assert joins.sites == ("tcga_cs",)
    assert rows[joins.begins].sites == ("tcga_du", "tcga_ht")
    run = Run("brain_mri", joins, 0)
    assert not run.ready(tmp_path)
    (tmp_path / "brain_mri/without_tcga_cs/0").mkdir(parents=True)
    (tmp_path / "brain_mri/without_tcga_cs/0/results.json").touch()
    assert not run.ready(tmp_path)  # of kept results alone nothing can begin
    (tmp_path / "brain_mri/without_tcga_cs/0/store").mkdir()
    assert run.ready(tmp_path)


def test_a_row_that_tests_a_run_anew_keeps_its_training_and_has_its_own_final_test(
    hospital: Path, tmp_path: Path
) -> None:
    found = {}
    for name, share in (("whole", 1.0), ("none", 0.0)):
        config = tiny(model={"experts": 0, "experts_rank": 4, "experts_share": share}, train={"lr_private": 0.1})
        here = {site: Places(hospital, tmp_path / name / "store") for site in ("site-1", "site-2")}
        if name == "none":
            trained_before(tmp_path / name, tmp_path / "whole", config)
        found[name] = federate(Plan(config, here, 1, tmp_path / name))
    whole, none = found.values()
    assert none["rounds"] == whole["rounds"]
    assert none["config"]["model"]["experts_share"] == 0
    for site, tested in none["final"]["sites"].items():
        assert tested["global"] == tested["personal"] == whole["final"]["sites"][site]["global"]
        assert tested["personal"] != whole["final"]["sites"][site]["personal"]


@pytest.mark.parametrize("count", [5, 20])
def test_few_cases_are_trained_on_for_as_many_images_as_all_of_them(count: int) -> None:
    for row in rows_of("late", "brain_mri", SIZES):
        for site in [site for site in SIZES if row.name in (f"joins_{site}_{count}", f"alone_{site}_{count}")]:
            config = read_job(ROOT / "jobs/brain_mri.json", row.changes).config
            assert config.data.limit == {site: count}
            assert SIZES[site] - count < config.train.epochs * count <= SIZES[site]


def test_with_8_and_24_images_no_row_sees_more_of_them_in_a_round_than_another() -> None:
    job = read_job(ROOT / "jobs/brain_mri.json")
    for row in rows_of("efficiency", "brain_mri", SIZES):
        found = read_job(ROOT / "jobs/brain_mri.json", row.changes)
        count = row.name.split("_")[-1]
        assert found.config.data.limit == ({} if count == "all" else dict.fromkeys(SIZES, int(count)))
        assert found.config.train.epochs * int(count if count != "all" else 24) == 24
        assert found.rounds == job.rounds


def test_a_site_with_few_images_leaves_the_others_theirs() -> None:
    """A row's limits replace those of a small run, so they name every site."""
    (row,) = [row for row in rows_of("unequal", "brain_mri", SIZES) if row.name == "few_fedavg"]
    limit = read_job(ROOT / "jobs/brain_mri.json", row.changes).config.data.limit
    assert limit == {**SIZES, "tcga_cs": 6}


def test_a_small_table_of_one_seed_has_no_p_and_says_what_its_rows_settings_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(field, "sizes", lambda _task: SIZES)
    row, other = Row("a", "a"), Row("b", "b")
    cells = {"own site": 0.5, "worst": 0.4, "global": 0.5, "validation": 0.5, "MB up": 1.0, "CPU s": 2.0}
    differ = {other: ("-0.1", "0.050")}
    one, two = (field.as_table({row: [cells] * seeds, other: [cells] * seeds}, differ) for seeds in (1, 2))
    assert [*one.columns, "p"] == [*two.columns]
    assert (one.lines()[-1].split(" | ")[-1], two.lines()[-1].split(" | ")[-1]) == ("-0.1 |", "0.050 |")
    ways = {row.label: settings(Run("nuclei", row, 0), None)[0] for row in rows_of("crossmodal", "nuclei", SIZES)}
    told = field.notes("crossmodal", "nuclei", [0], ways)
    assert told[-1] == f"{field.RATES} Alike in all rows: decoder whole, messages fp32, server's rule mean."
    assert field.ONE_SEED in told
    assert field.PAIRED in told
    table = field.with_settings(Table({"row": "", "Dice": ".1f"}, [["pFedSAM", 0.5], ["CPSS", 0.5]]), ways)
    assert table.columns == {"row": "", "Dice": ".1f", "rates": ""}
    assert [row[-1] for row in table.rows] == ["0.01 / 0.0003 / 0.003", "0.01 / 0.0003 / 0.01"]
    assert field.PAIRED + field.CHANCE in field.notes("crossmodal", "nuclei", [0, 1], ways)


def test_of_all_methods_pfedsam_has_the_form_of_the_jobs() -> None:
    ours, *_ = field.of_methods()
    config = settings(Run("nuclei_he", ours, 0), None)[0]
    job = read_job(ROOT / "jobs/nuclei_he.json", []).config
    assert (config.model, config.wire, config.train) == (job.model, job.wire, job.train)


@pytest.mark.usefixtures("manifests")
def test_a_small_run_is_not_taken_for_one_with_other_settings_or_rounds(tmp_path: Path) -> None:
    run = Run("brain_mri", Row("local", "local", ("method=local",)), 0)
    config, rounds = field.smaller(run, 6)[1:]
    record = {"schema": 1, "method": "local", "config": to_dict(config), "final": {"sites": {}}}
    record["rounds"] = [{"round": number, "sites": {}} for number in range(rounds)]
    write_json(run.folder(tmp_path) / "results.json", record)
    write_json(run.folder(tmp_path) / "cells.json", {"own site": 0.5})
    assert field.line(run, tmp_path, 6) == {"own site": 0.5}
    with pytest.raises(UserFault, match=r"expected 12 rounds in .*came 6.*--out"):
        field.line(run, tmp_path, 12)
    other = replace(run, row=replace(run.row, changes=("method=local", "train.lr=0.5")))
    with pytest.raises(UserFault, match=r"train\.lr 0\.01.*--out"):
        field.line(other, tmp_path, 6)


def test_a_small_pooled_run_trains_on_the_images_that_each_site_would_draw(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    rows = []
    for site in ("site-1", "site-2"):
        shutil.copytree(hospital / site, data / site, ignore=shutil.ignore_patterns("datalist.csv"))
        for row in raw_rows(hospital / site / "datalist.csv"):
            rows.append({**row, "site": site, "image": f"{site}/{row['image']}", "mask": f"{site}/{row['mask']}"})
    with (data / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    monkeypatch.setattr(field, "IMAGES", 3)
    monkeypatch.setattr(field, "joined", lambda _task: {})
    folder = field.few_of_each(data, tmp_path / "few", "brain_mri", seed=4)
    pooled = open_site(folder, "pooled", tiny(data={"source": "site", "pool": True}, seed=4))
    config = tiny(data={"source": "site", "limit": {"site-1": 3, "site-2": 3}}, seed=4)
    alone = [open_site(data, site, config)["train"] for site in ("site-1", "site-2")]
    wanted = [one.image.relative_to(data) for of in alone for one in of.slices]
    assert [one.image.relative_to(folder) for one in pooled["train"].slices] == wanted
    assert len(pooled["train"].slices) == 6
    assert len(pooled["test"].slices) == 6


def test_on_a_gpu_chosen_experts_are_timed_at_the_precision_of_all_experts() -> None:
    h, weights = torch.randn(2, 3, 4, 4).bfloat16(), torch.tensor([[0.4, 0.6], [1.0, 0.0]])
    experts = torch.nn.ModuleList(moe.Expert(3, ratio, "bilinear") for ratio in (1, 2))
    seen: list[torch.dtype] = []
    experts[0].conv.register_forward_hook(lambda _module, _given, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        with gpu.chosen():
            found = moe.mix(h, experts, weights, (weights > 0).float())
        moe.mix(h, experts, weights, (weights > 0).float())
    assert seen == [torch.float32, torch.bfloat16]
    torch.testing.assert_close(found, moe.mix_all(h.float(), experts, weights).bfloat16())


def test_a_small_row_is_compared_with_the_row_that_it_names_else_the_first() -> None:
    first, named = Row("a", "a", beside=""), Row("b", "b", beside="c")
    silent, alone = Row("c", "c"), Row("d", "d", beside="")
    rows = [first, named, silent, alone]
    assert [beside_of(row, rows) for row in rows] == [None, silent, first, None]
    assert beside_of(named, [first, named]) == first


@pytest.mark.parametrize("suite", ["few", "unlabelled"])
def test_with_few_labels_every_row_steps_as_often_and_sees_one_label_a_step(suite: str) -> None:
    """Else methods that leave images without labels out would be trained less."""
    rows = [row for row in rows_of(suite, "brain_mri", SIZES) if row.name != "few_furl"]
    trains = {row.name: read_job(ROOT / "jobs/brain_mri.json", row.changes).config.train for row in rows}
    for site, size in SIZES.items():
        labelled = min(5, size) if suite == "few" else max(1, size // 5)
        seen = {name: size if "whole" in name or train.batch_size == 2 else labelled for name, train in trains.items()}
        assert len({steps_of(seen[name], train) for name, train in trains.items()}) == 1, site
    assert {train.batch_size for name, train in trains.items() if "iscos" in name or "semidg" in name} == {2}
    assert {train.batch_size for name, train in trains.items() if "fedavg" in name or "local" in name} == {1}


def test_a_table_is_about_the_sites_that_took_part(tmp_path: Path) -> None:
    whole = ran(tmp_path, 0.0)
    part = replace(whole, scores={role: {("b1", 1): cases["b1", 1]} for role, cases in whole.scores.items()})
    line = table({Row("part", "part"): {0: part}}, HOMES)[2]
    assert line.startswith("| part | one | 1 |  | 0.500 | 0.500 | 0.500 |")


def test_classes_are_paired_and_one_that_a_site_does_not_annotate_is_left_out(tmp_path: Path) -> None:
    whole, part = ran(tmp_path / "whole", 0.0), ran(tmp_path / "part", 0.1)
    second = {(case, 2): dict(score, dice=0.0) for (case, _), score in whole.scores["personal"].items()}
    both = replace(whole, scores={role: scores | second for role, scores in whole.scores.items()})
    assert difference({0: part}, {0: both}, "personal", HOMES) == "+0.100 (+0.100 to +0.100)"
    assert table({Row("both", "both"): {0: both}}, HOMES)[2].startswith("| both | one | 1 | 0.250 | 0.250 |")
    seldom = {(case, 2): dict(score, dice=0.0) for (case, _), score in whole.scores["personal"].items() if case == "a1"}
    rare = replace(whole, scores={role: scores | seldom for role, scores in whole.scores.items()})
    assert table({Row("rare", "rare"): {0: rare}}, HOMES)[2].startswith("| rare | one | 1 | 0.250 | 0.500 |")


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
