"""Patients by folder and file names: none in two splits, none that is a class, a year or a slice."""

from pathlib import Path, PurePath

import numpy as np
import pytest
from prepare.corpus import lesion, picture, scan

from pfedsam.data import datalist
from pfedsam.data.datalist import Row
from pfedsam.errors import UserFault
from pfedsam.prepare.copies import fingerprint
from pfedsam.prepare.found import Case
from pfedsam.prepare.grouping import by_file, by_level, grouped
from pfedsam.prepare.patients import told_apart
from pfedsam.prepare.site import Wish, prepare

SIX = ["P1", "P2", "P3", "P4", "P5", "P6"]
SLICES = range(4)
SURNAMES = ["Braun", "Kurz", "Adler", "Fuchs"]


def found(paths: list[str]) -> list[str | None]:
    """The patients in alphabetical order; None last, where a file has none."""
    return sorted(set(grouped([PurePath(path) for path in paths]).keys), key=lambda key: (key is None, key))


@pytest.mark.parametrize(
    "above",
    ["", "cohort/", "data/2021/export/", "a/b/c/d/"],
)
def test_folders_that_all_files_share_are_no_patients(above: str) -> None:
    assert found([f"{above}{p}/images/slice_{i}.png" for p in SIX for i in SLICES]) == SIX


@pytest.mark.parametrize(
    "sorts",
    [
        ("2020", "2021", "2022"),
        ("2021-03", "2021-04", "2021-05"),
        ("benign", "malignant", "normal"),
        ("glioma", "no_tumor", "pituitary"),
        ("train", "val", "test"),
        ("T1", "T2", "FLAIR"),
        ("site1", "site2", "site3"),
        ("scanner_a", "scanner_b", "scanner_c"),
        ("red", "green", "blue"),
    ],
)
def test_what_files_are_sorted_by_is_no_patient_and_the_level_below_is(sorts: tuple[str, ...]) -> None:
    assert found([f"{sorts[k // 2]}/{p}/s_{i}.png" for k, p in enumerate(SIX) for i in SLICES]) == SIX
    assert found([f"{sorts[k // 2]}/{p}_{i}.png" for k, p in enumerate(SIX) for i in SLICES]) == SIX


@pytest.mark.parametrize("inner", ["ses-0{}", "visit{}", "2021-03-0{}", "baseline{}", "T{}", "1.2.840.{}"])
def test_a_patient_s_visits_are_one_patient(inner: str) -> None:
    assert found([f"{p}/{inner.format(v)}/s_{i}.png" for p in SIX for v in (1, 2) for i in SLICES]) == SIX


@pytest.mark.parametrize(
    "ends",
    [
        "LR",
        ("left", "right"),
        ("links", "rechts"),
        ("linke", "rechte"),
        ("OD", "OS"),
        ("2020", "2021"),
        ("20200101", "20210101"),
    ],
)
def test_a_patient_s_sides_eyes_and_dates_are_one_patient(ends: tuple[str, ...]) -> None:
    assert found([f"{p}_{end}.png" for p in SIX for end in ends]) == SIX
    assert found([f"{p}_{end}/s_{i}.png" for p in SIX for end in ends for i in SLICES]) == SIX


@pytest.mark.parametrize("form", ["{}_{}", "{} {}", "{}-{}"])
@pytest.mark.parametrize("ends", [("left", "right"), ("links", "Rechts"), ("OD", "OS")])
def test_both_sides_of_a_patient_without_a_number_are_one_patient(form: str, ends: tuple[str, ...]) -> None:
    people = ["MeierA", "MeierB", "MeierC"]
    assert found([f"{form.format(who, end)}.png" for who in people for end in ends]) == people


def test_a_side_written_onto_the_number_is_told_where_both_are_there() -> None:
    assert found([f"Image_0{i}{side}.jpg" for i in range(3) for side in "LR"]) == ["Image_00", "Image_01", "Image_02"]
    assert len(found([f"Image_0{i}L.jpg" for i in range(3)])) == 3


def test_a_subject_of_bids_is_a_patient_wherever_it_is_written() -> None:
    paths = [f"sub-0{i}/ses-0{s}/anat/sub-0{i}_ses-0{s}_T1w.nii.gz" for i in SLICES for s in (1, 2)]
    assert found(paths) == ["sub-00", "sub-01", "sub-02", "sub-03"]
    assert found([PurePath(path).name for path in paths]) == ["sub-00", "sub-01", "sub-02", "sub-03"]
    many = [f"sub-{i:02}/anat/sub-{i:02}_T1w.nii.gz" for i in range(30)]
    assert found([*many, "P1_1.nii", "P1_2.nii"])[-1] is None


