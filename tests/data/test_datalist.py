import json
from pathlib import Path

import pytest

from pfedsam.data import datalist
from pfedsam.data.datalist import Row
from pfedsam.errors import UserFault


def site(folder: Path, rows: list[Row]) -> Path:
    for row in rows:
        for name in (row.image, row.mask):
            if name and "absent" not in name:
                (folder / name).write_bytes(b"")
    return datalist.write_csv(folder / "datalist.csv", rows)


GOOD = [Row(f"{s}.png", f"{s}_m.png", s, f"patient {s}") for s in ("train", "val", "test")]


def test_rows_come_back_by_split(tmp_path: Path) -> None:
    splits = datalist.read(site(tmp_path, GOOD))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 1, "val": 1, "test": 1}


def test_json_serves_as_well_as_csv(tmp_path: Path) -> None:
    site(tmp_path, GOOD)
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps([row.__dict__ for row in GOOD]))
    assert datalist.read(path)["val"] == [GOOD[1]]


def test_a_site_column_picks_the_site_s_own_rows(tmp_path: Path) -> None:
    site(tmp_path, GOOD)
    lines = ["site,image,mask,split,group"]
    lines += [f"{s},{r.image},{r.mask},{r.split},{s} {r.group}" for s in ("a", "b") for r in GOOD]
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(lines))
    assert [r.group for r in datalist.read(path, "b")["test"]] == ["b patient test"]
    assert len(datalist.read(path, None)["test"]) == 2


def test_the_site_s_own_folder_wins_over_the_common_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    site(tmp_path, GOOD)
    own = site(tmp_path / "a", GOOD)
    assert datalist.find(tmp_path, "a") == own
    assert datalist.find(tmp_path, "b") == tmp_path / "datalist.csv"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([*GOOD, Row("x.png", "x_m.png", "val", "patient train")], "patient train in train and val"),
        (GOOD[:2], "rows of split test"),
        ([*GOOD, Row("absent.png", "x_m.png", "val", "p")], "absent.png"),
        ([*GOOD, Row("x.png", "absent_m.png", "val", "p")], "absent_m.png"),
        ([*GOOD, Row("x.png", "x_m.png", "dev", "p")], "dev"),
        ([*GOOD, Row("x.png", "x_m.png", "val", "")], "group"),
    ],
)
def test_a_bad_row_is_told_with_file_and_cause(tmp_path: Path, rows: list[Row], told: str) -> None:
    path = site(tmp_path, rows)
    with pytest.raises(UserFault) as fault:
        datalist.read(path)
    assert told in str(fault.value)
    assert str(path) in str(fault.value)


def test_no_datalist_at_all_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="PFEDSAM_DATA"):
        datalist.find(tmp_path, "site-9")
