import json
from pathlib import Path

import pytest

from pfedsam.data import datalist
from pfedsam.data.datalist import Row
from pfedsam.data.records import raw_rows
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


def test_a_line_break_in_quotes_belongs_to_its_cell(tmp_path: Path) -> None:
    rows = [Row(r.image, r.mask, r.split, f"{r.group}\nsecond\x85line") for r in GOOD]
    assert datalist.read(site(tmp_path, rows))["val"] == [rows[1]]


def test_a_site_column_picks_the_site_s_own_rows(tmp_path: Path) -> None:
    site(tmp_path, GOOD)
    lines = ["site,image,mask,split,group"]
    lines += [f"{s},{r.image},{r.mask},{r.split},{s} {r.group}" for s in ("a", "b") for r in GOOD]
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(lines))
    assert [r.group for r in datalist.read(path, "b")["test"]] == ["b patient test"]
    assert len(datalist.read(path)["test"]) == 2
    assert len(datalist.read(path, "a", "b")["test"]) == 2


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


def test_a_folder_of_other_sites_is_told_with_their_names(tmp_path: Path) -> None:
    for site in ("north", "south"):
        (tmp_path / site).mkdir()
        (tmp_path / site / "datalist.csv").write_text("image,mask,split,group\n")
    with pytest.raises(UserFault, match=r"came datalists of north, south; .*--sites north,south"):
        datalist.find(tmp_path, "tcga_cs")


def listed(folder: Path, records: list[dict[str, object]], kind: str) -> Path:
    """`records` as a CSV or JSON datalist, with the files they name."""
    site(folder, GOOD)
    path = folder / f"datalist.{kind}"
    if kind == "json":
        path.write_text(json.dumps(records))
    else:
        lines = [list(records[0]), *(list(record.values()) for record in records)]
        path.write_text("\n".join(",".join(map(str, line)) for line in lines))
    return path


def of_sites(site_column: str, *, blank: str = "") -> list[dict[str, object]]:
    """Rows of sites a and b, with another name for the column `site`, and blanks around values."""
    return [
        {
            site_column: s + blank,
            "Image": r.image,
            " mask": r.mask,
            "Split ": r.split + blank,
            "GROUP": f"{s} {r.group}",
        }
        for s in ("a", "b")
        for r in GOOD
    ]


@pytest.mark.parametrize("kind", ["csv", "json"])
@pytest.mark.parametrize("column", ["Site", " site ", "SITE"])
def test_a_site_column_is_known_whatever_its_case_and_blanks(tmp_path: Path, kind: str, column: str) -> None:
    path = listed(tmp_path, of_sites(column, blank=" "), kind)
    assert [r.group for r in datalist.read(path, "b")["test"]] == ["b patient test"]
    assert datalist.sites(path) == ["a", "b"]


@pytest.mark.parametrize("kind", ["csv", "json"])
@pytest.mark.parametrize("row", [0, 5])
def test_a_row_without_a_site_among_rows_with_one_is_told(tmp_path: Path, kind: str, row: int) -> None:
    records = of_sites("site")
    records[row]["site"] = " "
    if kind == "json":
        del records[row]["site"]
    path = listed(tmp_path, records, kind)
    with pytest.raises(UserFault, match=rf"site in (object|row) {row + 1} .*of .*datalist\.{kind}"):
        datalist.read(path, "b")


def test_a_site_s_faulty_row_is_told_by_its_place_in_the_file(tmp_path: Path) -> None:
    records = of_sites("site")
    records[4]["GROUP"] = ""
    with pytest.raises(UserFault, match="in row 5 below the header of"):
        datalist.read(listed(tmp_path, records, "csv"), "b")


def test_a_spreadsheet_s_empty_last_rows_are_no_rows(tmp_path: Path) -> None:
    path = listed(tmp_path, [row.__dict__ for row in GOOD], "csv")
    path.write_text(path.read_text() + ",,,\n" * 2)
    assert len(raw_rows(path)) == len(GOOD)