def test_a_barcode_of_the_cancer_genome_atlas_names_the_patient_of_each_slide_and_tile() -> None:
    paths = [
        f"TCGA-{p}-01Z-00-DX{k}_{x}_0.png" for p in ("18-5592", "A7-A13E", "A7-A13F") for k in (1, 2) for x in (0, 9)
    ]
    assert found(paths) == ["TCGA-18-5592", "TCGA-A7-A13E", "TCGA-A7-A13F"]


def test_a_date_before_a_patient_s_name_is_none() -> None:
    assert found([f"2021030{v}_{p}/s_{i}.png" for p in SIX for v in (1, 2) for i in SLICES]) == SIX
    assert found([f"2021-03-0{v}_{p}_{v}.png" for p in SIX for v in (1, 2)]) == SIX


def test_a_patient_written_in_two_ways_is_one() -> None:
    assert found([f"{f(p)}/{f(p)}.png" for p in SIX for f in (str, str.lower)]) == SIX
    assert found([f"{p}.NII.GZ" for p in SIX]) == SIX
    assert found([f"2020/{p}/a.png" for p in SIX] + [f"2021/{p.lower()}/a.png" for p in SIX]) == SIX


@pytest.mark.parametrize(
    "names",
    [
        [f"Patient_{i:03}.nii.gz" for i in range(9)],
        [f"ISIC_{i:07}.jpg" for i in range(9)],
        [f"{c}/{c} ({i}).png" for c in ("benign", "malignant", "normal") for i in range(3)],
        [f"IMG_2021030{i}_00{i}.png" for i in range(9)],
        [f"202{i % 3}_00{i}.png" for i in range(9)],
        [f"CXR_000{i}_{i % 2}.png" for i in range(9)],
        [f"fold{i // 3}_{i % 3}.png" for i in range(9)],
        [f"{head}{i}.png" for i in range(3) for head in ("00ae65c", "1b44d22e", "2cf9a8b")],
    ],
)
def test_a_number_alone_is_a_patient_and_the_word_before_it_is_none(names: list[str]) -> None:
    assert len(found(names)) == 9


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([f"P{p}/s_{i}.png" for p in (1, 2) for i in SLICES], "2 folder"),
        ([f"P{p}_{i}.png" for p in (1, 2) for i in SLICES], "2 patient"),
        ([f"P1_{i}.png" for i in range(20)], "1 patient"),
        ([f"scan_slice_{i}.png" for i in range(20)], "names of slices without a patient"),
        ([f"P{p}_{i}.png" for p in (1, 2, 3) for i in range(133)], "only 3 patients"),
        ([f"P{p}/{i}.png" for p in (1, 2, 3) for i in range(133)], "only 3 patients"),
        ([f"{c}/{i}.png" for c in ("benign", "malignant", "normal") for i in SLICES], "in several folders"),
        ([f"{year}/img_{i}.png" for year in (2020, 2021, 2022) for i in SLICES], "in several folders"),
        ([f"{p}/slice_{i}.png" for p in ("Meier", "Kim", "Lee") for i in SLICES], "patients or classes"),
        ([f"{p}/{p}_{i}.png" for p in ("Meier", "Kim", "Lee") for i in SLICES], "patients or classes"),
        ([f"{t}/{p}/scan.png" for t in ("baseline", "M6", "M12") for p in SIX], r"also inside others \(P1, P2"),
        ([f"{t}/{p}/scan.png" for t in ("T0", "T1", "T2") for p in SIX], r"also inside others \(P1, P2"),
        ([f"{t}/{p}/s_{i}.png" for t in ("baseline", "M6") for p in (12, 13, 6) for i in SLICES], "also inside others"),
        ([f"{t}/00{p}/scan.png" for t in ("T0", "T3", "T6") for p in range(12, 18)], "0012, 0013, 0014 and 3 more in"),
        ([f"{p}_{k}/{i}.png" for p in ("Meier", "Kim", "Lee") for k in (1, 2) for i in SLICES], "begin with Kim, Lee"),
        ([f"{p}/exam_{e}/{i}.png" for p in ("Meier", "Kim", "Lee") for e in (1, 2) for i in SLICES], "or classes"),
        ([f"{p}_{i}.png" for p in ("Meier", "Kim", "Lee") for i in SLICES], "begin with Kim, Lee, Meier"),
        ([f"{p}_{part}.png" for p in ("Meier", "Kim") for part in ("oben", "unten")], "begin with kim, meier each"),
        ([f"{p} {part}.png" for p in ("Meier", "Kim") for part in ("oben", "mitte")], "begin with kim, meier each"),
        ([f"{p}_{part}.png" for p in ("abcd", "efgh", "ijkl") for part in "ab"], "begin with abcd, efgh, ijkl each"),
        ([f"{end}_{p}.png" for p in ("Meier", "Kim") for end in ("links", "rechts")], "begin with kim, meier each"),
        ([f"{p}{part}.png" for p in ("Meier", "Kim") for part in ("", "_unten")], "begin with kim, meier each"),
        ([f"{p}_{part}.png" for p in ("Meier", "Kim") for part in (1, "oben")], "begin with Kim, Meier each"),
        ([*(f"{p}_1.png" for p in ("Meier", "Kim", "Lee")), "meier_2.png", "kim_2.png"], "begin with Kim, Meier each"),
        (["Mu\u0308ller_1.png", "M\u00fcller_2.png", "Kim_1.png", "Kim_2.png"], "begin with Kim, Mu\u0308ller each"),
        ([f"a_{p}_{part}.png" for p in ("Meier", "Kim") for part in ("oben", "unten")], "begin with kim, meier each"),
        ([*(f"Meier_{i}.png" for i in (1, 2, 3)), *(f"{p}_1.png" for p in SURNAMES)], "begin with Meier, in 7 files"),
        (
            [*(f"Meier_{t}.png" for t in ("baseline", "visit2")), *(f"{p}.png" for p in SURNAMES)],
            "begin with meier, in",
        ),
        ([f"Meier_{year}.png" for year in (2020, 2021)] + ["Kim.png", "Lee.png"], "begin with Meier, in 4 files"),
        ([f"{p}_{year}.png" for p in "XYZ" for year in range(2001, 2030)], "begin with X, Y, Z each"),
        ([*(f"P{i}.png" for i in range(9)), *(f"{p}_{e}.png" for p in "AB" for e in "xy")], "begin with P, a, b each"),
        ([f"lab{k}/P{k}{p}/{i}.png" for k in range(3) for p in range(5) for i in SLICES], "in them 15"),
        ([f"P{p}/{i}.png" for p in (1, 2, 3) for i in SLICES] + [f"{i}.png" for i in range(6)], "outside the folders"),
        ([f"slide{k}_{x}_{y}.png" for k in (1, 2, 3) for x in (0, 256) for y in (0, 256)], "slide1_0, slide1_256"),
        ([f"slide{k}_x{x}_y{y}.png" for k in (1, 2, 3) for x in (0, 256) for y in (0, 256)], "slide1_x0_y0"),
        ([f"P{p}S{i}.png" for p in (1, 2, 3) for i in SLICES], "P1S0, P1S1"),
        ([f"slice{i}_P{p}.png" for p in (1, 2, 3) for i in SLICES], "slice0_P1"),
        ([f"{p}{part}.png" for p in (101, 102, 103) for part in "abc"], "101a, 101b"),
        ([f"P{p}{end}.png" for p in (1, 2, 3) for end in ("", "_flip", "_rot90")], "P1, P1_flip"),
        ([f"P{p}{end}.png" for p in (1, 2, 3) for end in ("", " (1)")], r"P1, P1 \(1\)"),
        ([f"00{p}_{k}HC.png" for p in (1, 2, 3) for k in ("", 2)], "001_2HC, 001_HC"),
        (["T0/0012/a", "T0/0013/a", "T0/0014/a", "T3/0012/a", "T6/0013/a"], "0012, 0013 in several of 3 folders"),
        ([f"Q{q}/{p}/a" for q in (1, 2) for p in ("Meier", f"Kim{q}")], r"meier in several of 2 folders \(Q1, Q2"),
        ([f"ward{w}/{p}/a" for w in (1, 2, 3) for p in (17, w)], "17 in several of 3 folders"),
        ([f"Raum {r}/{p} 1956/a" for r in (1, 2, 3) for p in ("Meier Hans", f"Kim{r}")], "meier hans 1956 in several"),
        ([f"Woche {w}/{p}.png" for w in (1, 2, 3) for p in ("Meier", "Kim", "Lee")], "kim, lee, meier in several of 3"),
        ([f"Woche {w}/{p}_{w}.png" for w in (1, 2, 3) for p in ("Meier", SURNAMES[w])], "meier in several of 3"),
        ([f"{i:03d} {p}.png" for i, p in enumerate(("Meier Hans", "Huber Eva", "Meier Hans"))], "begin with meier, in"),
        ([f"{i}_{p}.png" for i, p in enumerate(("Meier", "Huber", "Meier", "Kim"))], "begin with meier, in"),
        ([f"OP{i}_{p}.png" for i, p in enumerate(("Meier", "Huber", "Meier", "Kim"))], "begin with meier, in"),
        ([f"{i:03d} {p}/a" for i, p in enumerate(["Meier"] * 8 + ["Kim", "Lee"])], "begin with meier, in"),
        ([f"{p}_{zoom}x.png" for p in SURNAMES for zoom in (20, 40)], "begin with adler, braun, fuchs and 1 more each"),
        ([f"{p}-{depth}cm.png" for p in SURNAMES for depth in (10, 20)], "begin with adler, braun, fuchs and 1 more"),
        ([f"{p} 1956 {part}.png" for p in SURNAMES for part in ("oben", "Mitte")], "begin with adler, braun, fuchs"),
        ([f"{p}_Bild{i}_{e}.png" for p in SURNAMES for i, e in ((1, "vorn"), (2, "quer"))], "begin with adler, braun"),
        ([f"{p}_19560312{end}/a" for p in SURNAMES for end in ("", "_2")], "begin with adler, braun, fuchs and 1 more"),
        (
            ["Lee_An_19900101/a", "Lee_An_20010101/a", *(f"{p}_Jo_19600101/a" for p in SURNAMES)],
            "Lee_An_19900101 and Lee_An_20010101, which may be two persons' dates of birth",
        ),
        ([f"GLI-0000{p}-00{v}/t1.nii" for p in (1, 2, 3) for v in (0, 1)], "GLI-00001-000, GLI-00001-001"),
    ],
)
def test_what_could_be_otherwise_is_asked_with_the_ways_to_answer(names: list[str], said: str) -> None:
    with pytest.raises(UserFault, match=said) as caught:
        grouped([PurePath(name) for name in names])
    assert all(way in caught.value.do for way in ("--patient folder", "--patient each", "--patient REGEX"))


