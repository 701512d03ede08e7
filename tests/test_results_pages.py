"""The pages of benchmarks/results say what is kept, and nothing that was pasted by hand."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import machine
import pages
import pytest
from boards import (
    by_image,
    by_test,
    by_validation,
    carried,
    codes_of,
    dice_interval,
    in_points,
    leaderboard,
    ran_on,
    sites_of,
    starred,
    together,
    with_median,
    wrapped,
)
from evidence import EARLIER, HERE, pack, unpack
from figures import dice_by_megabytes
from kept import RESULTS, Fault, Kept, commits, device_of, earlier, kept, with_earlier
from machine import Table, publish
from pages import BLOCKS, alike, filled, gated, systems_page, today

from conftest import ROOT
from pfedsam.errors import UserFault

PAGES = sorted(RESULTS.rglob("*.md"))


def test_every_page_is_what_is_kept_says_byte_for_byte() -> None:
    found = pages.pages()
    assert found.keys() >= {ROOT / "README.md", *PAGES}
    assert [str(path.relative_to(ROOT)) for path, text in found.items() if path.read_text() != text] == []


def test_a_page_s_tables_are_made_anew_between_its_comments_and_nowhere_else() -> None:
    ours = "<!-- results: begin -->\n| by hand |\n<!-- results: end -->"
    other = "<!-- other: begin -->\nc\n<!-- other: end -->"
    page = f"a\n{ours}\nb\n{other}\n"
    lines = filled(page).splitlines()
    assert lines[2:-5] == BLOCKS["results"]()
    assert lines[-5:] == page.splitlines()[-5:]
    assert filled(filled(page)) == filled(page)


def test_every_question_s_table_stands_on_a_page() -> None:
    there = {name for page in PAGES for name in re.findall(r"<!-- (\w+): begin -->", page.read_text())}
    assert there == BLOCKS.keys() - {"results"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_link_on_a_results_page_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_all_of_the_history_is_folded_and_dated() -> None:
    history = (RESULTS / "history.md").read_text()
    outside = re.sub(r"<details>.*?</details>", "", history, flags=re.DOTALL)
    assert not re.search(r"^(\||#{2,})", outside, re.MULTILINE)
    told = re.findall(r"<summary>(.*?)</summary>", history)
    assert told
    assert all(re.match(r"2026-\d\d-\d\d\. ", one) for one in told)


def test_the_readme_s_table_fits_its_page_and_has_the_test_patients_in_its_head() -> None:
    lines = BLOCKS["results"]()
    assert max(map(len, lines)) <= 120
    tasks = alike()
    assert [f"{task.task} ({len(set(task.homes.values()))})" for task in tasks] == lines[0].split(" | ")[1:-2] != []


@pytest.mark.parametrize("task", today(), ids=lambda task: task.name)
def test_what_the_private_part_carries_is_the_difference_of_both_branches_at_each_site(task: Kept) -> None:
    _, _, *lines, whole = [line.strip("| ").split(" | ") for line in carried(task)]
    assert [site.split()[0] for site, *_ in lines] == sorted({home.site for home in task.homes.values()})
    for _, with_it, without, gained in [*lines, whole]:
        personal, shared = (float(dice.split()[0]) for dice in (with_it, without))
        assert float(gained.split()[0]) == pytest.approx(100 * (personal - shared), abs=0.16)  # three decimals each
    of_sites = [float(gained.split()[0]) for *_, gained in lines]
    assert float(whole[-1].split()[0]) == pytest.approx(sum(of_sites) / len(of_sites), abs=0.11)


@pytest.mark.parametrize("task", today(), ids=lambda task: task.name)
def test_no_choice_between_the_branches_tests_higher_than_the_best_one_for_each_image(task: Kept) -> None:
    run = next(iter(task.runs["own_lora"].values()))
    chosen = [{0: by(task, run)} for by in (by_validation, by_test, by_image)]
    of_validation, of_test, of_image = (sites_of(task, found, "personal")[0] for found in chosen)
    ours, others = (sites_of(task, {0: run}, role)[0] for role in ("personal", "global"))
    for site in ours:
        by_rule = others if run.last_global[site] > run.last[site] else ours
        assert of_validation[site]["dice"] == by_rule[site]["dice"]
        assert of_test[site]["dice"] == max(ours[site]["dice"], others[site]["dice"]) <= of_image[site]["dice"]


def test_the_page_on_experts_compares_several_adapters_and_a_gate_with_a_plain_one_on_each_task_that_ran() -> None:
    _, _, *rows = [line.strip("| ").split(" | ") for line in gated()]
    assert [task for task, *_ in rows] == ["brain_mri", "mixed", "nuclei_he"]
    for _, plain, several, difference, _ in rows:
        less = float(several.split()[0]) - float(plain.split()[0])
        assert float(difference.split()[0]) == pytest.approx(less, abs=0.0016)


def with_fedper() -> list[Kept]:
    return [task for task in alike() if "fedper_own" in task.runs]


def test_over_several_tasks_a_difference_is_the_mean_over_all_their_sites() -> None:
    tasks = with_fedper()[:2]
    sites = [len({home.site for home in task.homes.values()}) for task in tasks]
    assert len(set(sites)) > 1

    def less(*of: Kept) -> float:
        line = next(line for line in together(of, in_points) if line.startswith("| dual LoRA, decoder"))
        return float(line.split(" | ")[-2].split()[0])

    wanted = sum(count * less(task) for count, task in zip(sites, tasks, strict=True)) / sum(sites)
    assert less(*tasks) == pytest.approx(wanted, abs=0.11)
    assert abs(less(*tasks) - sum(map(less, tasks)) / len(tasks)) > 0.11  # not the mean over tasks


def test_beside_the_mean_over_sites_stands_their_median_which_one_site_cannot_move() -> None:
    sites = {"a": [{"p1": [-0.01]}], "b": [{"p2": [-0.02]}], "c": [{"p3": [-0.6]}]}
    assert with_median([sites, sites], 0.5) == f"{in_points([sites, sites], 0.5)}; median site -2.0"
    assert in_points([sites, sites], 0.5).startswith("-21.0 ")


def test_a_row_that_only_half_of_the_tasks_have_is_not_shown_over_all() -> None:
    one, other = with_fedper()[:2]
    lacking = replace(one, runs={name: runs for name, runs in one.runs.items() if name != "fedper_own"})
    assert [line for line in together([one, other], in_points) if "| FedPer |" in line]
    assert not [line for line in together([other, lacking], in_points) if "| FedPer |" in line]


def test_a_row_that_one_task_lacks_says_so_and_is_compared_over_the_others() -> None:
    one, other = with_fedper()[:2]
    lacking = replace(one, runs={name: runs for name, runs in one.runs.items() if name != "fedper_own"})
    found, wanted = (
        [line for line in together(of, in_points) if "| FedPer |" in line]
        for of in ((one, other, lacking), (one, other))
    )
    assert found[0].split(" | ")[3] == "not run"
    assert found[0].split(" | ")[-2].split(", p")[0] == wanted[0].split(" | ")[-2].split(", p")[0]
    assert not [line for line in together([other, lacking, lacking], in_points) if "| FedPer |" in line]


def test_a_difference_has_a_star_if_its_p_value_is_below_five_hundredths() -> None:
    sites = {"a": [{"p1": [0.1]}], "b": [{"p2": [0.2]}]}
    assert starred([sites], 0.049) == "+15.0 (+15.0 to +15.0) *"
    assert starred([sites], 0.05) == "+15.0 (+15.0 to +15.0)"


def test_a_task_s_page_has_its_earlier_runs_of_methods_without_experts_that_were_not_run_anew() -> None:
    before = earlier("brain_mri")
    anew = {"own_lora": before.runs["pfedsam"], "fedavg": {0: before.runs["local"][0]}}
    found = with_earlier(replace(before, main="leading", runs=anew), before)
    assert {"ditto", "local", "fedmsa"} <= set(found.joined)
    assert not {"fedavg", "pfedsam", "r1", "post"} & set(found.joined)
    names = [row.name for row in found.suite("leading")]
    assert len(names) == len(set(names))
    assert names[0] == "own_lora"
    assert found.runs["fedavg"] is anew["fedavg"]


@pytest.fixture
def packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Kept]]]:
    """What is kept after rows of earlier runs were packed as new runs of a task, as `evidence.py pack` does it."""
    shutil.copytree(HERE, here := tmp_path / "evidence")
    unpack(past := tmp_path / "past", HERE / EARLIER)
    monkeypatch.setattr("kept.HERE", here)
    monkeypatch.setattr("kept.unpack", lambda out, folder=here: unpack(out, folder))

    def after(task: str, *rows: str) -> dict[str, Kept]:
        for row in rows:
            shutil.copytree(past / "brain_mri" / row, tmp_path / "new" / task / row)
        pack(tmp_path / "new" / task, here / f"{task}.tar.xz")
        kept.cache_clear()
        return kept()

    yield after
    kept.cache_clear()


def test_a_row_of_the_methods_that_was_run_again_is_on_its_task_s_page(packing: Callable[..., dict[str, Kept]]) -> None:
    before = [row.label for row in kept()["brain_mri"].suite("leading")]
    task = packing("brain_mri", "pooled", "ditto")["brain_mri"]
    assert {"pooled", "ditto"} < task.runs.keys()
    assert {"pooled", "ditto"}.isdisjoint(task.joined)
    assert [row.label for row in task.suite("leading")] == before


def test_a_new_task_has_a_page_whichever_of_the_two_suites_was_packed(packing: Callable[..., dict[str, Kept]]) -> None:
    task = packing("fundus", "fedavg", "local", "pooled", "fedper")["fundus"]
    assert (task.main, task.past, len(task.sizes)) == ("methods", False, 3)
    assert [row.name for row in task.suite("methods")] == ["local", "fedavg", "pooled", "fedper", "better"]
    assert "fundus" not in [task.name for task in today()]
    text = "\n".join(pages.leaderboard_page(task))
    assert "(../evidence)" in text
    assert "less local only, paired" in text
    assert "| fundus |" in "\n".join(pages.datasets())


def test_pooled_runs_alone_tell_no_sites(packing: Callable[..., dict[str, Kept]]) -> None:
    with pytest.raises(UserFault, match=r"not pooled, of fundus; came pooled"):
        packing("fundus", "pooled")


def test_two_rows_of_one_page_have_labels_of_their_own(packing: Callable[..., dict[str, Kept]]) -> None:
    task = packing("nuclei_he", "ditto")["nuclei_he"]
    labels = [row.label for row in task.suite("leading")]
    assert {"Ditto", "Ditto, row `ditto`"} < set(labels)
    assert len(labels) == len(set(labels))


def test_a_dice_is_within_its_interval_and_three_seeds_reach_further_than_one() -> None:
    task = earlier("brain_mri")
    for line in leaderboard(task)[2:]:
        if line.startswith("| "):
            cells = line.split(" | ")
            low, high = map(float, cells[3].split(" to "))
            assert low < float(cells[2].split(" ± ")[0]) < high
    runs = task.runs["fedmsa_released"]
    low, high = dice_interval(task, runs, "personal")
    alone = [dice_interval(task, {seed: run}, "personal") for seed, run in runs.items()]
    assert high - low > max(end - begin for begin, end in alone)


def test_a_row_is_superseded_by_a_fault_that_its_code_had_and_its_settings_met() -> None:
    old, *_, new = commits()
    fault = Fault("f", "superseded", "s", tasks=["nuclei"], only={"method": ["pfedsam"]}, last=old)
    unless = replace(fault, unless={"model.experts": [0]})
    ours, theirs = {"method": "pfedsam", "model": {"experts": 0}}, {"method": "fedavg"}
    assert fault.touches("nuclei", ours, [old])
    assert fault.touches("nuclei", ours, [old, new])
    assert not fault.touches("nuclei", ours, [new])
    assert not fault.touches("brain_mri", ours, [old])
    assert not fault.touches("nuclei", theirs, [old])
    assert not unless.touches("nuclei", ours, [old])
    assert replace(fault, last="").touches("nuclei", ours, [new])


def test_a_kept_run_of_a_code_that_nobody_told_of_is_a_fault() -> None:
    run = next(iter(kept()["polyp"].runs["fedavg"].values()))
    with pytest.raises(UserFault, match="cafe0000cafe"):
        codes_of([replace(run, ran=("cafe0000cafe", "", ""))])


def test_a_row_whose_code_is_of_no_commit_is_not_valid() -> None:
    lines = [line for task in kept().values() for line in leaderboard(task) if "none (" in line]
    assert len(lines) >= 2
    assert all(line.endswith("| code not known |") for line in lines)


def test_rows_name_their_device_where_a_table_mixes_them_and_only_there() -> None:
    head, _, *rows = leaderboard(earlier("brain_mri"))
    place = head.split(" | ").index("device")
    cells = {line.split(" | ")[place] for line in rows if line.startswith("| ")}
    assert cells == {"GPU", "CPU", "GPU (seed 0), CPU (seed 1, 2)"}
    assert "device" not in leaderboard(kept()["nuclei"])[0]


def test_a_row_of_two_runs_names_the_devices_of_both() -> None:
    task = kept()["brain_mri"]
    head, _, *rows = leaderboard(task)
    (rival,) = [line for line in rows if "by validation" in line]
    assert rival.split(" | ")[head.split(" | ").index("device")] == "CPU, GPU"
    assert ran_on(task.suite("leading")) == "Ran on a CPU and a GPU."


def test_a_device_is_what_the_run_wrote_and_else_what_is_known_of_its_code() -> None:
    run = next(iter(earlier("brain_mri").runs["fedavg"].values()))
    assert run.ran[2] == ""
    assert device_of(run) == "NVIDIA H200"
    assert device_of(replace(run, ran=(*run.ran[:2], "CPU"))) == "CPU"


@pytest.fixture
def systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Records of an empty folder."""
    monkeypatch.setattr(machine, "machine", lambda: "a machine")  # its peaks take seconds
    monkeypatch.setattr(pages, "SYSTEMS", tmp_path)
    return tmp_path