def test_an_empty_site_column_is_none(tmp_path: Path) -> None:
    path = listed(tmp_path, [{"site": "", **row.__dict__} for row in GOOD], "csv")
    assert len(datalist.read(path, "b")["test"]) == 1


def test_two_columns_of_one_name_are_not_chosen_from(tmp_path: Path) -> None:
    path = listed(tmp_path, [{"site": "a", "Site ": "b", **row.__dict__} for row in GOOD], "json")
    with pytest.raises(UserFault, match=r"one column site .*came 2"):
        datalist.read(path, "b")


def test_a_group_with_a_blank_behind_it_is_the_same_group(tmp_path: Path) -> None:
    rows = [
        Row(f"{i}.png", f"{i}_m.png", split, group)
        for i, (split, group) in enumerate([("train", "1"), ("val", "2"), ("test", "1 ")])
    ]
    with pytest.raises(UserFault, match=r"each group .*1 in test and train"):
        datalist.read(site(tmp_path, rows))


@pytest.mark.parametrize("again", ["train.png", "./train.png"])
def test_one_image_in_two_splits_is_refused(tmp_path: Path, again: str) -> None:
    path = site(tmp_path, [*GOOD, Row(again, "x_m.png", "test", "another patient")])
    with pytest.raises(UserFault, match=r"each image of .*datalist\.csv in one split; .*train\.png in test and train"):
        datalist.read(path)


def test_two_masks_of_one_image_in_one_split_are_two_rows(tmp_path: Path) -> None:
    path = site(tmp_path, [*GOOD, Row("test.png", "second_m.png", "test", "patient test")])
    assert [row.mask for row in datalist.read(path)["test"]] == ["test_m.png", "second_m.png"]


@pytest.mark.parametrize(
    "head", ["image,mask,mask,split,group", "image,mask,split,group,Group", "image,image,mask,split,group"]
)
def test_a_column_that_stands_twice_is_named_even_with_the_same_name(tmp_path: Path, head: str) -> None:
    names = head.split(",")
    (tmp_path / "datalist.csv").write_text(head + "\n" + ",".join("a" for _ in names) + "\n")
    with pytest.raises(UserFault, match=r"one column (mask|group|image) .*came 2"):
        raw_rows(tmp_path / "datalist.csv")


def test_a_key_that_stands_twice_in_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_text(
        '[{"image": "a", "mask": "b", "mask": "c", "split": "train", "group": "p"}]'
    )
    with pytest.raises(UserFault, match="mask twice in one object"):
        raw_rows(tmp_path / "datalist.json")


@pytest.mark.parametrize(("sign", "said"), [(";", "came semicolons"), ("\t", "came tabs")])
def test_a_table_without_commas_is_told_so(tmp_path: Path, sign: str, said: str) -> None:
    (tmp_path / "datalist.csv").write_text("image,mask,split,group\na,b,train,p\n".replace(",", sign))
    with pytest.raises(UserFault, match=f"commas between the columns .*{said}"):
        raw_rows(tmp_path / "datalist.csv")


def two_images(folder: Path, rows: list[str]) -> Path:
    """A datalist of these rows; its files are there."""
    for name in ("a.png", "b.png", "m.png"):
        (folder / name).write_bytes(b"")
    (folder / "datalist.csv").write_text("\n".join(["image,mask,split,group", *rows]) + "\n")
    return folder / "datalist.csv"


@pytest.mark.parametrize(("one", "other"), [("Meier", "meier"), ("Müller", "Mu\u0308ller"), ("P1 ", "P1")])
def test_a_patient_in_two_spellings_is_one_patient(tmp_path: Path, one: str, other: str) -> None:
    path = two_images(tmp_path, [f"a.png,m.png,train,{one}", f"b.png,m.png,test,{other}"])
    with pytest.raises(UserFault, match=r"each group .* in one split"):
        datalist.read(path)