@pytest.mark.parametrize(
    "names",
    [
        ["Meier", "Kim", "Lee", "Huber"],
        ["Meier_Hans", "Kim_Jo", "Lee_Ann", "Huber_Eva"],
        ["Meier_Hans", "Meier_Eva", "Lee_Ann", "Huber_Eva"],
        [f"scan_{who}" for who in ("Meier", "Kim", "Lee")],
        [
            f"{kind}_{who}"
            for kind, who in zip(("benign", "malignant") * 2, ("Beck", "Kim", "Lee", "Wolf"), strict=True)
        ],
    ],
    ids=lambda names: names[-1],
)
def test_words_that_begin_no_other_names_ask_nothing(names: list[str]) -> None:
    assert found([f"{name}.png" for name in names]) == sorted(names)


@pytest.mark.parametrize(
    "form",
    [
        "P{p}/{end}.png",
        "{end}/P{p}/a.png",
        "sub-{p}/{end}.nii",
        "sub-{p}_{end}.nii",
        "P{p}_{end}.png",
        "P{p}_{k}.png",
        "case_{p}/{k}.png",
        "{p}.{end}.png",
    ],
)
def test_numbers_with_and_without_leading_zeros_are_asked_about(form: str) -> None:
    ends = enumerate(("ct", "pet", "us"), 1)
    names = [form.format(p=f"{p:0{1 + k // 2}d}", end=end, k=k) for k, end in ends for p in range(1, 10)]
    with pytest.raises(UserFault, match="leading zeros") as caught:
        found(names)
    assert caught.value.do.startswith("write each patient's number in one way")


