"""What the report says of experts, from a record."""

from pathlib import Path
from typing import Any

import pytest

from pfedsam.config import to_dict
from pfedsam.files import write_json
from pfedsam.record import said
from pfedsam.record.results import finish, start
from pfedsam.report.experts import expert_rows, fallen_behind
from pfedsam.report.gather import gather
from pfedsam.report.page import write_report
from pfedsam.settings import from_dict

GATES = {"share": 0.4, "entropy": 0.9, "varies": 0.05, "experts": [0.6, 0.4]}


def record(with_: float | None, without: float | None, **gates: Any) -> dict[str, Any]:
    told = {**GATES, **gates, "dice_without": without}
    return {"final": {"sites": {"north": {"personal": {"dice": with_}, "experts": told}}}}


@pytest.mark.parametrize(
    ("with_", "without", "varies", "says"),
    [
        (0.80, 0.70, 0.05, "they help"),
        (0.70, 0.80, 0.05, "they harm"),
        (0.80, 0.799, 0.05, "they do little"),
        (0.80, 0.70, 0.001, "they help; the gate treats all images alike"),
        (None, 0.70, 0.05, "not scored"),
    ],
)
def test_a_site_s_experts_are_judged_by_the_dice_without_them(
    with_: float | None, without: float, varies: float, says: str
) -> None:
    (row,) = expert_rows(record(with_, without, varies=varies))
    assert row["says"] == says
    assert row["lost"] == (None if with_ is None else pytest.approx(with_ - without))


def test_a_private_bottleneck_without_experts_has_no_gate_to_judge() -> None:
    found = record(0.8, 0.7)
    for key in ("entropy", "varies", "experts"):
        del found["final"]["sites"]["north"]["experts"][key]
    assert expert_rows(found)[0]["says"] == "they help"


LEAST_ROW = {"dice": 0.5, "iou": 0.4}
LEAST: dict[str, Any] = {
    **{"global": LEAST_ROW, "personal": LEAST_ROW, "val": {"global": LEAST_ROW, "personal": LEAST_ROW}},
    **{"before": None, "experts": {**GATES, "dice_without": 0.4}},
}


@pytest.mark.parametrize("key", [*GATES, "dice_without", "before", "experts", ""])
def test_a_site_s_report_that_the_server_takes_stops_no_page(key: str, tmp_path: Path) -> None:
    """Some numbers may lack. The page of the whole run fell to one site that left one out."""
    tested = {name: value for name, value in LEAST.items() if name != key}
    if "experts" in tested:
        tested["experts"] = {name: value for name, value in LEAST["experts"].items() if name != key}
    assert said.tested_fault(tested) is None
    config = from_dict({})
    results = start(to_dict(config), config.digest(), "base")
    results["final"]["sites"] = {"north": tested}
    write_json(tmp_path / "results.json", finish(results, 1.0))
    write_report(gather(tmp_path), tmp_path / "report.html")
    assert "north" in (tmp_path / "report.html").read_text()


def test_runs_of_earlier_versions_and_methods_without_experts_have_no_rows() -> None:
    sites: dict[str, Any] = {"north": {"personal": {"dice": 0.8}}, "south": {"experts": {}}}
    assert expert_rows({"final": {"sites": sites}}) == []


@pytest.mark.parametrize(("personal", "told"), [(0.75, 1), (0.79, 0), (0.9, 0), (None, 0)])
def test_a_personal_branch_that_fell_behind_is_named_with_what_to_do(personal: float | None, told: int) -> None:
    val = {"personal": {"dice": personal}, "global": {"dice": 0.8}}
    sites = {"north": {"val": val}, "never trained": {"val": {"personal": {"dice": 0.0}, "global": {"dice": 0.8}}}}
    found = fallen_behind({"rounds": [{"sites": {"north": {}}}], "final": {"sites": sites}})
    assert len(found) == told
    assert all("north" in line and "--branch global" in line and "lr_private" in line for line in found)


@pytest.mark.parametrize(("scored", "few"), [(29, True), (30, False)])
def test_a_branch_that_fell_behind_over_few_masks_may_be_chance(scored: int, few: bool) -> None:
    val = {"personal": {"dice": 0.7, "scored": scored}, "global": {"dice": 0.8, "scored": scored}}
    [line] = fallen_behind({"rounds": [{"sites": {"north": {}}}], "final": {"sites": {"north": {"val": val}}}})
    assert f"over {scored} masks" in line
    assert ("may be chance" in line) is few
