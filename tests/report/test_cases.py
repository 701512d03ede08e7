"""What a site keeps of its test cases, and the intervals drawn from it."""

import json
import statistics as st
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from conftest import tiny
from pfedsam.data.synthetic import write_site
from pfedsam.exchange.codec import encode
from pfedsam.layout import Places
from pfedsam.record.cases import ROLES, Cases, read_cases
from pfedsam.record.scores import CaseScore, summary
from pfedsam.report.uncertainty import chance, estimate, holm, interval, mean_of
from pfedsam.service import Turn, serve_test
from pfedsam.site import Site


def row(cls: int, dice: float | None, **other: object) -> dict[str, object]:
    return {"cls": cls, "dice": dice, "iou": dice, "hd95": dice, "assd": dice, "found": True, "unit": "mm", **other}


def read(path: Path, rows: list[dict[str, object]]) -> Cases:
    """Of cases of one class and a patient each."""
    cases = [f"{i}.png" for i in range(len(rows))]
    path.write_text(
        json.dumps({"cases": cases, "groups": list(range(len(rows))), "scores": dict.fromkeys(ROLES, rows)})
    )
    return read_cases(path)


def test_a_case_where_nothing_was_found_has_no_distance_even_in_an_older_file(tmp_path: Path) -> None:
    diagonal = row(1, 0.0, hd95=181.0, assd=181.0, found=False)
    cases = read(tmp_path / "cases.json", [row(1, 0.5), diagonal])
    assert mean_of({"": cases.of_patients("personal", "hd95")}) == 0.5
    assert mean_of({"": cases.of_patients("personal", "detected")}) == 0.5
    assert mean_of({"": cases.of_patients("personal", "dice")}) == 0.25


def test_of_cases_in_several_units_no_distance_is_read(tmp_path: Path) -> None:
    cases = read(tmp_path / "cases.json", [row(1, 0.5), row(1, 0.5, unit="px")])
    assert cases.unit == "mixed"
    assert cases.of_patients("personal", "hd95") == []
    assert read(tmp_path / "cases.json", [row(1, 0.5)]).unit == "mm"


def test_the_mean_is_over_a_class_s_cases_then_over_classes_as_in_results_json(tmp_path: Path) -> None:
    """Class 1 is in ten cases, class 2 in two: three ways to a mean, and only one is the metric's."""
    names = [f"{i}.png" for i in range(10)]
    rows = [row(cls, (0.9 if cls == 1 else 0.3) if cls == 1 or i < 2 else None) for i in range(10) for cls in (1, 2)]
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"cases": names, "groups": list(range(10)), "scores": dict.fromkeys(ROLES, rows)}))
    classes = read_cases(path).of_patients("personal", "dice")
    assert mean_of({"north": classes}) == pytest.approx(0.6)
    assert summary([CaseScore(**r) for r in rows])["dice"] == pytest.approx(0.6)
    found = estimate([{"north": classes}])  # some draws miss the two cases of class 2, and then leave it out
    assert (found.mean, found.error) == (pytest.approx(0.6), pytest.approx(0.1, abs=0.03))


def test_cases_of_one_name_in_two_folders_are_two_cases(tmp_path: Path) -> None:
    write_site(tmp_path / "data/site-1", "site-1", {"train": 6, "val": 2, "test": 3}, seed=0)
    site = Site("site-1", tiny(), Places(tmp_path / "data", tmp_path / "store"))
    first, second, third = site.data["test"].slices
    for slice_, folder in ((first, "p1"), (second, "p2")):
        (site.data["test"].root / folder).mkdir()
        (site.data["test"].root / folder / "slice.png").write_bytes(slice_.image.read_bytes())
    renamed = [replace(s, image=s.image.parents[1] / f / "slice.png") for s, f in ((first, "p1"), (second, "p2"))]
    site.data["test"].slices = [*renamed, third]
    tested = serve_test(site, encode(site.shared(), "fp32"), Turn("run", site.base, 1, 1), tmp_path)
    cases = read_cases(tmp_path / "cases.json")
    assert {case for case, _ in cases.scores["personal"]} >= {"p1/slice.png", "p2/slice.png"}
    dice = mean_of({"site-1": cases.of_patients("personal", "dice")})
    assert dice == pytest.approx(tested["personal"]["dice"], abs=5e-5)  # which leaves with four digits
    assert st.mean(r["dice"] for r in cases.scores["personal"].values()) == pytest.approx(dice)


def test_p_values_are_corrected_for_their_number_and_stay_in_order() -> None:
    """By hand: 0.01 x 3, 0.02 x 2, 0.04 x 1 is less than the one before; never above 1."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.8, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_of_one_site_and_one_run_a_p_value_and_an_interval_are_those_of_student_s_t() -> None:
    for values in ([0.1, 0.11, 0.12, 0.13, 0.14, 0.15], [0.1, -0.1, 0.1, -0.1, 0.1, -0.1], [0.02, 0.05, -0.01]):
        site = {"north": [{f"p{i}": [value] for i, value in enumerate(values)}]}
        right = stats.ttest_1samp(values, 0)
        assert chance([site]) == pytest.approx(right.pvalue, rel=0.15, abs=1e-4)
        assert interval([site]) == pytest.approx(right.confidence_interval(), rel=0.1)
    assert chance([{"north": [{"p": [0.0]}]}]) == 1.0


@pytest.mark.parametrize(("patients", "seeds", "apart"), [((2, 2, 2, 2, 2, 4), 3, 1.5), ((4,), 1, 0.0), ((6,), 2, 0.4)])
def test_a_difference_that_is_none_is_called_one_no_oftener_than_it_should(
    patients: tuple[int, ...], seeds: int, apart: float
) -> None:
    """With percentiles of draws it was 13 to 20 of 100 times at p below 0.05."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        own = [rng.normal(size=count) for count in patients]
        runs = []
        for shift in apart * rng.normal(size=seeds):
            seen = [site + shift + 0.3 * rng.normal(size=len(site)) for site in own]
            runs.append({str(i): [{str(j): [v] for j, v in enumerate(site)}] for i, site in enumerate(seen)})
        found.append(chance(runs))
    assert sum(p < 0.05 for p in found) <= 18
    assert sum(p < 0.0033 for p in found) <= 4


def test_of_one_patient_a_site_nothing_is_known_however_large_the_gain() -> None:
    assert chance([{"north": [{"p": [0.2]}], "south": [{"q": [0.1]}]}]) == 1.0