@pytest.mark.parametrize(
    "form",
    [
        "P{p:02d}_{s}.png",
        "{p:02d}_{s}.png",
        "{p:03d}/{s}/a.png",
        "{p}/{s}/a.png",
        "M{p:02d}/{s}/a.png",
        "T{p:02d}_T{s}.png",
    ],
)
def test_a_number_of_another_meaning_needs_no_leading_zeros(form: str) -> None:
    assert len(found([form.format(p=p, s=s) for p in range(1, 13) for s in (1, 2)])) == 12


def test_folders_of_plain_words_above_some_patients_are_no_question() -> None:
    assert found([f"{above}{p}/scan.png" for above in ("png/", "fluoro/") for p in SIX]) == SIX


def test_visits_with_numbers_of_any_padding_are_no_question() -> None:
    assert found([f"{p}/visit{v}/{i}.png" for p in SIX for v in ("1", "02") for i in SLICES]) == SIX


@pytest.mark.parametrize("form", ["{p:04d}/{part}.png", "P{p}/{part}/a.png", "HC{p:02d}/{part}.png"])
def test_parts_of_the_body_in_each_patient_s_folder_are_no_question(form: str) -> None:
    assert len(found([form.format(p=p, part=part) for p in range(1, 9) for part in ("Thorax", "Becken")])) == 8


