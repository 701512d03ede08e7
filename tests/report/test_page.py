"""The page of a run: what it must show, and what must not break it."""

import copy
import itertools
import json
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedsam.cli import main
from pfedsam.errors import UserFault
from pfedsam.exchange.ledger import Ledger
from pfedsam.exchange.schema import REPORT
from pfedsam.layout import PICTURES
from pfedsam.record.pictures import Gallery, Picture, packed
from pfedsam.record.results import ROLES, finish
from pfedsam.record.site_files import case_names
from pfedsam.record.table import final_table
from pfedsam.report.gather import gather, rounds_of
from pfedsam.report.page import write_report
from pfedsam.report.uncertainty import estimate, interval

EMPTY = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "use"}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000000301010018dd8db0"
    "0000000049454e44ae426082"
)


def row(dice: float, scored: int = 6) -> dict[str, Any]:
    return {
        "dice": dice,
        "iou": dice - 0.1,
        "detected": 0.875,
        "surface_dice": 0.5625,
        "hd95": 12.5,
        "assd": 3.25,
        "unit": "mm",
        "scored": scored,
        "empty": 1,
        "false_alarms": 1,
    }


def report_of(number: int, lift: float) -> dict[str, Any]:
    return {
        "losses": {"global": 1.375 - 0.1 * number, "personal": 1.125},
        "val": {"global": row(0.412 + lift), "personal": row(0.523 + lift)},
        "before": row(0.111),
        "experts": {"share": 0.4, "entropy": 0.9, "varies": 0.05, "experts": [0.6, 0.4], "dice_without": 0.5},
        "seconds": 7.4,
        "scoring_seconds": 1.3,
        "samples": 48,
        "bytes_sent": 2_340_000,
        "bytes_received": 4_560_000,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    """A whole results.json of two sites and two rounds."""
    sites = {
        "north": {"before": row(0.121), "global": row(0.634), "personal": row(0.745), "patients": 41},
        "south": {"before": row(0.131), "global": row(0.656), "personal": row(0.617), "patients": 43},
    }
    mean = {role: {**row(0.5), "dice": sum(s[role]["dice"] for s in sites.values()) / 2} for role in ROLES}
    entries = [
        {"round": n, "seconds": 9.0, "sites": {name: report_of(n, 0.01 * n) for name in sites}, "rejected": {}}
        for n in range(2)
    ]
    entries[1]["rejected"] = {"south": "not finite: decoder.weight"}
    return {
        "schema": 1,
        "method": "pfedsam",
        "synthetic": False,
        "config": {"study": "liver", "seed": 7},
        "config_hash": "c0ffee",
        "base_hash": "ba5e",
        "versions": {"pfedsam": "0.9.9", "torch": "2.14.1"},
        "rounds": entries,
        "final": {"sites": sites, "mean": mean, "worst": mean},
        "seconds": 125.0,
    }


def written(folder: Path, results: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def with_cases(folder: Path, site: str, gap: float, run: str = "") -> None:
    """Six patients of two cases each; the personal branch lies `gap` above the global one."""
    cases = [f"SMITH_{i}.png" for i in range(12)]
    scores = [
        {"cls": 1, "dice": 0.4 + 0.03 * i, "iou": 0.4, "hd95": 3.0, "assd": 1.0, "found": True} for i in range(12)
    ]
    lifted = [{**score, "dice": score["dice"] + gap * (0.8 + 0.1 * (i % 3))} for i, score in enumerate(scores)]
    (folder / site).mkdir(parents=True)
    groups = [i // 2 for i in range(12)]
    found = {"run": run, "cases": cases, "groups": groups, "scores": {"global": scores, "personal": lifted}}
    (folder / site / "cases.json").write_text(json.dumps(found))
    (folder / site / "overlays.png").write_bytes(PIXEL)


def page_of(run: Path, **options: bool) -> str:
    out = run.parent / "page.html"
    write_report(gather(run), out, **options)
    return out.read_text()


class Checked(HTMLParser):
    """Follows every element to its end, and gathers ids and references."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in EMPTY:
            self.open.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.ids += [str(named["id"])] if "id" in named else []
        self.references += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")]


def test_every_element_is_closed_and_every_id_is_its_own(tmp_path: Path, results: dict[str, Any]) -> None:
    found = Checked(page_of(written(tmp_path / "run", results)))
    assert not found.open
    assert len(found.ids) == len(set(found.ids))
    assert {ref.removeprefix("#") for ref in found.references if ref.startswith("#")} <= set(found.ids)


def test_nothing_is_fetched_from_elsewhere(tmp_path: Path, results: dict[str, Any]) -> None:
    run = written(tmp_path / "run", results)
    with_cases(run, "north", 0.1)
    with_cases(run, "south", 0.1)
    (run / "south/overlays.png").unlink()
    mask = torch.eye(16, dtype=torch.bool)[None]
    picture = Picture("worst", torch.zeros(3, 16, 16, dtype=torch.uint8), mask, {"global": mask})
    (run / "south" / PICTURES).write_bytes(packed(Gallery("south", ["disc"], [picture])))
    text = page_of(run)
    assert text.count("data:image/png;base64,") == 2
    assert all(ref.startswith(("#", "data:image/png;base64,")) for ref in Checked(text).references)
    assert "<script" not in text
    assert not re.search(r"@import|url\((?!#)", text)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) <= namespaces


def test_every_site_and_number_of_the_results_is_on_the_page(tmp_path: Path, results: dict[str, Any]) -> None:
    text = page_of(written(tmp_path / "run", results))
    for site, roles in results["final"]["sites"].items():
        assert f'<th scope="row">{site}</th>' in text
        for metrics in (roles[role] for role in ROLES):
            assert all(f"<td>{metrics[m]:.3f}</td>" in text for m in ("dice", "iou", "detected", "surface_dice"))
            assert all(f"<td>{metrics[m]:.1f}</td>" in text for m in ("hd95", "assd"))
    for entry in results["rounds"]:
        for report in entry["sites"].values():
            assert all(f"<td>{report['val'][role]['dice']:.3f}</td>" in text for role in ("global", "personal"))
            assert all(f"{name} {value:.3f}" in text for name, value in report["losses"].items())
    for told in ("2.34 MB", "4.56 MB", "2 min 5 s", "0.9.9", "c0ffee", "ba5e", "not finite: decoder.weight", "liver"):
        assert told in text


def test_each_table_says_how_many_patients_were_tested(tmp_path: Path, results: dict[str, Any]) -> None:
    text = page_of(written(tmp_path / "run", results))
    captions = re.findall(r"<caption>.*?</caption>", text, re.DOTALL)
    tested = [one for one in captions if "is best" in one]
    assert len(tested) == 6
    assert all("Test patients: north 41, south 43." in one for one in tested)
    assert "Test patients: north 41, south 43." in final_table(results)


def test_of_several_classes_each_is_told_by_name(tmp_path: Path, results: dict[str, Any]) -> None:
    """A mean over classes hides the one that the model misses."""
    results["config"] |= {"data": {"classes": ["Liver", "Tumour"]}, "model": {"num_classes": 2}}
    run = written(tmp_path / "run", results)
    (run / "north").mkdir()
    liver, tumour = ({"iou": 0.5, "hd95": 3.0, "assd": 1.0, "found": True, "cls": cls} for cls in (1, 2))
    personal = [liver | {"dice": 0.91}, tumour | {"dice": 0.125}, liver | {"dice": 0.93}, tumour | {"dice": None}]
    glob = [score | {"dice": None if score["dice"] is None else 0.25} for score in personal]
    found = {"cases": ["a.png", "b.png"], "groups": [0, 1], "scores": {"global": glob, "personal": personal}}
    (run / "north/cases.json").write_text(json.dumps(found))
    text = re.sub(r"\s*<[^>]+>\s*", "|", page_of(run))
    assert "Classes: 1 Liver, 2 Tumour." in text
    assert "north||Liver||0.250||0.920||2|" in text
    assert "north||Tumour||0.250||0.125||1|" in text
    assert "Dice by class" not in page_of(run, pictures=False)


def test_sites_in_millimetres_and_in_pixels_have_no_mean_distance(tmp_path: Path, results: dict[str, Any]) -> None:
    for role in ROLES:
        results["final"]["sites"]["south"][role]["unit"] = "px"
    results = finish(results, 1.0)
    for part in ("mean", "worst"):
        row = results["final"][part]["personal"]
        assert (row["unit"], row["hd95"], row["assd"], row["surface_dice"]) == ("mixed", None, None, None)
        assert None not in (row["dice"], row["iou"], row["detected"])
    assert {"mm", "px"} < {line.split()[-1] for line in final_table(results).splitlines() if "personal" in line}
    text = page_of(written(tmp_path / "run", results))
    assert '<td class="text">px</td>' in text
    assert '<td class="text">mm</td>' in text


def test_a_site_that_found_nothing_has_no_distance_and_drags_no_mean(results: dict[str, Any]) -> None:
    for role in ROLES:
        results["final"]["sites"]["south"][role] |= {"hd95": None, "assd": None, "detected": 0.0}
    mean = finish(results, 1.0)["final"]["mean"]["personal"]
    assert (mean["hd95"], mean["assd"], mean["detected"]) == (12.5, 3.25, 0.4375)


def test_a_run_from_before_distances_were_of_found_cases_is_told_as_such(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    sites = results["final"]["sites"].values()
    for row in [roles[role] for roles in sites for role in ROLES]:
        del row["detected"], row["surface_dice"], row["unit"]
    told = write_report(gather(written(tmp_path / "run", results)), tmp_path / "page.html")
    assert any("image's diagonal" in line for line in told["doubts"])
    assert "surface Dice (" not in (tmp_path / "page.html").read_text()


def test_a_name_cannot_bring_markup_into_the_page(tmp_path: Path, results: dict[str, Any]) -> None:
    bad = "<script>alert(1)</script>"
    results["method"] = results["config"]["study"] = bad
    results["final"]["sites"][bad] = results["final"]["sites"].pop("north")
    results["rounds"][0]["sites"][bad] = results["rounds"][0]["sites"].pop("north")
    results["rounds"][1]["rejected"] = {bad: "<img src=x onerror=alert(1)>"}
    text = page_of(written(tmp_path / "run", results))
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text


def test_intervals_come_from_case_scores_and_say_where_personalisation_helped(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    run = written(tmp_path / "run", results)
    with_cases(run, "north", 0.1)
    with_cases(run, "south", -0.1)
    said = write_report(gather(run), tmp_path / "page.html")
    assert said["personal_against_global"] == {"north": "helped", "south": "hurt"}
    text = (tmp_path / "page.html").read_text()
    assert text.count("6 patients") == 2
    assert "This page stays where it was made" in text
    assert "SMITH" not in text


def test_branches_that_score_the_same_are_one_model_only_where_nothing_is_private(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    for roles in results["final"]["sites"].values():
        roles["personal"] = dict(roles["global"])
    same = written(tmp_path / "one", results)
    told = write_report(gather(same), tmp_path / "page.html")
    assert set(told["personal_against_global"].values()) == {"one model: both branches are the same"}
    results["rounds"][1]["sites"]["north"]["private"] = {"run": "r", "round": 0}
    told = write_report(gather(written(tmp_path / "two", results)), tmp_path / "page.html")
    assert told["personal_against_global"]["north"] == "both branches score the same"


def test_few_cases_are_told_though_many_classes_make_many_scores(tmp_path: Path, results: dict[str, Any]) -> None:
    results["config"].setdefault("model", {})["num_classes"] = 7
    for roles in results["final"]["sites"].values():
        for role in ROLES:
            roles[role] |= {"scored": 21}
    told = write_report(gather(written(tmp_path / "run", results)), tmp_path / "page.html")
    assert any("Fewer than 20 scored test cases at north (3), south (3)" in line for line in told["doubts"])


def test_where_patients_are_not_known_no_verdict_is_given(tmp_path: Path, results: dict[str, Any]) -> None:
    run = written(tmp_path / "run", results)
    with_cases(run, "north", 0.1)
    path = run / "north/cases.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "groups"}))
    said = write_report(gather(run), tmp_path / "page.html")
    assert said["personal_against_global"]["north"] == "higher; the uncertainty is unknown here"
    assert any("draw images" in line for line in said["doubts"])


def test_without_case_scores_the_page_says_so_and_invents_no_interval(tmp_path: Path, results: dict[str, Any]) -> None:
    text = page_of(written(tmp_path / "run", results))
    assert "No interval for north, south" in text
    assert 'class="span">0.' not in text
    assert "This page stays" not in text


def test_a_page_that_is_to_leave_a_site_has_no_pictures_and_no_intervals(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    run = written(tmp_path / "run", results)
    with_cases(run, "north", 0.1)
    text = page_of(run, pictures=False)
    assert "data:image" not in text
    assert "patients" not in text.replace("drawing the site's patients", "").replace("Test patients", "").replace(
        "if patients are", ""
    ).replace("nothing about patients", "")
    assert "This page stays" not in text


@pytest.mark.parametrize(("schedule", "told"), [("cosine", True), ("constant", False)])
def test_a_run_that_went_on_for_more_rounds_than_planned_is_doubted_where_rates_follow_a_schedule(
    tmp_path: Path, results: dict[str, Any], schedule: str, told: bool
) -> None:
    results["config"] = {"train": {"schedule": schedule}}
    results["planned"] = {"rounds": 20, "earlier": [15]}
    assert ("Planned for 15, then 20 rounds" in page_of(written(tmp_path / "run", results))) == told


def test_what_is_missing_does_not_break_the_page(tmp_path: Path, results: dict[str, Any]) -> None:
    bare = copy.deepcopy(results)
    for key in ("seconds", "versions", "config_hash", "base_hash"):
        del bare[key]
    bare["final"] = {"sites": {}, "mean": {}, "worst": {}}
    assert "has not been done" in page_of(written(tmp_path / "cut", bare))
    bare["rounds"] = []
    assert "No round is recorded" in page_of(written(tmp_path / "none", bare))
    results["final"]["sites"]["north"]["personal"]["dice"] = None
    results["final"]["sites"]["north"]["before"] = None
    assert "not scored" in page_of(written(tmp_path / "unscored", results))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "rounds": [3], "final": {"sites": {}}}']
)
def test_a_damaged_record_is_told_in_a_line(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(text)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_a_page_replaces_a_page_and_no_other_file(tmp_path: Path, results: dict[str, Any]) -> None:
    run = written(tmp_path / "run", results)
    record = run / "results.json"
    before = record.read_bytes()
    assert main(["report", str(run), "--out", str(record)]) == 2
    assert record.read_bytes() == before
    for _ in range(2):
        assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0


def test_a_folder_of_several_runs_is_refused(tmp_path: Path, results: dict[str, Any]) -> None:
    written(tmp_path / "runs/a", results)
    written(tmp_path / "runs/b", results)
    with pytest.raises(UserFault, match="one run"):
        gather(tmp_path / "runs")


def test_a_hospitals_own_folder_tells_its_own_rounds_from_its_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "kit/pfedsam_store/liver/north/ledger.jsonl")
    for number in (0, 1, 1):
        facts = {REPORT: report_of(number, 0.0)}
        ledger.note("in", {}, task="train", round_=number, facts={})
        ledger.note("out", {}, task="train", round_=number, facts=facts)
    metrics = {"before": row(0.1), "global": row(0.6), "personal": row(0.7)}
    ledger.note("out", {}, task="validate", round_=-1, facts={"metrics": metrics})
    text = page_of(tmp_path / "kit")
    assert "site north&#39;s own view" in text
    assert "2 rounds" in text
    assert "Dice on the test split: 0.100 before training, 0.600 global, 0.700 personal." in text


def test_a_ledger_that_was_rotated_in_mid_run_counts_whole(tmp_path: Path) -> None:
    clock = itertools.count(1.0).__next__
    ledger = Ledger(tmp_path / "kit/pfedsam_store/liver/north/ledger.jsonl", clock)
    for number in range(12):
        facts = {REPORT: report_of(number, 0.0)}
        ledger.note("in", {}, task="train", round_=number, facts={}, run="r")
        ledger.note("out", {}, task="train", round_=number, facts=facts, run="r")
        if number in (3, 7):  # as logrotate does
            for age in (1, 0):
                ending = f".{age}" if age else ""
                path = ledger.path.with_name(f"ledger.jsonl{ending}")
                if path.exists():
                    path.rename(ledger.path.with_name(f"ledger.jsonl.{age + 1}"))
    found = gather(tmp_path / "kit")
    assert [entry["round"] for entry in found.results["rounds"]] == list(range(12))
    assert (found.sent["north"]["out"], found.sent["north"]["into"]) == (12, 12)
    ledger.path.unlink()  # nothing has been written since the rotation
    assert len(gather(tmp_path / "kit").results["rounds"]) == 8


@pytest.mark.parametrize("key", ["losses", "samples"])
def test_a_record_that_lacks_what_every_update_says_is_told(tmp_path: Path, results: dict[str, Any], key: str) -> None:
    del results["rounds"][0]["sites"]["north"][key]
    with pytest.raises(UserFault, match="take the one that the server wrote"):
        gather(written(tmp_path / "run", results))


def test_a_kit_whose_store_lies_elsewhere_is_reported_whole(tmp_path: Path) -> None:
    kit, clock = tmp_path / "north", itertools.count().__next__
    worked(Ledger(tmp_path / "disk/liver/north/ledger.jsonl", clock), "liver-1", 0.7, tested=True)
    with_cases(kit / "job", "north", 0.1, run="liver-1")
    (kit / "local").mkdir()
    scope = {"name": "pfedsam", "properties": {"store": str(tmp_path / "disk")}}
    (kit / "local/privacy.json").write_text(json.dumps({"scopes": [scope]}))
    assert "0.700 personal" in page_of(kit)
    assert gather(kit).cases.keys() == {"north"}


def test_case_scores_without_the_ledger_are_no_run_and_said_to_be_none(tmp_path: Path) -> None:
    with_cases(tmp_path / "job", "north", 0.1)
    with pytest.raises(UserFault, match=r"the ledger\.jsonl of site north.*name its kit"):
        gather(tmp_path / "job")


def worked(ledger: Ledger, run: str, dice: float, *, tested: bool) -> None:
    """A run's one round in a site's ledger, and its final test."""
    report = report_of(0, 0.0) | {"val": {"global": row(dice), "personal": row(dice)}}
    ledger.note("out", {}, task="train", round_=0, facts={REPORT: report}, run=run)
    if tested:
        metrics = {"before": row(0.1), "global": row(dice), "personal": row(dice)}
        ledger.note("out", {}, task="validate", round_=-1, facts={"metrics": metrics}, run=run)


def test_a_hospitals_own_page_tells_one_run_though_it_has_had_several(tmp_path: Path) -> None:
    """Of two studies and of two runs: the last, whose final test has not been done."""
    clock = itertools.count().__next__
    kit = tmp_path / "kit"
    old, new = (Ledger(kit / f"pfedsam_store/{study}/north/ledger.jsonl", clock) for study in ("zebra", "brain"))
    worked(old, "zebra-1", 0.5, tested=True)
    worked(new, "brain-1", 0.9, tested=True)
    with_cases(kit / "first", "north", 0.1, run="brain-1")
    assert "0.900 personal" in page_of(kit)
    assert gather(kit).cases.keys() == {"north"}
    worked(new, "brain-2", 0.2, tested=False)
    text = page_of(kit)
    assert "0.900" not in text
    assert "has not been done" in text
    assert gather(kit).cases == {}
    (entry,) = gather(kit).results["rounds"]
    assert entry["sites"]["north"]["val"]["personal"]["dice"] == 0.2


def test_an_image_with_two_masks_is_two_cases_by_name() -> None:
    pairs = [("a.png", "one/a.png"), ("b.png", "one/b.png"), ("a.png", "two/a.png")]
    assert case_names(pairs) == ["a.png (one/a.png)", "b.png", "a.png (two/a.png)"]


def test_of_a_ledger_with_an_earlier_run_the_last_one_is_told() -> None:
    lines = [{"direction": "out", "round": n, "facts": {REPORT: i}} for i, n in enumerate((0, 1, 2, 0, 1))]
    assert [(line["round"], line["facts"][REPORT]) for line in rounds_of(lines)] == [(0, 3), (1, 4)]


def test_the_interval_draws_patients_not_slices() -> None:
    """Two patients, one of many slices: drawn slice by slice the interval would be a fraction of this."""
    one = [{"a": [{"p1": [1.0] * 50, "p2": [0.0] * 50}]}]
    assert estimate(one).error == pytest.approx(0.5, abs=0.01)
    assert interval(one, within=(0, 1)) == (0.0, 1.0)


def test_the_variance_is_that_of_the_mean_of_few_patients() -> None:
    """Of n values s^2 / n, where drawing n of them has (n - 1) / n of it."""
    values = [0.1, 0.5, 0.6, 0.7, 0.9]
    found = estimate([{"a": [{str(i): [value] for i, value in enumerate(values)}]}])
    assert found.error == pytest.approx(statistics.stdev(values) / len(values) ** 0.5, rel=0.05)
    assert found.freedom == pytest.approx(len(values) - 1)


@pytest.mark.long
def test_a_browser_shows_the_page(tmp_path: Path, results: dict[str, Any]) -> None:
    browser = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("needs chromium or google-chrome")
    run = written(tmp_path / "run", results)
    with_cases(run, "north", 0.1)
    page_of(run)
    shot = tmp_path / "page.png"
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1000,3000",
        f"--screenshot={shot}",
    ]
    subprocess.run([*command, (tmp_path / "page.html").as_uri()], check=True, capture_output=True, timeout=300)
    from PIL import Image

    with Image.open(shot) as picture:
        colours = picture.convert("RGB").getcolors(2**24)
    assert colours is not None
    assert len(colours) > 100


def test_the_page_says_whether_the_experts_do_anything(tmp_path: Path, results: dict[str, Any]) -> None:
    assert "Do the experts do anything here?" not in page_of(written(tmp_path / "old", results))
    for site in results["final"]["sites"].values():
        site["experts"] = report_of(0, 0)["experts"]
    text = page_of(written(tmp_path / "run", results))
    assert "Do the experts do anything here?" in text
    assert "they help" in text