def test_a_script_s_record_becomes_a_section_and_the_newest_is_shown(systems: Path) -> None:
    def kept_as(seconds: float, date: str) -> None:
        publish("Start of a site", Table({"a": "", "s": ".2f"}, [["one", seconds]]), keep=True, folder=systems)
        (path,) = [path for path in systems.glob("*.json") if "2020" not in path.name]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"date": date}))
        path.rename(systems / f"start_of_a_site.{date}.json")

    kept_as(2.0, "2020-01-02")
    kept_as(1.0, "2020-01-01")
    text = "\n".join(systems_page())
    assert "| one | 2.00 |" in text
    assert "| one | 1.00 |" not in text
    assert "Earlier: 2020-01-01" in text
    assert "Transcribed" not in text


def test_a_record_of_one_seed_shows_no_p_and_one_of_several_does() -> None:
    table = {"columns": {"row": "", "less a": "", "p": ""}, "rows": [["b", "-0.1 (-0.2 to +0.1), p 0.300", "0.010"]]}
    record = pages.Record("t", "2020-01-01", "c", "m", "x", [table], ["One seed: little is known."])
    assert record.lines()[-3] == "| b | -0.1 (-0.2 to +0.1) |"
    assert replace(record, notes=["Three."]).lines()[-3] == "| b | -0.1 (-0.2 to +0.1), p 0.300 | 0.010 |"


def test_nothing_is_written_where_a_record_is_not_to_be_kept(systems: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish("Scale", Table({"a": "d"}, [[3]]), notes=["note"], folder=systems)
    assert not list(systems.iterdir())
    assert capsys.readouterr().out == "Scale\n\n| a |\n|---|\n| 3 |\n\nnote\n"


def test_a_table_comes_back_from_its_record() -> None:
    table = Table({"name": "", "share": ".1e"}, [["x", 0.00012]])
    assert Table(**json.loads(json.dumps(asdict(table)))).lines() == table.lines()
    assert table.lines()[-1] == "| x | 1.2e-04 |"


def test_the_picture_of_dice_beside_megabytes_can_be_drawn(tmp_path: Path) -> None:
    dice_by_megabytes(tmp_path / "new/picture.png")
    drawn = (tmp_path / "new/picture.png").read_bytes()
    published = (ROOT / "docs/pictures/dice_by_megabytes.png").read_bytes()
    assert drawn[:24] == published[:24]  # a PNG of the same width and height
    assert 20_000 < len(published) < 120_000


def test_wrapped_lines_fit_a_page() -> None:
    assert max(map(len, wrapped("word " * 100, "  "))) <= 120