@pytest.mark.parametrize("parts", [("Thorax", "Becken"), ("Study1",), ("portal", "arterial"), ("LCC", "RCC", "LMLO")])
def test_nor_if_one_patient_has_one_part_more(parts: tuple[str, ...]) -> None:
    more = ["K003/Other/a.png"]
    assert len(found([*(f"K{p:03d}/{part}/a.png" for p in range(1, 13) for part in parts), *more])) == 12


@pytest.mark.parametrize("form", ["K{p:03d}/CT_{y}0301.png", "P{p:02d}/MRI-{y}-03-01.png", "IMG_{y}03{p:02d}.png"])
def test_dates_of_examinations_years_apart_are_no_question(form: str) -> None:
    assert len(found([form.format(p=p, y=2000 + p) for p in range(1, 21)])) == 20


def test_nor_are_those_of_one_subject() -> None:
    assert len(found([f"sub-{p:02d}_{y}0101.png" for p in range(1, 13) for y in (2005, 2020)])) == 12


def test_examinations_that_are_counted_below_numbers_are_no_question() -> None:
    assert len(found([f"{p}/{e}/a.png" for p in range(1, 9) for e in range(1, p + 1)])) == 8


def test_groups_of_patients_are_no_surnames() -> None:
    assert (
        len(found([f"{group}_{i:02d}/t1/{k}.png" for group in ("HC", "PD") for i in range(1, 9) for k in "ab"])) == 16
    )
    assert len(found([*(f"pic_{i}.png" for i in range(20)), "extra.png"])) == 21


@pytest.mark.parametrize("form", ["{}_{}.png", "{}_{}/s1.png", "{}_{}_1.png", "{}_{}/s1/a.png"])
def test_a_year_behind_the_names_of_several_people_is_cut(form: str) -> None:
    names = [form.format("Meier", year) for year in (2020, 2021)] + [form.format(who, 2021) for who in SURNAMES]
    assert found(names) == sorted([*SURNAMES, "Meier"])


def test_the_user_s_answer_is_taken() -> None:
    names = [PurePath(f"cohort/{p}/images/slice_{i}.png") for p in ("Meier", "Kim", "Lee") for i in SLICES]
    assert sorted(set(map(str, by_level(names).keys))) == ["Kim", "Lee", "Meier"]
    assert len(set(by_file(names).keys)) == 12


def test_folders_of_patients_inside_those_of_visits_are_not_taken_for_both() -> None:
    with pytest.raises(UserFault, match=r"also inside others \(P1, P2, P3 and 3 more\)") as caught:
        by_level([PurePath(f"{visit}/{p}/scan.png") for visit in ("baseline", "M6") for p in SIX])
    assert "--patient '(?:^|/)(P[0-9]+)/'" in caught.value.do


def test_one_file_outside_the_patients_folders_is_left_out_and_named() -> None:
    names = [f"cohort/{p}/images/slice_{i}.png" for p in SIX for i in SLICES] + ["extra.png"]
    kept, dropped, words = told_apart([Case(name, (), (Path("m.png"),)) for name in names])
    assert [d.file for d in dropped] == ["extra.png"]
    assert {case.patient for case in kept} == {f"name:{p}" for p in SIX}
    assert ", such as P1 in cohort/P1/images/slice_0.png" in words


