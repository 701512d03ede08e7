"""A run in one process, cut and gone on."""

import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import NEEDS, in_one, tiny
from pfedsam import methods
from pfedsam.errors import UserFault
from pfedsam.exchange.checkpoint import Checkpoints
from pfedsam.federation import RUN, Plan, federate
from pfedsam.layout import Places
from pfedsam.record.measures import METRICS
from pfedsam.record.table import final_table
from pfedsam.report.gather import gather
from pfedsam.report.words import site_rows, summary
from pfedsam.tensors import digest, facts_of


def plan(hospital: Path, folder: Path, method: str = "pfedsam") -> Plan:
    names = ("site-1", "site-2")
    return Plan(tiny(method=method), {name: Places(hospital, folder / "sites") for name in names}, 3, folder)


def stopped(_: dict[str, Any]) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["pfedsam", "fedavgm", "scaffold", "similarity"])
def test_a_run_that_was_cut_goes_on_to_the_same_result(hospital: Path, tmp_path: Path, method: str) -> None:
    """With the server's memory and its models of sites, and the memory of each site."""
    whole = federate(plan(hospital, tmp_path / "whole", method))

    def cut(entry: dict[str, Any]) -> None:
        if entry["round"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(plan(hospital, tmp_path / "cut", method), cut)
    assert not (tmp_path / "cut/results.json").exists()
    told: list[int] = []
    found = federate(plan(hospital, tmp_path / "cut", method), lambda entry: told.append(entry["round"]))
    assert told == [2]
    assert [entry["round"] for entry in found["rounds"]] == [0, 1, 2]
    assert found["final"] == whole["final"]
    last = [load_file(next((tmp_path / name / "store").rglob("round.000003.safetensors"))) for name in ("cut", "whole")]
    assert last[0].keys() == last[1].keys()
    assert all(torch.equal(last[0][name], tensor) for name, tensor in last[1].items())


def test_a_run_with_other_settings_does_not_go_on_in_the_same_folder(hospital: Path, tmp_path: Path) -> None:
    federate(plan(hospital, tmp_path))
    other = replace(plan(hospital, tmp_path), config=tiny(train={"lr": 0.5}, every={"site-2": 2}))
    with pytest.raises(UserFault, match=r"there: train\.lr 0\.0\d*, every \{\}"):
        federate(other)


def test_a_run_that_was_cut_goes_on_with_its_rounds_and_sites_alone(hospital: Path, tmp_path: Path) -> None:
    """A schedule over other rounds, or a mean over other sites, would be a run that nobody planned."""
    with pytest.raises(KeyboardInterrupt):
        federate(plan(hospital, tmp_path), stopped)
    with pytest.raises(UserFault, match=r"expected 3 rounds of site-1, site-2, as the run in .* came 4 rounds of"):
        federate(replace(plan(hospital, tmp_path), rounds=4))
    alone = {"site-1": plan(hospital, tmp_path).places["site-1"]}
    with pytest.raises(UserFault, match="came 3 rounds of site-1;"):
        federate(replace(plan(hospital, tmp_path), places=alone))


def test_a_run_does_not_go_on_with_other_data_than_it_began_with(hospital: Path, tmp_path: Path) -> None:
    """Its scores would be of the old images: masks were corrected, or the folder is another one."""
    data = tmp_path / "data"
    shutil.copytree(hospital, data)
    began = plan(data, tmp_path / "run")
    federate(began)
    assert federate(began)["rounds"], "the same data go on"
    mask = next((data / "site-2/masks").iterdir())
    times = mask.stat()
    mask.write_bytes(mask.read_bytes())
    with pytest.raises(UserFault, match=r"began; came changed files, or another datalist, at site-2; "):
        federate(began)
    os.utime(mask, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert federate(plan(shutil.move(data, tmp_path / "moved"), tmp_path / "run"))["rounds"], "moved data go on"
    rows = tmp_path / "moved/site-1/datalist.csv"
    rows.write_text("\n".join(line for i, line in enumerate(rows.read_text().splitlines()) if i != 1))
    with pytest.raises(UserFault, match=r"another datalist, at site-1; "):
        federate(plan(tmp_path / "moved", tmp_path / "run"))


def test_two_sites_never_read_the_same_images(hospital: Path, tmp_path: Path) -> None:
    """A folder with one datalist for all would be a federation of one site with itself."""
    same = dict.fromkeys(("north", "south"), Places(hospital / "site-1", tmp_path / "sites"))
    with pytest.raises(UserFault, match=r"each image at one site; came \S+\.png at both north and south; "):
        federate(Plan(tiny(), same, 1, tmp_path))
    (tmp_path / "link").symlink_to(hospital / "site-1")
    linked = {**same, "south": Places(tmp_path / "link", tmp_path / "sites")}
    with pytest.raises(UserFault, match="at both north and south"):
        federate(Plan(tiny(), linked, 1, tmp_path))
    whole = Places(in_one(hospital, tmp_path / "whole", ["site-1", "site-2"]), tmp_path / "sites")
    federate(Plan(tiny(data={"pool": True}), dict.fromkeys(same, whole), 1, tmp_path / "pooled"))


def test_a_run_of_an_earlier_version_which_kept_no_digest_of_data_goes_on(hospital: Path, tmp_path: Path) -> None:
    federate(plan(hospital, tmp_path))
    checkpoints = Checkpoints(tmp_path / "store", "pfedsam")
    point = checkpoints.load(RUN)
    assert point
    planned = {key: value for key, value in point.results["planned"].items() if key != "data"}
    checkpoints.save(replace(point, results={**point.results, "planned": planned}))
    assert federate(plan(hospital, tmp_path))["planned"]["data"].keys() == {"site-1", "site-2"}


def test_a_run_names_all_code_that_it_ran_with(hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfedsam.record.results.CODE", "before")
    with pytest.raises(KeyboardInterrupt):
        federate(plan(hospital, tmp_path), stopped)
    monkeypatch.setattr("pfedsam.record.results.CODE", "after")
    assert federate(plan(hospital, tmp_path))["versions"]["code"] == "before, after"


def test_sites_that_keep_their_front_on_disk_keep_it_apart(hospital: Path, tmp_path: Path) -> None:
    kept = tiny(model={"lora_last": 1}, train={"cache": "disk", "views": 1})
    none = tiny(model={"lora_last": 1}, train={"cache": "memory", "views": 1})
    scores = []
    for number, config in enumerate((kept, none)):
        places = Places(hospital, tmp_path / f"{number}/sites", scratch=tmp_path / f"{number}/scratch")
        found = federate(Plan(config, dict.fromkeys(("site-1", "site-2"), places), 2, tmp_path / str(number)))
        scores.append(found["final"]["sites"])
    assert scores[0] == scores[1]


@pytest.mark.parametrize("method", [name for name in methods.names() if not methods.get(name).joins])
def test_every_method_runs_its_rounds_and_its_branches_are_tested(hospital: Path, tmp_path: Path, method: str) -> None:
    config = tiny(method=method, model=NEEDS.get(method, {}))
    places = Places(hospital, tmp_path / "sites")
    found = federate(Plan(config, dict.fromkeys(("site-1", "site-2"), places), 2, tmp_path))
    assert [entry["round"] for entry in found["rounds"]] == [0, 1]
    for site in found["final"]["sites"].values():
        assert {site[role]["scored"] for role in ("before", "global", "personal")} == {3}
        assert {site["val"][role]["scored"] for role in ("global", "personal")} == {2}
    sent = [report["bytes_sent"] for entry in found["rounds"] for report in entry["sites"].values()]
    assert all(size > 0 for size in sent) != (method == "local")


def test_a_site_trains_in_its_own_rounds_alone_and_one_that_never_trains_is_tested(
    hospital: Path, tmp_path: Path
) -> None:
    places = dict.fromkeys(("site-1", "site-2"), Places(hospital, tmp_path / "sites"))
    found = federate(Plan(tiny(every={"site-2": 2}), places, 3, tmp_path / "seldom"))
    assert [set(entry["sites"]) for entry in found["rounds"]] == [
        {"site-1", "site-2"},
        {"site-1"},
        {"site-1", "site-2"},
    ]
    out = federate(Plan(tiny(study="out", every={"site-2": 0}), places, 1, tmp_path / "out"))
    assert set(out["rounds"][0]["sites"]) == {"site-1"}
    assert out["final"]["sites"]["site-2"]["global"]["dice"] is not None
    alone = out["final"]["sites"]["site-1"]["global"]
    assert out["final"]["mean"]["global"] == {m: alone[m] for m in (*METRICS, "unit")}
    assert "site-2 (tested only)" in final_table(out)
    material = gather(tmp_path / "out")
    told = summary(material, site_rows(material))
    assert told[0].startswith("1 site (site-1) took part.")
    assert told[1].startswith("Tested only, without a training round: site-2")


def test_distances_are_measured_on_the_test_split_alone(hospital: Path, tmp_path: Path) -> None:
    found = federate(replace(plan(hospital, tmp_path), rounds=1))
    (entry,) = found["rounds"]
    for site in ("site-1", "site-2"):
        report, tested = entry["sites"][site], found["final"]["sites"][site]
        measured = [report["before"], tested["global"], tested["personal"]]
        assert all(row.keys() >= {"hd95", "assd", "surface_dice"} and row["unit"] == "px" for row in measured)
        rows = [row for of in (report, tested) for row in of["val"].values()]
        assert {key for row in rows for key in row} == {"dice", "iou", "detected", "scored", "empty", "false_alarms"}
        assert tested["patients"] == 3


def test_a_newcomer_trains_its_experts_on_a_model_that_stays_as_it_came(hospital: Path, tmp_path: Path) -> None:
    places = {"site-1": Places(hospital, tmp_path / "sites")}
    federate(Plan(tiny(), places, 2, tmp_path / "first"))
    joins = {"site-2": Places(hospital, tmp_path / "sites")}
    config = tiny(study="joins", method="newcomer")
    found = federate(Plan(config, joins, 2, tmp_path / "second", begin=tmp_path / "first"))
    before, after = (
        load_file(next((tmp_path / name).rglob("round.000002.safetensors"))) for name in ("first", "second")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    one, two = (load_file(path) for path in sorted((tmp_path / "sites/joins/site-2").glob("private.*.safetensors")))
    assert all(".own." in name for name in two)
    assert any(not torch.equal(one[name], tensor) for name, tensor in two.items())
    scores = found["final"]["sites"]["site-2"]
    assert scores["before"] == scores["global"]
    began = {key: found["begun_with"][key] for key in ("run", "rounds", "sha256")}
    assert began == {"run": "pfedsam/run", "rounds": 2, "sha256": digest(before)}
    assert found["begun_with"]["private"] == {"site-2": {}}


def test_a_site_without_a_label_adapts_the_federation_s_model_and_sends_nothing(hospital: Path, tmp_path: Path) -> None:
    federate(Plan(tiny(method="fedavg"), {"site-1": Places(hospital, tmp_path / "sites")}, 1, tmp_path / "first"))
    joins = {"site-2": Places(hospital, tmp_path / "sites")}
    config = tiny(study="joins", method="cpss_adapt", data={"unlabelled": {"site-2": 1}}, own={"sure": 0.5})
    found = federate(Plan(config, joins, 2, tmp_path / "second", begin=tmp_path / "first"))
    before, after = (load_file(max((tmp_path / name).rglob("round.*.safetensors"))) for name in ("first", "second"))
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    one, two = (load_file(path) for path in sorted((tmp_path / "sites/joins/site-2").glob("private.*.safetensors")))
    assert any(not torch.equal(one[name], tensor) for name, tensor in two.items())
    assert found["final"]["sites"]["site-2"]["personal"]["scored"] == 3


def test_a_newcomer_to_no_federation_is_told_so(hospital: Path, tmp_path: Path) -> None:
    places = {"site-1": Places(hospital, tmp_path / "sites")}
    with pytest.raises(UserFault, match=r"a trained model for newcomer to begin with.*--begin"):
        federate(Plan(tiny(method="newcomer"), places, 1, tmp_path / "run"))


def test_a_newcomer_to_another_model_is_told_so(hospital: Path, tmp_path: Path) -> None:
    places = {"site-1": Places(hospital, tmp_path / "sites")}
    federate(Plan(tiny(), places, 1, tmp_path / "first"))
    other = tiny(study="joins", method="newcomer", model={"lora_rank": 2})
    with pytest.raises(UserFault, match=r"whose model this begins with.*model\.lora_rank"):
        federate(Plan(other, places, 1, tmp_path / "second", begin=tmp_path / "first"))


@pytest.mark.parametrize(("method", "refused"), [("ffa_lora", True), ("fedavg", False)])
def test_a_model_that_goes_with_drawn_adapters_begins_no_run_of_another_seed(
    hospital: Path, tmp_path: Path, method: str, refused: bool
) -> None:
    """FFA-LoRA's A is drawn from the seed and never sent. B of another A would be a damaged model."""
    places = {"site-1": Places(hospital, tmp_path / "sites")}
    federate(Plan(tiny(method=method), places, 1, tmp_path / "first"))
    other = Plan(tiny(method=method, seed=1, study="other"), places, 1, tmp_path / "second", begin=tmp_path / "first")
    with pytest.raises(UserFault, match=r"whose model this begins with.*seed 0") if refused else nullcontext():
        federate(other)


def test_a_site_is_not_scored_on_classes_that_it_does_not_annotate(hospital: Path, tmp_path: Path) -> None:
    config = tiny(model={"num_classes": 2}, data={"unannotated": {"site-2": [2]}})
    places = dict.fromkeys(("site-1", "site-2"), Places(hospital, tmp_path / "sites"))
    found = federate(Plan(config, places, 1, tmp_path))["final"]["sites"]
    assert [found[site]["global"]["scored"] + found[site]["global"]["empty"] for site in places] == [6, 3]


def test_a_run_that_begins_anew_in_a_used_store_measures_its_own_beginning(hospital: Path, tmp_path: Path) -> None:
    """Every run in one process goes by one name: what the store kept of the run before it is not this one's."""
    first = replace(plan(hospital, tmp_path / "first"), rounds=1)
    federate(first)
    begun = federate(replace(first, folder=tmp_path / "second", begin=tmp_path / "first"))
    alone = replace(plan(hospital, tmp_path / "alone"), rounds=1, begin=tmp_path / "first")
    expected = federate(alone)
    for site in expected["final"]["sites"]:
        assert begun["final"]["sites"][site]["before"] == expected["final"]["sites"][site]["before"]


def test_a_site_that_never_trains_is_not_tested_with_another_folder_s_run(hospital: Path, tmp_path: Path) -> None:
    """Every run in one process has the same name, and a site's store may be the same too."""
    places = {site: Places(hospital, tmp_path / "sites") for site in ("site-1", "site-2")}
    federate(Plan(tiny(), places, 1, tmp_path / "first"))
    assert facts_of(tmp_path / "first/site-2/private.safetensors")["round"] == "0"
    federate(Plan(tiny(every={"site-2": 0}), places, 1, tmp_path / "second"))
    assert "round" not in facts_of(tmp_path / "second/site-2/private.safetensors")
