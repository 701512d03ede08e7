"""All masks of an image make its annotation: joined, a class a structure, or the image is left out and named."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from prepare.corpus import dicom_site, nifti, picture, scan
from prepare.test_pairing import pair

from pfedsam.cli import main
from pfedsam.data import reader
from pfedsam.errors import UserFault
from pfedsam.prepare.labels import parse_table
from pfedsam.prepare.site import Wish, prepare

SHAPE = (12, 10, 3)


def square(row: int, column: int, value: int = 1, shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    mask = np.zeros(shape, np.uint8)
    mask[row : row + 3, column : column + 3] = value
    return mask


def ultrasound(folder: Path, ends: dict[str, NDArray[np.uint8]]) -> Path:
    """Four pictures; the second has the masks of `ends`."""
    for i in range(4):
        picture(folder / f"benign ({i}).png", scan(i, (12, 10)).astype(np.uint8))
        masks = ends if i == 1 else {"_mask": square(0, 0, 255, (12, 10))}
        for end, mask in masks.items():
            picture(folder / f"benign ({i}){end}.png", mask)
    return folder


@pytest.mark.parametrize(
    "ends", [("_mask", "_mask_1"), ("_mask1", "_mask2"), ("_mask-01", "_mask-02"), ("_seg_1", "_seg_2")]
)
def test_numbered_masks_of_a_picture_are_joined(tmp_path: Path, ends: tuple[str, str]) -> None:
    one, other = square(0, 0, 255, (12, 10)), square(6, 5, 255, (12, 10))
    home = ultrasound(tmp_path / "in", {ends[0]: one, ends[1]: other})
    report = prepare([home], tmp_path / "out", Wish())
    assert (report["cases"], report["dropped"]) == (4, [])
    assert np.array_equal(reader.read_mask(tmp_path / "out/masks/case-0002.png", 0, 1), (one | other) > 0)
    assert any("1 image(s) have several masks, which were joined" in note for note in report["notes"])
    assert f"benign (1){ends[1]}.png" in (tmp_path / "out/names.csv").read_text()


@pytest.mark.parametrize(
    "ends",
    [
        ("_mask_rater1", "_mask_rater2"),
        ("_annotator1", "_annotator2"),
        ("_mask", "_mask (1)"),
        ("_mask", "_mask_old"),
        ("_mask", "_seg"),
    ],
)
def test_what_may_be_another_drawing_of_the_same_is_left_out_whole(tmp_path: Path, ends: tuple[str, str]) -> None:
    mask = square(0, 0, 255, (12, 10))
    report = prepare([ultrasound(tmp_path / "in", dict.fromkeys(ends, mask))], None, Wish())
    assert report["cases"] == 3
    assert {d["file"] for d in report["dropped"]} == {f"benign (1){end}.png" for end in ("", *ends)}


def test_masks_that_contradict_each_other_are_named_with_their_image(tmp_path: Path) -> None:
    ends = {"_mask": square(0, 0, 1, (12, 10)), "_mask_1": square(1, 1, 2, (12, 10))}
    home = ultrasound(tmp_path / "in", ends)
    for i in (0, 2, 3):
        picture(home / f"benign ({i})_mask.png", square(0, 0, 1, (12, 10)))
    report = prepare([home], None, Wish())
    assert report["cases"] == 3
    assert "two classes in 4 pixel(s)" in report["dropped"][0]["why"]
    assert "benign (1)_mask_1.png" in report["dropped"][0]["why"]


def test_a_mask_that_may_be_of_a_lost_slice_is_not_joined() -> None:
    pairs, left = pair("images/P1", "images/P1_3", "masks/P1", "masks/P1_2", "masks/P1_3")
    assert pairs == {("images/P1_3", "masks/P1_3")}
    assert set(left) == {"images/P1", "masks/P1", "masks/P1_2"}
    assert pair("P1", "P1_2_mask")[0] == set()
    assert pair("P1/images/s_3", "P1/masks/s_4")[0] == set()


def test_parts_in_a_folder_of_the_image_s_name_are_joined() -> None:
    assert pair("a1/images/a1", "a1/masks/77", "a1/masks/f0")[0] == {("a1/images/a1", "a1/masks/77", "a1/masks/f0")}


def test_folders_of_readers_are_no_structures() -> None:
    names = [f"images/p{i}" for i in range(3)] + [f"masks/{r}/p{i}" for r in ("rater1", "rater2") for i in range(3)]
    pairs, left = pair(*names)
    assert pairs == set()
    assert set(left) == set(names)


def structures(folder: Path, spleen: tuple[int, int] = (6, 5)) -> Path:
    for i in range(4):
        nifti(folder / f"s{i}/ct.nii", scan(i, SHAPE))
        nifti(folder / f"s{i}/segmentations/spleen.nii", square(*spleen))
        nifti(folder / f"s{i}/segmentations/liver.nii", square(0, 0, 255))
    return folder


def test_a_file_a_structure_becomes_a_class_each_by_the_order_of_the_names(tmp_path: Path) -> None:
    report = prepare([structures(tmp_path / "in")], tmp_path / "out", Wish(plane="stored"))
    assert (report["cases"], report["classes"], report["class_names"]) == (4, 2, ["liver", "spleen"])
    assert [row["name"] for row in report["labels"]] == ["background", "liver", "spleen"]
    labels = reader.read_mask(tmp_path / "out/masks/case-0001.nii", 1, 2)
    assert np.array_equal(labels, (square(0, 0) + square(6, 5, 2))[..., 1])
    assert json.loads((tmp_path / "out/classes.json").read_text()) == {"1": "liver", "2": "spleen"}


def test_labels_and_names_set_the_order_of_structures_and_which_is_on_top(tmp_path: Path) -> None:
    home = structures(tmp_path / "in", spleen=(1, 1))
    with pytest.raises(UserFault, match="two classes in 12 pixel") as caught:
        prepare([home], None, Wish())
    assert "--labels liver=1,spleen=2" in caught.value.do
    report = prepare([home], None, Wish(table=parse_table("liver=2,spleen=1")))
    assert report["class_names"] == ["spleen", "liver"]
    report = prepare([home], None, Wish(names=("Spleen", "Liver")))
    assert (report["class_names"], report["labels"][2]["pixels"]) == (["Spleen", "Liver"], 4 * 27)
    alone = prepare([home], None, Wish(table=parse_table("spleen=1")))
    assert (alone["classes"], alone["class_names"]) == (1, ["spleen"])


def covered(tmp_path: Path, spleen: NDArray[np.uint8], table: str) -> str:
    """The notes on four images whose liver is 3 x 3 x 3 voxels. The first spleen is another one."""
    home = structures(tmp_path / "in")
    for i in range(1, 4):
        nifti(home / f"s{i}/segmentations/spleen.nii", spleen)
    return "\n".join(prepare([home], None, Wish(table=parse_table(table)))["notes"])


def test_pixels_that_one_structure_covers_of_another_are_counted(tmp_path: Path) -> None:
    notes = covered(tmp_path, square(1, 1), "liver=1,spleen=2")
    assert "spleen covers liver in 3 of 4 cases: 36 pixels count as spleen only." in notes
    assert "If liver belongs on top, use --labels liver=2,spleen=1." in notes
    assert "LOST" not in notes
    assert "Nothing of" not in notes


def test_a_structure_that_is_hidden_in_some_cases_is_said_with_their_names(tmp_path: Path) -> None:
    notes = covered(tmp_path, square(0, 0) | square(2, 2), "liver=1,spleen=2")
    assert "81 pixels count as spleen only." in notes
    assert "Nothing of liver is left in 3 of these cases (s1/ct.nii, s2/ct.nii, s3/ct.nii)." in notes
    assert "LOST" not in notes


def test_a_class_that_another_covers_everywhere_is_lost_aloud_and_the_other_order_keeps_it(tmp_path: Path) -> None:
    home = structures(tmp_path / "in")
    for i in range(4):
        nifti(home / f"s{i}/segmentations/spleen.nii", square(0, 0) | square(2, 2))
    report = prepare([home], None, Wish(table=parse_table("liver=1,spleen=2")))
    assert report["notes"][0].startswith("CLASS LOST: no mask shows liver any more.")
    assert "copy" not in report["notes"][0]
    assert not any("No mask shows class 1" in note for note in report["notes"])
    with pytest.raises(UserFault) as caught:
        prepare([home], None, Wish())
    assert "--labels spleen=1,liver=2" in caught.value.do
    advised = prepare([home], None, Wish(table=parse_table("spleen=1,liver=2")))
    assert [row["pixels"] for row in advised["labels"][1:]] == [4 * 8 * 3, 4 * 27]
    assert not any("LOST" in note for note in advised["notes"])


@pytest.mark.parametrize("said", ["1=2,2=1", "*=1"])
def test_numbers_in_labels_are_refused_if_the_structures_have_names(tmp_path: Path, said: str) -> None:
    for home in (structures(tmp_path / "in"), dicom_site(tmp_path / "dicom", 3)):
        with pytest.raises(UserFault, match="structures by their names in --labels") as caught:
            prepare([home], None, Wish(table=parse_table(said)))
        assert caught.value.came == f"mask values: {said}"
        assert ("'liver=1,spleen=2'" if home.name == "in" else "'Tumour=1'") in caught.value.do
    report = prepare([home.parent / "in"], None, Wish(table=parse_table("spleen=1,liver=2,7=1")))
    assert [row["name"] for row in report["labels"][1:]] == ["spleen", "liver"]


def test_two_files_of_one_drawing_are_doubted(tmp_path: Path) -> None:
    report = prepare([structures(tmp_path / "in", (0, 0))], None, Wish(table=parse_table("liver=1,spleen=2")))
    assert "The two drawings are the same: is one file a copy of the other?" in report["notes"][0]


def test_a_class_below_two_others_is_told_of_each(tmp_path: Path) -> None:
    home = structures(tmp_path / "in", (0, 0))
    for i in range(4):
        nifti(home / f"s{i}/segmentations/trunk.nii", np.ones(SHAPE, np.uint8))
    notes = prepare([home], None, Wish(table=parse_table("liver=1,spleen=2,trunk=3")))["notes"]
    assert [note.split(" covers ")[0].rsplit(" ", 1)[1] for note in notes[:2]] == ["spleen", "trunk"]
    assert "use --labels liver=1,spleen=3,trunk=2" in notes[1]


def test_a_structure_of_one_image_alone_decides_nothing_for_the_others(tmp_path: Path) -> None:
    home = structures(tmp_path / "in")
    nifti(home / "s2/segmentations/aorta.nii", square(0, 7))
    report = prepare([home], None, Wish())
    assert (report["cases"], report["class_names"]) == (3, ["liver", "spleen"])
    assert {d["file"] for d in report["dropped"]} == {
        "s2/ct.nii",
        *(f"s2/segmentations/{name}.nii" for name in ("aorta", "liver", "spleen")),
    }


def test_a_structure_that_has_no_file_is_said(tmp_path: Path) -> None:
    home = structures(tmp_path / "in")
    (home / "s2/segmentations/spleen.nii").unlink()
    report = prepare([home], None, Wish())
    assert report["cases"] == 4
    assert any("1 image(s) have no mask file for spleen (such as s2/ct.nii)" in note for note in report["notes"])


def test_a_structure_s_file_with_several_values_is_named(tmp_path: Path) -> None:
    home = structures(tmp_path / "in")
    nifti(home / "s0/segmentations/liver.nii", square(0, 0, 1) + square(6, 0, 2))
    report = prepare([home], None, Wish())
    assert report["cases"] == 3
    assert "one value besides 0 in the mask of one structure" in report["dropped"][0]["why"]


@pytest.mark.parametrize(
    "names",
    [
        [f"p{i}{end}" for i in range(2) for end in ("", "_liver_mask", "_spleen_mask")],
        [f"{folder}/p{i}" for i in range(2) for folder in ("images", "masks/liver", "masks/spleen")],
        [f"{folder}/p{i}" for i in range(2) for folder in ("ct_scan", "liver_mask", "spleen_mask")],
        [f"images/p{i}" for i in range(2)] + [f"labels/p{i}/{n}" for i in range(2) for n in ("liver", "spleen")],
    ],
)
def test_structures_are_told_by_the_ends_of_names_or_by_folders(names: list[str]) -> None:
    pairs, left = pair(*names)
    assert left == {}
    assert sorted(map(len, pairs)) == [3, 3]


def test_words_of_single_masks_are_asked_about_if_no_word_is_usual(tmp_path: Path) -> None:
    for i in range(4):
        nifti(tmp_path / f"p{i}.nii", scan(i, SHAPE))
        nifti(tmp_path / f"p{i}_{'liver' if i < 2 else 'spleen'}_mask.nii", square(0, 0))
    with pytest.raises(UserFault, match="'liver' in the path of its only mask") as caught:
        prepare([tmp_path], None, Wish())
    assert "--labels liver=1,spleen=2 if the words are structures" in caught.value.do
    assert prepare([tmp_path], None, Wish(table=parse_table("liver=1,spleen=2")))["class_names"] == ["liver", "spleen"]
    assert prepare([tmp_path], None, Wish(table=parse_table("liver=1,spleen=1")))["classes"] == 1


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/p0", "masks/p0_flip"),
        ("images/p0", "masks/p0_pred"),
        ("images/p0", "masks/p0_reader2"),
        ("images/p0", "masks/p0_post"),
        ("images/p0_us", "masks/p0_doppler"),
        ("images/IMG_001", "masks/IMG_001 - Copy"),
        ("images/A", "masks/A 2 weeks later"),
        ("P1/img", "P1/followup/mask"),
    ],
)
def test_a_mask_with_a_word_that_most_lack_is_left_out_with_its_image(image: str, mask: str) -> None:
    good = [(f"images/q{i}", f"masks/q{i}") for i in range(2)]
    pairs, left = pair(image, mask, *(name for both in good for name in both))
    assert pairs == set(good)
    assert set(left) == {image, mask}
    assert "in the path of its only mask, while most masks have no such word" in left[image]


def test_a_word_of_one_mask_beside_the_usual_word_of_others_is_no_guess() -> None:
    names = [f"p{i}{end}" for i in range(4) for end in ("", "_prostate_mask" if i else "_bladder_mask")]
    pairs, left = pair(*names)
    assert pairs == {(f"p{i}", f"p{i}_prostate_mask") for i in (1, 2, 3)}
    assert "'bladder' in the path of its only mask, while most masks have 'prostate'" in left["p0"]


def test_the_names_of_dicom_segments_are_reported_and_can_be_ordered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = dicom_site(tmp_path / "in", 3)
    assert main(["prepare", str(home), str(tmp_path / "out")]) == 0
    assert 'Set data.classes to ["Tumour"].' in capsys.readouterr().out
    assert json.loads((tmp_path / "out/classes.json").read_text()) == {"1": "Tumour"}
    report = prepare([home], None, Wish(names=("Liver", "Tumour")))
    assert (report["class_names"], report["labels"][2]["cases"]) == (["Liver", "Tumour"], 3)
    with pytest.raises(UserFault, match="none for Tumour"):
        prepare([home], None, Wish(names=("Liver",)))


def test_names_are_written_only_where_they_are_known(tmp_path: Path) -> None:
    home = ultrasound(tmp_path / "in", {"_mask": square(0, 0, 255, (12, 10))})
    assert prepare([home], tmp_path / "out", Wish())["class_names"] == []
    assert not (tmp_path / "out/classes.json").exists()
    assert prepare([home], tmp_path / "named", Wish(names=("Lesion",)))["class_names"] == ["Lesion"]
    assert json.loads((tmp_path / "named/classes.json").read_text()) == {"1": "Lesion"}
    notes = [prepare([home], None, Wish(names=(name,)))["notes"] for name in ("Left ovary", "Lesion")]
    assert ["Train with train.flips=vertical. The default mirrors Left ovary." in of for of in notes] == [True, False]


@pytest.mark.parametrize(("plane", "told"), [("stored", ["none"]), ("sagittal", []), ("coronal", ["vertical"])])
def test_the_flip_that_is_advised_mirrors_no_side(tmp_path: Path, plane: str, told: list[str]) -> None:
    """A stored row may be any of the patient's axes. In sagittal slices no flip mirrors left and right."""
    home = ultrasound(tmp_path / "in", {"_mask": square(0, 0, 255, (12, 10))})
    notes = prepare([home], None, Wish(names=("Left ovary",), plane=plane))["notes"]
    assert [flip for flip in ("none", "vertical") if any(f"train.flips={flip}." in note for note in notes)] == told