def test_a_name_that_is_a_patient_id_of_the_dicom_files_is_that_patient() -> None:
    cases = [Case(f"{p}/t1", (), (Path("m.dcm"),), patient=p) for p in SIX] + [
        Case(f"{p.lower()}/t2.nii", (), (Path("m.nii"),)) for p in SIX
    ]
    assert {case.patient for case in told_apart(cases)[0]} == set(SIX)


@pytest.mark.parametrize("above", ["cohort/", "2020/"])
def test_no_patient_of_a_wrapped_folder_sits_in_two_splits(tmp_path: Path, above: str) -> None:
    for k, p in enumerate(SIX):
        for i in SLICES:
            image = scan(10 * k + i, (9, 8)).astype(np.uint8)
            picture(tmp_path / f"in/{above}{p}/images/slice_{i}.png", image)
            picture(tmp_path / f"in/{above}{p}/masks/slice_{i}.png", lesion(i, (9, 8, 3))[..., 1])
    report = prepare([tmp_path / "in"], None, Wish())
    assert report["patients"] == 6
    assert sum(split["patients"] for split in report["splits"].values()) == 6
    assert prepare([tmp_path / "in"], None, Wish(patient="each"))["patients"] == 24


def test_no_patient_of_names_without_a_number_sits_in_two_splits(tmp_path: Path) -> None:
    for k, (who, side) in enumerate((who, side) for who in "ABCDEF" for side in ("links", "rechts")):
        picture(tmp_path / f"in/Meier{who}_{side}.png", scan(k, (9, 8)).astype(np.uint8))
        picture(tmp_path / f"in/Meier{who}_{side}_mask.png", lesion(k, (9, 8, 3))[..., 1])
    report = prepare([tmp_path / "in"], None, Wish())
    assert (report["cases"], report["patients"]) == (12, 6)
    assert "A name without its side, date or sequence is the patient" in report["patients_by"]


@pytest.mark.parametrize(
    "names",
    [
        [*(f"p{p}s{i}.png" for p in range(1, 7) for i in range(5)), "p6s4 (1).png"],
        [f"{10000 + p}_{90000 + 7 * p + i}.png" for p in range(20) for i in range(2)],
        [f"{90000 + 7 * p + i}_{10000 + p}.png" for p in range(20) for i in range(2)],
        [f"P{p:02d}_202001{p:02d}_12{i:02d}{p:02d}.png" for p in range(1, 9) for i in range(2)],
        [f"A{p}S9V9_{phase}.png" for p in range(8) for phase in ("ED", "ES")],
        [f"{eye}{p:03d}.png" for p in range(1, 21) for eye in ("OD", "OS")],
        [f"{side}{p:03d}.png" for p in range(1, 9) for side in "LR"],
        [f"{kind}{p:03d}.png" for p in range(1, 9) for kind in ("flair", "t2")],
        [f"{when}_{p:03d}.png" for p in range(1, 9) for when in ("pre", "post")],
    ],
    ids=lambda names: names[0],
)
def test_a_number_that_repeats_may_be_the_patient_s_beside_one_that_never_does(names: list[str]) -> None:
    with pytest.raises(UserFault, match="which may belong to one patient"):
        found(names)


@pytest.mark.parametrize(
    "dates", [("20200101", "20200102"), ("01.01.2020", "02.01.2020"), ("2020-01-01", "2020-01-02")]
)
def test_folders_of_a_person_and_a_date_are_one_patient(dates: tuple[str, ...]) -> None:
    people = ["Beck_Eva", "Kunz_Jo", "Meier_Hans", "Wolf_Ida"]
    assert found([f"{who}_{date}/s{i}.png" for who in people for date in dates for i in SLICES]) == people


def test_letters_before_a_number_are_no_sequence_that_they_end_with() -> None:
    """Two sites' patients, pt101 and pt201: no t1 and t2 of one p01."""
    assert len(found([f"pt{site}{p:02d}.png" for site in (1, 2) for p in range(1, 10)])) == 18


def test_counters_that_look_like_years_and_single_numbers_are_no_dates() -> None:
    assert len(found([f"pic_{i}.png" for i in range(1995, 2010)])) == 15
    assert len(found([f"img{i:03d}.png" for i in range(15)])) == 15