def test_an_image_under_two_names_is_one_image(tmp_path: Path) -> None:
    (tmp_path / "c.png").symlink_to(tmp_path / "a.png")
    for other in ("c.png", str(tmp_path / "a.png"), "./a.png"):
        path = two_images(tmp_path, ["a.png,m.png,train,p1", f"{other},m.png,test,p2"])
        with pytest.raises(UserFault, match=r"each image .* in one split"):
            datalist.read(path)


def test_a_case_that_is_listed_twice_would_count_twice(tmp_path: Path) -> None:
    path = two_images(tmp_path, ["a.png,m.png,test,p1", "b.png,m.png,train,p2", "./a.png,m.png,test,p1"])
    with pytest.raises(UserFault, match="each case once"):
        datalist.read(path)


def at_two_sites(folder: Path, third: str) -> Path:
    """A datalist of sites north and south. `third` is a row of south beside its own three."""
    for name in ("a", "b", "c", "d", "e", "f", "m"):
        (folder / f"{name}.png").write_bytes(b"")
    own = [f"{n}.png,m.png,{s},{n},north" for n, s in zip("abc", datalist.SPLITS, strict=True)]
    other = [f"{n}.png,m.png,{s},{n},south" for n, s in zip("def", datalist.SPLITS, strict=True)]
    text = "\n".join(["image,mask,split,group,site", *own, *other, third]) + "\n"
    (folder / "datalist.csv").write_text(text)
    return folder / "datalist.csv"


def test_an_image_that_one_site_trains_on_and_another_is_tested_on_is_refused_at_both(tmp_path: Path) -> None:
    path = at_two_sites(tmp_path, "./a.png,m.png,test,p9,south")
    for site, said in (
        ("north", "a.png in train, and in test at site south"),
        ("south", "a.png in test, and in train"),
    ):
        with pytest.raises(UserFault, match=rf"one split at all sites; .*{said}"):
            datalist.read(path, site)
    assert len(datalist.read(at_two_sites(tmp_path, "a.png,m.png,train,a,south"), "north")["train"]) == 1


def test_a_group_of_one_name_in_two_splits_at_two_sites_is_told_without_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sites may count their patients alike, so it may be another patient."""
    path = at_two_sites(tmp_path, "absent.png,m.png,test,A,south")
    datalist.read(path, "north")
    (said,) = caplog.messages
    assert "1 group(s) of the datalist are in another split at other sites (south)" in said
    with pytest.raises(UserFault, match="each group"):
        datalist.read(at_two_sites(tmp_path, "d.png,m.png,test,A,south"), "north", "south")
    caplog.clear()
    datalist.read(at_two_sites(tmp_path, "absent.png,m.png,train,A,south"), "north")
    assert not caplog.messages


def test_all_sites_together_have_a_patient_of_one_name_each_and_it_is_told_if_their_splits_differ(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The pooled baseline takes what the sites take apart, and counts their patients apart."""
    (tmp_path / "g.png").write_bytes(b"")
    splits = datalist.read(at_two_sites(tmp_path, "g.png,m.png,test,A,south"))
    assert {name: [row.group for row in rows] for name, rows in splits.items()} == {
        "train": ["north/a", "south/d"],
        "val": ["north/b", "south/e"],
        "test": ["north/c", "south/f", "south/a"],
    }
    assert "1 group(s) of the datalist are in another split at other sites" in caplog.text
    with pytest.raises(UserFault, match=r"each image .* in one split"):
        datalist.read(at_two_sites(tmp_path, "a.png,m.png,test,p9,south"))
    with pytest.raises(UserFault, match="each case once"):
        datalist.read(at_two_sites(tmp_path, "./a.png,m.png,train,a,south"))
    with pytest.raises(UserFault, match=r"each group .* in one split"):
        datalist.read(at_two_sites(tmp_path, "g.png,m.png,test,a,north"))


def test_a_faulty_row_of_another_site_does_not_stop_one(tmp_path: Path) -> None:
    path = at_two_sites(tmp_path, ",,dev,,south")
    assert len(datalist.read(path, "north")["val"]) == 1


