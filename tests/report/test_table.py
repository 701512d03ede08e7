"""The table that a run ends with, as a terminal or a log shows it."""

from typing import Any

import pytest

from pfedsam.record.measures import METRICS
from pfedsam.record.table import LEAST, final_table

LONG = "a-hospital-of-a-town-with-a-name-that-takes-sixty-four-characters"[:64]
ROW = dict.fromkeys(METRICS, 0.123) | {"hd95": 123.45, "assd": 123.45, "unit": "mixed"}
ROLES = ("before", "global", "personal")


def results(*sites: str) -> dict[str, Any]:
    rows = dict.fromkeys(ROLES, ROW)
    tested = {site: {**rows, "patients": 1234} for site in sites}
    rounds = [{"round": 0, "sites": {site: {} for site in sites[:1]}}]
    final = {"sites": tested, "mean": rows, "worst": rows}
    return {"method": "fedms_sam", "synthetic": True, "rounds": rounds, "final": final}


@pytest.mark.parametrize("width", [100, 80, LEAST])
@pytest.mark.parametrize("sites", [("north", "south"), (LONG, LONG[::-1]), tuple(f"ward-{i:02d}" for i in range(30))])
def test_no_line_exceeds_the_width_and_no_number_is_cut(width: int, sites: tuple[str, ...]) -> None:
    text = final_table(results(*sites), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("123.5") == 2 * 3 * (len(sites) + 1)
    assert text.count("0.123") == 4 * 3 * (len(sites) + 1)
    joined = "".join(line[: line.find("  ")] if line[:1].strip() else "" for line in text.splitlines())
    assert all(site in joined or site in text for site in sites)


def test_the_usual_width_is_100_and_a_narrower_one_than_numbers_need_is_not_taken() -> None:
    text = final_table(results(LONG))
    assert 80 < max(map(len, text.splitlines())) <= 100
    assert final_table(results(LONG), 20) == final_table(results(LONG), LEAST)


def test_every_terminal_and_log_file_can_show_it() -> None:
    assert final_table(results(LONG, "south")).isascii()


def test_a_site_that_was_tested_only_is_marked() -> None:
    assert "south (tested only)" in final_table(results("north", "south"))