@pytest.mark.parametrize(
    "form",
    [
        "slice_{s:03d}_patient_{p}",
        "slice{s:03d}_patient{p}",
        "slice_{s}_of_patient_{p}",
        "slice_{s}_patient_no_{p}",
        "{s:03d}_patient_{p}",
        "{s:03d}_P{p}",
        "img_{s:03d}_case_{p}",
        "slice-{s}-case-{p:04d}",
        "slice_{s:03d}_subject_{p:02d}",
        "slice_{s:03d}_MRN_{p}",
        "slice_{s:03d}_{p}",
        "Slice_{s:03d}_Patient_{p}_T1",
        "z{s:03d}_p_{p:02d}",
        "ax{s:02d}_pat_{p}",
        "ax{s:02d}_{p}",
        "layer_{s}_patient_{p}",
        "IM{s:04d}_ID_{p:05d}",
        "frame_{s}_video_{p}",
        "tile_{s}_slide_{p}",
        "images/slice_{s:03d}/patient_{p}",
        "{s:03d}/patient_{p}",
        "{s:03d}/patient_{p}/scan",
        "slice_{s}/P{p}",
        "frame{s}/p{p}",
        "z{s}/{p}",
        "axial_{s}/{p}",
        "images/{s}/case_{p}",
    ],
)
def test_a_slice_that_is_named_before_its_patient_is_asked_about(form: str) -> None:
    with pytest.raises(UserFault, match="names that show which files belong to one patient"):
        found([f"{form.format(s=s, p=p)}.png" for p in range(1, 7) for s in range(5)])


@pytest.mark.parametrize(
    "form",
    ["slice_{s}/P{p}/scan", "P{p}_z{s:03d}", "P{p}_case_{s}", "P{p}_slide_{s}", "P{p}/slice_{s}/scan", "P{p}/case_{s}"],
)
def test_a_patient_that_is_named_as_one_is_found_whatever_its_parts_are_called(form: str) -> None:
    keys = found([f"{form.format(s=s, p=p)}.png" for p in range(1, 7) for s in range(5)])
    assert [str(key).partition("_")[0] for key in keys] == SIX


def test_names_of_slices_are_no_patients_by_whatever_word() -> None:
    for form in ("z{:03d}.png", "ax_{}.png", "layer{}.png", "slice_{}/scan.png"):
        with pytest.raises(UserFault):
            found([form.format(s) for s in range(30)])


def copied(home: Path, *, links: bool = False) -> Path:
    """Eight images with their masks. p00 to p03 also have other names, p20 to p23."""
    for i in range(8):
        picture(home / f"images/p{i:02d}.png", scan(i, (9, 8)).astype(np.uint8))
        picture(home / f"masks/p{i:02d}.png", lesion(i, (9, 8, 3))[..., 1])
    for kind in ("images", "masks"):
        for i in range(4):
            own, other = home / f"{kind}/p{i:02d}.png", home / f"{kind}/p{i + 20}.png"
            other.symlink_to(own.name) if links else other.write_bytes(own.read_bytes())
    return home


@pytest.mark.parametrize("links", [False, True])
def test_patients_with_a_copy_of_one_image_are_one_patient_and_told(tmp_path: Path, links: bool) -> None:
    report = prepare([copied(tmp_path / "in", links=links)], tmp_path / "out", Wish())
    assert (report["cases"], report["patients"]) == (12, 8)
    assert any("4 image(s) are copies of another patient's image (such as" in note for note in report["notes"])
    rows = [row for split in datalist.read(tmp_path / "out/datalist.csv").values() for row in split]
    homes = {((tmp_path / "out" / row.image).read_bytes(), row.split, row.group) for row in rows}
    assert len(homes) == 8
    assert ",p00 and p20,p-" in (tmp_path / "out/names.csv").read_text()


def test_a_copy_is_known_whatever_its_type_of_numbers_or_number_of_equal_channels() -> None:
    grey = np.random.default_rng(0).integers(0, 255, (9, 8, 2), np.uint8)
    colour = np.random.default_rng(1).integers(0, 255, (9, 8, 2, 3), np.uint8)
    same = [*(grey.astype(kind) for kind in ("u1", "i2", "u2", "f4")), np.repeat(grey[..., None], 3, -1)]
    assert len({fingerprint(values) for values in same}) == 1
    tenths = np.asfortranarray(grey / np.float32(10))
    assert fingerprint(tenths) == fingerprint(np.ascontiguousarray(tenths))
    assert len({*map(fingerprint, (grey, grey[::-1], tenths, colour, colour[..., ::-1]))}) == 5