def test_a_patient_in_two_spellings_is_counted_once_in_the_first(tmp_path: Path) -> None:
    path = two_images(tmp_path, ["a.png,m.png,test,Meier", "b.png,m.png,test,meier"])
    path.write_text(path.read_text() + "c.png,m.png,train,P1\nd.png,m.png,val,P2\n")
    for name in "cd":
        (tmp_path / f"{name}.png").write_bytes(b"")
    assert [row.group for row in datalist.read(path)["test"]] == ["Meier", "Meier"]


@pytest.mark.parametrize(
    ("text", "encoding", "said"),
    [
        (
            "image;mask;split;group\na;b;train;p\n",
            "utf-8",
            "expected commas between the columns of .*; came semicolons; to",
        ),
        ("image|mask|split|group\na|b|train|p\n", "utf-8", "commas between the columns .*came vertical bars; to"),
        (
            "sep=,\nimage,mask,split,group\na,b,train,p\n",
            "utf-8",
            "in the first line .*; came no image, mask, .*sep=",
        ),
        ("image,mask,split,patient\na,b,train,p\n", "utf-8", "came no group in 'image,mask,split,patient'"),
        ("image,mask,split,group\na,b,train,Müller\n", "latin-1", "expected text in UTF-8 .*Excel calls CSV UTF-8"),
        ("image,mask,split,group\na,b,train,Müller\n", "utf-16", "expected text in UTF-8 .*Excel calls CSV UTF-8"),
    ],
)
def test_a_table_of_another_form_is_told_once_with_its_remedy(
    tmp_path: Path, text: str, encoding: str, said: str
) -> None:
    (tmp_path / "datalist.csv").write_text(text, encoding=encoding)
    with pytest.raises(UserFault, match=said) as fault:
        raw_rows(tmp_path / "datalist.csv")
    assert str(fault.value).count("to mend it") == 1


@pytest.mark.parametrize("cells", ["a.png,m.png,train,Meier, Jane", "a.png,m.png,train,p1,,x"])
def test_a_row_with_more_cells_than_columns_is_named_instead_of_read_with_shifted_cells(
    tmp_path: Path, cells: str
) -> None:
    path = two_images(tmp_path, ["b.png,m.png,train,p2", cells])
    with pytest.raises(
        UserFault, match=r"4 cells, as many as columns, in row 2 below .*; came [56]; .*quotation marks"
    ):
        datalist.read(path)


def test_a_comma_at_the_end_of_a_row_shifts_nothing(tmp_path: Path) -> None:
    path = two_images(tmp_path, ["b.png,m.png,train,p2,", "a.png,m.png,train,p1,"])
    assert [row["group"] for row in raw_rows(path)] == ["p2", "p1"]


@pytest.mark.parametrize(("one", "other"), [("Site-1", "site-1"), ("Zürich", "Zu\u0308rich")])
def test_a_site_in_two_spellings_does_not_lose_the_rows_of_one(tmp_path: Path, one: str, other: str) -> None:
    records = of_sites("site")
    for record, name in zip(records, [one, other, other, "b", "b", "b"], strict=True):
        record["site"] = name
    for wanted in ((one,), (other,), ("b",), ()):
        with pytest.raises(UserFault, match=rf"one spelling of each site in .*; came {one} and {other}"):
            datalist.read(listed(tmp_path, records, "csv"), *wanted)


@pytest.mark.parametrize("wanted", [("a", "bb"), ("bb",)])
def test_a_site_that_a_job_joins_must_have_rows(tmp_path: Path, wanted: tuple[str, ...]) -> None:
    path = listed(tmp_path, of_sites("site"), "csv")
    with pytest.raises(UserFault, match=r"rows of site bb in .*; came rows of a, b; .*data\.joined"):
        datalist.read(path, *wanted)
    assert len(datalist.read(path, "a", "b")["train"]) == 2
