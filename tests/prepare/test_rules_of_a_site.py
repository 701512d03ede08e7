"""Patients, splits and labels: each rule by itself."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfedsam.errors import UserFault
from pfedsam.prepare.classes import check_by_name, numbered, parse_names
from pfedsam.prepare.found import Case
from pfedsam.prepare.labels import LabelRule, halved, label_numbers, parse_table, translated, understood
from pfedsam.prepare.patients import by_issuer, by_pattern, pseudonym, told_apart
from pfedsam.prepare.splits import drawn, parse_shares

HERE = Path("mask.png")


def patients(*names: str, ids: tuple[str, ...] = ()) -> tuple[list[str], str]:
    known = [*ids, *[""] * (len(names) - len(ids))]
    told, _, words = told_apart([Case(n, (), (HERE,), i) for n, i in zip(names, known, strict=True)])
    return [case.patient.removeprefix("name:") for case in told], words


def test_a_slice_number_is_no_patient() -> None:
    assert patients("p1_1.png", "p1_2.png", "p2_1.png", "p3_1.png")[0] == ["p1", "p1", "p2", "p3"]
    assert patients("A1_slice_07.png", "A1_slice_08.png", "B1_s3.png", "C1-z12.png")[0] == ["A1", "A1", "B1", "C1"]


def test_a_number_that_is_the_patient_stays() -> None:
    names = ["case_01.nii.gz", "case_02.nii.gz", "case_03.nii.gz"]
    keys, words = patients(*names)
    assert keys == ["case_01", "case_02", "case_03"]
    assert "--patient REGEX" in words


def test_a_constant_prefix_with_a_digit_tells_nobody_apart() -> None:
    assert len(set(patients("site2_case_01.png", "site2_case_02.png", "site2_case_03.png")[0])) == 3


def test_sub_folders_are_patients_and_splits_are_not() -> None:
    assert patients("p1/images/a.png", "p2/images/a.png", "p3/images/b.png")[0] == ["p1", "p2", "p3"]
    assert patients("train/images/7.png", "test/images/7.png", "val/images/8.png")[0] == ["7", "7", "8"]


def test_a_dicom_id_goes_before_the_name() -> None:
    keys, words = patients("a/t1", "a/t2", "b.nii", ids=("ID-1", "ID-1"))
    assert keys == ["ID-1", "ID-1", "b"]
    assert "PatientID" in words


@pytest.mark.parametrize("form", ["{}/a", "dicom/{}/a", "2020/{}/study/a", "{}", "{}_ct"])
@pytest.mark.parametrize("other", ["{}/b", "png/{}/scan.png", "{}.nii", "{}/study/b"])
def test_a_file_without_an_id_is_of_the_patient_whose_id_is_below_its_patient_s_folder(form: str, other: str) -> None:
    people = [f"P{i}" for i in range(1, 7)]
    names = [form.format(p) for p in people] + [other.format(p) for p in people]
    keys, words = patients(*names, ids=tuple(f"X{p}" for p in people))
    assert keys[6:] == keys[:6] == [f"X{p}" for p in people]
    assert "or another one in the same patient's folder" in words


def test_an_id_that_differs_from_the_folder_only_in_leading_zeros_is_taken_if_it_is_below_the_folder() -> None:
    names = [
        *(f"png/P{i}/b" for i in range(1, 7)),
        *(f"z/P{i}/b" for i in range(1, 7)),
        *(f"z/P{i}/a" for i in range(1, 7)),
    ]
    told, _, _ = told_apart([Case(n, (), (HERE,), f"P0{n[-3]}" if n[-1] == "a" else "") for n in names])
    assert [case.patient for case in told] == [f"P0{i}" for i in range(1, 7)] * 3


def test_a_folder_without_an_id_of_its_own_is_a_patient_by_its_name() -> None:
    names = [f"P{i}/{series}" for i in range(1, 7) for series in "ab"]
    keys, _ = patients(*names, ids=("X1", "X1", "X2"))
    assert keys == ["X1", "X1", "X2", "X2", *(f"P{i}" for i in range(3, 7) for _ in "ab")]


@pytest.mark.parametrize(
    ("known", "count"),
    [({"P1/a": "X1", "P1/b": "X2"}, 2), ({"P1/a": "X1", "q/t1": "P1"}, 2), ({"q/t1": "P01"}, 1)],
    ids=["two below", "one below and one of its name", "one but for zeros"],
)
def test_a_file_without_an_id_that_may_be_of_several_patients_is_asked_about(known: dict[str, str], count: int) -> None:
    names = [*known, *(f"P{i}/c" for i in range(1, 7))]
    with pytest.raises(UserFault, match=rf"came {count} that may be P1's, for P1/c"):
        patients(*names, ids=tuple(known.values()))


def test_an_issuer_tells_patients_apart_only_where_each_series_of_the_id_has_one() -> None:
    alone, words = by_issuer([("P1", "A"), ("P1", ""), ("P2", "A"), ("P2", "A"), ("P3", "")])
    assert alone == ["P1", "P1", "P2", "P2", "P3"]
    assert len(words) == 1
    assert "1 PatientID(s) have an issuer in some series only" in words[0]
    apart, words = by_issuer([("P1", "A"), ("P1", "B"), ("P1", "A"), ("P2", "B")])
    assert apart == ["P1 (A)", "P1 (B)", "P1 (A)", "P2"]
    assert "each PatientID with its issuer is a patient" in words[0]
    joined, words = by_issuer([("P1", "A"), ("P1", "B"), ("P1", "")])
    assert joined == ["P1", "P1", "P1"]
    assert "all series of such an ID are one patient" in words[0]
    assert by_issuer([("", "A"), ("", "")]) == (["", ""], [])


def test_masks_of_two_meanings_are_named_with_a_file_of_each() -> None:
    with pytest.raises(UserFault, match=r"2 mask\(s\) of 0 and 255 \(such as a\), and 1 with 1 \(such as b\)"):
        understood([{0: 9, 255: 9}, {0: 9, 1: 9}, {0: 9, 255: 9}], None, None, names=["a", "b", "c"])


def test_a_pattern_must_catch_something() -> None:
    cases = [Case("p1_2.png", (), (HERE,)), Case("other.png", (), (HERE,))]
    kept, dropped, _ = by_pattern(cases, r"^(p\d)_")
    assert ([c.patient for c in kept], [d.file for d in dropped]) == (["p1"], ["other.png"])
    for wrong in (r"p\d", r"(p\d"):
        with pytest.raises(UserFault):
            by_pattern(cases, wrong)


def test_patients_by_a_pattern_that_differ_only_in_leading_zeros_are_asked_about() -> None:
    cases = [Case(name, (), (HERE,)) for name in ("P1.png", "P01_b.png", "P2.png")]
    with pytest.raises(UserFault, match=r"P1 in P1\.png and P01 in P01_b\.png") as caught:
        by_pattern(cases, r"(P\d+)")
    assert "'P0*([0-9]+)'" in caught.value.do
    assert [case.patient for case in by_pattern(cases, r"P0*(\d+)")[0]] == ["1", "1", "2"]


@pytest.mark.parametrize("said", [None, "folder", r"^(?:.*/)?([^/]+)/"])
@pytest.mark.parametrize(("one", "other"), [("P1", "p1"), ("M\u00fcller1", "Mu\u0308ller1")])
def test_a_patient_in_two_spellings_is_one_patient_by_whatever_rule(said: str | None, one: str, other: str) -> None:
    names = [f"{who}/s{i}.png" for who in (one, other, "P2", "P3", "P4") for i in range(2)]
    kept, _, _ = told_apart([Case(name, (), (HERE,)) for name in names], said)
    assert [case.patient.removeprefix("name:") for case in kept[:4]] == [one] * 4
    known = [Case(f"{i}.dcm", (), (HERE,), patient) for i, patient in enumerate((one, other, "P2"))]
    assert [case.patient for case in told_apart(known)[0]] == [one, one, "P2"]
    named = [*known[1:], *(Case(f"{who}/t1.nii", (), (HERE,)) for who in ("P2", "P3", "P4", one))]
    assert told_apart(named)[0][-1].patient == other
    assert by_issuer([(one, "A"), (other, "")])[0] == [one, one]


def test_each_image_is_a_patient_if_the_user_says_so_in_whatever_spelling() -> None:
    cases = [Case(name, (), (HERE,)) for name in ("a/P1.png", "a/p1.png")]
    assert len({case.patient for case in told_apart(cases, "each")[0]}) == 2


def test_a_pseudonym_does_not_give_the_patient_away() -> None:
    assert pseudonym("ID-1", b"a") == pseudonym("ID-1", b"a") != pseudonym("ID-1", b"b")
    assert "1" * 6 not in pseudonym("111111", b"a")


@given(st.integers(3, 60), st.integers(0, 99), st.tuples(*[st.floats(0.01, 1)] * 3))
def test_no_split_is_empty_and_each_patient_has_one(count: int, seed: int, shares: tuple[float, float, float]) -> None:
    total = sum(shares)
    found = drawn([str(i) for i in range(count)], tuple(s / total for s in shares), seed=seed, known_by="by name")
    assert set(found.values()) == {"train", "val", "test"}
    assert len(found) == count


def test_shares_are_kept_to() -> None:
    found = list(drawn([str(i) for i in range(100)], parse_shares("70,10,20"), seed=3, known_by="by name").values())
    assert [found.count(split) for split in ("train", "val", "test")] == [70, 10, 20]
    for wrong in ("1,2", "a,b,c", "1,0,1", "nan,1,1"):
        with pytest.raises(UserFault):
            parse_shares(wrong)


def masks(*values: set[int], pixels: int = 100) -> list[dict[int, int]]:
    return [dict.fromkeys(one, pixels) for one in values]


@pytest.mark.parametrize(
    ("usual", "odd", "rule"),
    [
        ({0, 255}, {0: 900, 255: 90, 3: 1}, LabelRule(1, white=True)),
        ({0, 255}, {0: 900, 255: 90, 1: 1}, LabelRule(1, white=True)),
        ({0, 255}, {0: 900, 3: 90}, LabelRule(1, white=True)),
        ({0, 1}, {0: 900, 255: 90}, LabelRule(1)),
        ({0, 1}, {0: 900, 1: 90, 255: 90}, LabelRule(1)),
        ({0, 1, 2, 3}, {0: 900, 2: 9, 255: 1}, LabelRule(3)),
        ({0, 1, 2, 3}, {0: 900, 17: 90}, LabelRule(3)),
        ({0, 1}, {0: 900, 7: 1}, LabelRule(1)),
    ],
)
def test_one_odd_mask_of_eight_does_not_decide_for_the_site_and_is_refused_itself(
    usual: set[int], odd: dict[int, int], rule: LabelRule
) -> None:
    assert understood([*masks(*[usual] * 7), odd], None, None) == rule
    rule.mapping(usual, HERE)
    with pytest.raises(UserFault, match="came also"):
        rule.mapping(odd, HERE)


def test_a_rare_class_that_leaves_no_gap_and_a_common_number_that_does_are_classes() -> None:
    assert understood(masks(*[{0, 1}] * 9, {0, 1, 2}), None, None) == LabelRule(2)
    assert understood(masks(*[{0, 1, 4}] * 9), None, None) == LabelRule(4)


@pytest.mark.parametrize(
    ("values", "ways"),
    [
        ([{0, 1}, {0, 255}], ["--ignore 255 if", "--labels 1=1,255=1 if all"]),
        ([{0, 255}] * 9 + [{0, 1}], ["--ignore 255 if", "--labels 1=1,255=1 if all"]),
        ([{0, 255}] * 9 + [{0, 1, 255}], ["--ignore 255 if", "--labels 1=1,255=1 if all"]),
        ([{0, 2}, {0, 255}, {0, 255}], ["--ignore 255 if", "--labels 2=1,255=2 if each"]),
        ([{0, 127, 255}, {0, 255}], ["--labels 127=1,255=1 if all", "--labels 127=1,255=2 if each"]),
        ([set(range(30, 256)), {0, 255}], ["--labels '*=1' if all"]),
    ],
)
def test_255_beside_masks_of_other_values_is_asked_about_with_the_ways_to_say_what_these_mean(
    values: list[set[int]], ways: list[str]
) -> None:
    with pytest.raises(UserFault) as caught:
        understood(masks(*values), None, None)
    assert all(way in caught.value.do for way in ways)
    assert ("--ignore" in caught.value.do) == (ways[0].startswith("--ignore"))
    for way in ways[1:]:
        said = {-1 if key == "*" else int(key): n for key, n in parse_table(way.split()[1].strip("'")).items()}
        assert understood(masks(*values), said, None).mapping(values[0], HERE)
    assert understood(masks(*values), None, None, ignore=255).ignore == 255


def test_what_nobody_labelled_is_written_as_255_and_is_no_class() -> None:
    rule = understood(masks({0, 1}, {0, 1, 9}, {0, 9}), None, None, ignore=9)
    assert rule == LabelRule(1, ignore=9)
    assert rule.mapping({0, 1, 9}, HERE) == {0: 0, 1: 1, 9: 255}
    for ignore, table, classes in ((0, None, None), (2, None, 2), (255, {255: 1}, None), (9, {7: 255}, None)):
        with pytest.raises(UserFault):
            understood(masks({0, 1}), table, classes, ignore=ignore)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_255_without_a_meaning_names_both_remedies(classes: int) -> None:
    own = ",".join(f"{n}={n}" for n in range(1, classes + 1))
    with pytest.raises(UserFault, match=rf"--ignore 255 if .*--labels {own},255={classes + 1} if"):
        LabelRule(classes).mapping({0, 1, 255}, HERE)


def test_a_stray_high_value_is_not_taken_for_classes() -> None:
    assert understood(masks({0, 1}, {0, 2}), None, None) == LabelRule(2)
    assert understood(masks({0, 1}, {0, 90}), None, None) == LabelRule(1)
    with pytest.raises(UserFault, match="also 90"):
        LabelRule(1).mapping({0, 90}, HERE)
    with pytest.raises(UserFault, match="also 255"):
        LabelRule(2).mapping({0, 255}, HERE)


def test_a_table_says_what_all_values_mean() -> None:
    table = {int(k): v for k, v in parse_table("255=0,128=1,0=2").items()}
    rule = understood([{0, 128, 255}], table, None)
    assert rule.classes == 2
    mapped = translated(np.array([[[0], [128], [255]]], np.int32), rule.mapping({0, 128, 255}, HERE))
    assert mapped[..., 0].tolist() == [[2, 1, 0]]
    for wrong in ("255", "=1", "3=x", "3=999", "1=255", ""):
        with pytest.raises(UserFault):
            parse_table(wrong)
    assert parse_table("1=254") == {"1": 254}


@pytest.mark.parametrize("twice", ["1=1,2=2,1=3", "1=1,01=2", "Liver=1,liver=2", "liver=1, liver=1", "*=1,*=2"])
def test_what_labels_say_twice_is_refused(twice: str) -> None:
    with pytest.raises(UserFault, match=r"each value and each name once in --labels; came .* twice"):
        parse_table(twice)


@pytest.mark.parametrize(
    ("table", "came"),
    [
        ("liver=2,tumour=1", "liver=2 in --labels, and liver as number 1 of --names"),
        ("liver=1,tumour=3", "tumour=3 in --labels, and tumour as number 2 of --names"),
        ("liver=1", "tumour as number 2 of --names, and none in --labels, which leaves it out"),
    ],
)
def test_names_that_number_a_structure_otherwise_than_labels_are_refused(table: str, came: str) -> None:
    with pytest.raises(UserFault, match=came):
        numbered({"liver": 1, "tumour": 2}, parse_table(table), ("Liver", "Tumour"))


@pytest.mark.parametrize(
    ("table", "names"), [("liver=2,tumour=1", "Tumour,Liver"), ("liver=2,tumour=1", "Krebs,Leber")]
)
def test_names_in_the_order_of_labels_or_in_another_language_are_taken(table: str, names: str) -> None:
    own, _ = numbered({"liver": 1, "tumour": 2}, parse_table(table), parse_names(names))
    assert own == {"liver": 2, "tumour": 1}


def test_the_remedy_for_labels_by_numbers_names_each_structure_once() -> None:
    with pytest.raises(UserFault) as caught:
        check_by_name({"Liver": 1, "liver": 1, "Spleen": 2}, {"1": 1}, [{}])
    assert "--labels 'Liver=1,Spleen=2'" in caught.value.do


def test_there_are_no_more_structures_than_classes() -> None:
    found = {f"organ{i}": i for i in range(1, 256)}
    with pytest.raises(UserFault, match="at most 254 structures"):
        numbered(found, None, ())
    del found["organ255"]
    assert numbered(found, None, ())[0] == found


def test_instances_become_one_class() -> None:
    assert LabelRule(1, {-1: 1}).mapping({0, 7, 300}, HERE) == {0: 0, 7: 1, 300: 1}


def test_a_jpeg_mask_is_black_and_white_or_refused() -> None:
    drawn = np.kron(np.eye(2), np.ones((16, 16)))[..., None]
    assert halved((drawn * 247 + 4).astype(np.uint8), HERE).max() == 255
    assert not halved(np.zeros((4, 4, 1), np.uint8), HERE).any()
    for grey in (drawn, drawn * 20, drawn * 128, drawn * 255 + 40 * (1 - drawn)):
        with pytest.raises(UserFault, match=r"class numbers or grey levels.*PNG from its source"):
            halved(grey.astype(np.uint8), HERE)


def test_grey_saved_as_colour_is_one_channel() -> None:
    assert label_numbers(np.ones((2, 2, 1, 3), np.uint8), HERE).shape == (2, 2, 1)