def test_blank_images_are_no_copies_of_each_other(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"images/p{i}.png", np.zeros((9, 8), np.uint8))
        picture(tmp_path / f"masks/p{i}.png", lesion(i, (9, 8, 3))[..., 1])
    report = prepare([tmp_path], None, Wish())
    assert report["patients"] == 4
    assert not any("copies" in note for note in report["notes"])


def test_a_datalist_with_copies_in_two_splits_is_refused_until_the_splits_are_drawn_anew(tmp_path: Path) -> None:
    home = copied(tmp_path / "in")
    rows = [Row(f"images/p{i:02d}.png", f"masks/p{i:02d}.png", s, f"p{i}") for i, s in enumerate(datalist.SPLITS)]
    rows.append(Row("images/p20.png", "masks/p20.png", "test", "p20"))
    datalist.write_csv(home / "datalist.csv", rows)
    with pytest.raises(UserFault, match=r"copies: images/p00\.png in train and images/p20\.png in test"):
        prepare([home], None, Wish())
    assert prepare([home], None, Wish(shares=(0.4, 0.3, 0.3)))["patients"] == 3


@pytest.mark.parametrize("said", [r"(p\d)[a-z]?\.png", "folder"])
def test_a_patient_of_the_user_s_in_two_splits_of_a_datalist_is_refused_until_the_splits_are_drawn_anew(
    tmp_path: Path, said: str
) -> None:
    rows = []
    for i, (name, split) in enumerate({"1/p1": "test", "1/p1b": "train", "2/p2": "train", "3/p3": "val"}.items()):
        picture(tmp_path / f"{name}.png", scan(i, (9, 8)).astype(np.uint8))
        picture(tmp_path / f"{name}_m.png", lesion(i, (9, 8, 3))[..., 1])
        rows.append(Row(f"{name}.png", f"{name}_m.png", split, name))
    datalist.write_csv(tmp_path / "datalist.csv", rows)
    assert prepare([tmp_path], None, Wish())["patients"] == 4
    with pytest.raises(UserFault, match=r"1/p1\.png in test and 1/p1b\.png in train, both of p?1") as caught:
        prepare([tmp_path], None, Wish(patient=said))
    assert "--split" in caught.value.do
    assert prepare([tmp_path], None, Wish(patient=said, shares=(0.4, 0.3, 0.3)))["patients"] == 3


def two_wards(top: Path, kinds: tuple[str, str] = ("images", "masks")) -> list[Path]:
    """Two folders with three images each, of the same names."""
    for k, (ward, i) in enumerate((ward, i) for ward in "AB" for i in range(3)):
        picture(top / f"{ward}/{kinds[0]}/{i}.png", scan(k, (9, 8)).astype(np.uint8))
        picture(top / f"{ward}/{kinds[1]}/{i}.png", lesion(k, (9, 8, 3))[..., 1])
    return [top / "A", top / "B"]


def test_names_that_repeat_in_two_given_folders_are_asked_about(tmp_path: Path) -> None:
    homes = two_wards(tmp_path)
    for folders in (homes, [home / kind for home in homes for kind in ("images", "masks")]):
        with pytest.raises(UserFault, match="each patient in one of the given folders") as caught:
            prepare(folders, None, Wish())
        assert "0 in A/" in caught.value.came
        assert caught.value.came.endswith("0.png")
    ways = [word.strip("';,") for word in caught.value.do.split() if "'" in word]
    assert [prepare(homes, None, Wish(patient=way))["patients"] for way in (*ways, "each")] == [6, 3, 6]
    picture(tmp_path / "C/x.png", scan(9, (9, 8)).astype(np.uint8))
    picture(tmp_path / "C/x_mask.png", lesion(9, (9, 8, 3))[..., 1])
    report = prepare([*homes, tmp_path / "C"], None, Wish(patient="folder"))
    assert (report["patients"], report["cases"]) == (3, 7)


def test_messages_name_the_given_folder_too_if_there_are_several(tmp_path: Path) -> None:
    homes = two_wards(tmp_path)
    picture(tmp_path / "B/masks/1.png", np.zeros((3, 3), np.uint8))
    assert prepare(homes, None, Wish(patient="(.+/[0-9]+)"))["dropped"][0]["file"] == "B/images/1.png"