def test_a_mask_that_predict_wrote_is_told(tmp_path: Path) -> None:
    """A model that is tested on its own masks looks better than it is. Corrected ones are welcome."""
    home = ultrasound(tmp_path / "in", {"_mask": square(0, 0, 255, (12, 10))})
    (home / ".pfedsam-predict.jsonl").write_text('{"files": ["benign%20%281%29_mask.png"], "maker": {}}\n{"fil')
    (note,) = [one for one in prepare([home], None, Wish())["notes"] if "pfedsam predict" in one]
    assert note.startswith("1 mask(s) were written by pfedsam predict (such as benign (1)_mask.png).")


def test_a_folder_that_is_given_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = ultrasound(tmp_path / "in", {"_mask": square(0, 0, 255, (12, 10))})
    monkeypatch.chdir(home)
    assert prepare([Path(), Path("../in")], None, Wish())["cases"] == prepare([home], None, Wish())["cases"]
    with pytest.raises(UserFault, match="in --names"):
        prepare([home], None, Wish(names=("Lesion", "lesion")))
    with pytest.raises(UserFault, match=r"1 name\(s\) in --names"):
        prepare([home], None, Wish(names=("Lesion", "Cyst"), classes=1))


def test_structures_whose_names_differ_in_case_alone_are_one_class(tmp_path: Path) -> None:
    home = structures(tmp_path / "in")
    for i in (1, 2):
        file = home / f"s{i}/segmentations/liver.nii"
        file.rename(file.with_name("Liver.nii"))
    report = prepare([home], None, Wish())
    assert (report["classes"], report["class_names"]) == (2, ["liver", "spleen"])
    assert [row["pixels"] for row in report["labels"][1:]] == [4 * 27, 4 * 27]


def partly(folder: Path, liver: NDArray[np.uint8], spleen: NDArray[np.uint8]) -> Path:
    """Four pictures with a mask of each structure."""
    for i in range(4):
        picture(folder / f"P{i}.png", scan(i, (12, 10)).astype(np.uint8))
        for name, mask in (("liver", liver), ("spleen", spleen)):
            picture(folder / f"P{i}_{name}_mask.png", mask)
    return folder


def test_unlabelled_pixels_of_a_structure_s_mask_are_no_class_and_another_structure_wins_over_them(
    tmp_path: Path,
) -> None:
    flat = (12, 10)
    liver, spleen = square(0, 0, 1, flat) + square(6, 5, 255, flat), square(7, 5, 1, flat)
    home = partly(tmp_path / "in", liver, spleen)
    with pytest.raises(UserFault, match=r"(?s)one value besides 0 .*--ignore 255 if 255 marks pixels"):
        prepare([home], None, Wish())
    report = prepare([home], tmp_path / "out", Wish(ignore=255))
    assert (report["cases"], report["class_names"], report["unlabelled"]["pixels"]) == (4, ["liver", "spleen"], 4 * 3)
    expected = np.where(spleen, 2, liver)
    for case in range(1, 5):
        assert np.array_equal(reader.read_mask(tmp_path / f"out/masks/case-000{case}.png", 0, 2, 255), expected)
    alone = prepare([home], None, Wish(ignore=255, table=parse_table("spleen=1")))
    assert (alone["unlabelled"]["pixels"], alone["labels"][1]["pixels"]) == (0, 4 * 9), "the liver is left out"


def test_a_structure_s_mask_of_nothing_but_the_ignored_value_shows_no_class(tmp_path: Path) -> None:
    flat = (12, 10)
    home = partly(tmp_path / "in", square(0, 0, 255, flat), square(6, 5, 255, flat))
    assert [row["cases"] for row in prepare([home], None, Wish())["labels"]] == [4, 4, 4]
    report = prepare([home], None, Wish(ignore=255))
    assert [row["cases"] for row in report["labels"]] == [4, 0, 0]
    assert report["unlabelled"] == {"pixels": 4 * 18, "share": 18 / 120, "cases": 4}
    assert any("4 case(s) show no class" in note for note in report["notes"])
