"""Images and masks find each other by name; what could be two things is left to the user."""

import re
from pathlib import Path

import numpy as np
import pytest
from prepare.corpus import lesion, nifti, nifti_site, picture, scan

from pfedsam.data import reader
from pfedsam.errors import UserFault
from pfedsam.prepare.discover import discover
from pfedsam.prepare.families import taken_whole
from pfedsam.prepare.pairing import candidate, claimed
from pfedsam.prepare.pairrule import pairs_by_pattern
from pfedsam.prepare.site import Wish, prepare


def pair(*paths: str) -> tuple[set[tuple[str, ...]], dict[str, str]]:
    """Pairs, and what is said of the rest."""
    candidates = []
    for path in paths:
        *parts, name = path.split("/")
        candidates.append(candidate(path, (), tuple(parts), name))
    found = taken_whole(claimed(candidates))
    return {(m.image.name, *(mask.name for mask in m.masks)) for m in found.pairs}, {
        d.file: d.why for d in found.dropped
    }


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/p1", "masks/p1"),
        ("imagesTr/p1_0000", "labelsTr/p1"),
        ("images/p1_0000", "labels/p1"),
        ("images/p1_0000", "labels/p1_0000"),
        ("images/p1_0000", "labels/p1_0000_mask"),
        ("p1", "p1_mask"),
        ("p1", "p1-seg"),
        ("Case01", "Case01_Segmentation"),
        ("p1_image", "p1_label"),
        ("p1/image", "p1/mask"),
        ("p1/scan", "p1/segmentation"),
        ("a/images/p1", "a/masks/p1_mask"),
        ("images/p1", "labels/deep/p1"),
        ("p1", "mask_p1"),
        ("scans/größe", "masks/gro\u0308ße"),
        ("img/P1", "gt/p1"),
        ("volume-0", "segmentation-0"),
        ("image_001", "mask_001"),
        ("images/img_7", "gt/gt_7"),
        ("P1_img_3", "P1_mask_3"),
        ("p1_ct", "p1_seg"),
        ("case_0/imaging", "case_0/segmentation"),
        ("sub-1/sub-1_dwi", "sub-1/sub-1_msk"),
        ("sub-1/ses-2/dwi/sub-1_ses-2_dwi", "derivatives/sub-1/ses-2/sub-1_ses-2_msk"),
        ("sub-1/anat/sub-1_T1w", "derivatives/drawn/sub-1/anat/sub-1_label-lesion_mask"),
        ("sub-1/anat/sub-1_T1w", "derivatives/labels/sub-1/anat/sub-1_T1w_label-lesion_mask"),
        ("Training_Input/X_1", "Training_GroundTruth/X_1_segmentation"),
        ("train/c_1", "train_masks/c_1_mask"),
        ("Original/5", "Ground Truth/5"),
        ("images/label_free_0", "masks/label_free_0"),
        ("images/label_free_0", "masks/label_free_0_mask"),
        ("label_free_0", "label_free_0_mask"),
        ("images/a", "images/a_mask"),
        ("p1", "p1_lesion"),
        ("p1", "p1_mask_1"),
        ("training/images/21_training", "training/1st_manual/21_manual1"),
        ("train/Images/g1", "train/gts/g1"),
        ("testA_1", "testA_1_anno"),
        ("raw_images/1", "lesion_masks/1"),
        ("ISIC2018_Task1-2_Training_Input/ISIC_1", "ISIC2018_Task1_Training_GroundTruth/ISIC_1_segmentation"),
        ("images/1", "annotations_final/1_mask"),
        ("images/p1", "labelsTr/p1"),
        ("imagesTr/p1_0000", "labels/p1"),
        ("train/images/p1", "labelsTr/p1"),
    ],
)
def test_these_names_belong_together(image: str, mask: str) -> None:
    assert pair(image, mask) == ({(image, mask)}, {})


def test_files_of_the_same_name_in_two_folders_are_not_mixed() -> None:
    paths = [f"{p}/{f}/scan" for p in ("p1", "p2") for f in ("images", "masks")]
    assert pair(*paths)[0] == {("p1/images/scan", "p1/masks/scan"), ("p2/images/scan", "p2/masks/scan")}


def test_a_field_of_view_beside_the_drawing_is_not_taken_for_it() -> None:
    names = [f"images/{i}_training" for i in (21, 22)]
    masks = [f"{name}" for i in (21, 22) for name in (f"1st_manual/{i}_manual1", f"mask/{i}_training_mask")]
    pairs, left = pair(*names, *masks)
    assert pairs == set()
    assert all("1 images and 2 masks" in why for why in left.values())


def test_a_mask_of_one_split_is_not_taken_for_an_image_of_another() -> None:
    assert pair("images/train_5", "masks/test_5_mask")[0] == set()


def test_two_channels_for_one_mask_are_not_chosen_from() -> None:
    pairs, left = pair("imagesTr/p1_0000", "imagesTr/p1_0001", "labelsTr/p1")
    assert pairs == set()
    assert len(left) == 3
    assert all("2 images and 1 masks" in why for why in left.values())


def test_a_lone_stem_that_two_masks_have_is_not_guessed() -> None:
    pairs, left = pair("images/p1", "masks/a/p1", "masks/b/p1")
    assert pairs == set()
    assert len(left) == 3


def test_a_word_within_a_name_is_no_mark() -> None:
    assert pair("labelled1", "labelled1_mask") == ({("labelled1", "labelled1_mask")}, {})
    assert pair("segovia", "segovia_seg")[0] == {("segovia", "segovia_seg")}


@pytest.mark.parametrize(
    ("image", "mask"),
    [("p01/20200101", "p02/20200101_mask"), ("a/x/images/7", "a/y/masks/7"), ("a/images/7", "b/c/masks/7")],
)
def test_a_stem_alone_joins_no_files_whose_folders_contradict(image: str, mask: str) -> None:
    pairs, left = pair(image, mask)
    assert pairs == set()
    assert "of the same name is in other folders (" + mask in left[image]
    assert "of the same name is in other folders (" + image in left[mask]


@pytest.mark.parametrize(
    ("image", "mask"),
    [("7", "a/b/masks/7"), ("a/b/7", "masks/7"), ("a/images/7", "a/b/7_seg"), ("x/a/7", "masks/a/7")],
)
def test_a_stem_joins_files_where_the_folders_of_one_begin_or_end_those_of_the_other(image: str, mask: str) -> None:
    assert pair(image, mask) == ({(image, mask)}, {})


@pytest.mark.parametrize("above", ["segmentation", "annotations", "manual", "seg"])
def test_the_nearest_folder_that_names_a_role_decides_it(above: str) -> None:
    image, mask = f"{above}/p1/images/7", f"{above}/p1/masks/7"
    assert pair(image, mask) == ({(image, mask)}, {})
    assert pair("images/masks/7", "images/7")[0] == {("images/7", "images/masks/7")}


@pytest.mark.parametrize("own", ["segmentation", "annotations", "manual", "seg", "masks"])
def test_the_name_of_the_folder_given_and_those_above_it_make_no_file_a_mask(tmp_path: Path, own: str) -> None:
    home = nifti_site(tmp_path / "labels" / own, 2)
    nifti(home / "p07.nii", scan(7))
    nifti(home / "p07_seg.nii", lesion(7))
    found = discover([home], None)
    assert [(case.name, case.mask.name) for case in found.cases] == [
        ("images/p00.nii.gz", "p00_seg.nii.gz"),
        ("images/p01.nii.gz", "p01_seg.nii.gz"),
        ("p07.nii", "p07_seg.nii"),
    ]
    assert found.dropped == []


def test_of_several_folders_given_each_one_s_name_may_say_its_role(tmp_path: Path) -> None:
    home = nifti_site(tmp_path, 2)
    assert len(discover([home / "images", home / "labels"], None).cases) == 2


def test_several_sequences_for_one_mask_are_named_and_pair_chooses(tmp_path: Path) -> None:
    for i in range(3):
        for end in ("t1", "t2"):
            nifti(tmp_path / f"c{i}/c{i}_{end}.nii", scan(i))
        nifti(tmp_path / f"c{i}/c{i}_seg.nii", lesion(i))
    found = discover([tmp_path], None)
    assert found.cases == []
    assert all("2 images and 1 masks" in d.why and "--pair" in d.do for d in found.dropped)
    found = discover([tmp_path], None, pair=(r"(.+)_t2", r"(.+)_seg"))
    assert [case.name for case in found.cases] == [f"c{i}/c{i}_t2.nii" for i in range(3)]
    assert [d.file for d in found.dropped] == [f"c{i}/c{i}_t1.nii" for i in range(3)]
    assert all("fits neither pattern" in d.why for d in found.dropped)


def test_pair_joins_the_masks_of_an_image_and_names_structures_by_a_second_group(tmp_path: Path) -> None:
    for i in range(3):
        nifti(tmp_path / f"{i}/vol.nii", scan(i))
        for name in ("a", "b"):
            nifti(tmp_path / f"{i}/{name}.nii", lesion(i))
    one = discover([tmp_path], None, pair=(r"(\d)/vol", r"(\d)/[ab]\."))
    assert [len(case.masks) for case in one.cases] == [2, 2, 2]
    assert one.segments == {}
    lone = discover([tmp_path], None, pair=(r"(\d)/vol", r"(\d)/(a)\."), structures=["a"])
    assert [case.structures for case in lone.cases] == [("a",)] * 3
    assert lone.segments == {"a": 1}


@pytest.mark.parametrize("kinds", [("1", "2", "10"), ("a", "b", "c"), ("r1", "r2", "r3"), ("copy", "old", "tumour")])
def test_whatever_the_second_group_of_pair_finds_is_a_structure(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    for i in range(4):
        picture(tmp_path / f"in/p{i}.png", scan(i, (9, 8)).astype(np.uint8))
        for row, kind in enumerate(kinds):
            mask = np.zeros((9, 8), np.uint8)
            mask[3 * row : 3 * row + 2] = 255
            if i or row < 2:
                picture(tmp_path / f"in/p{i}_seg_{kind}.png", mask)
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish(pair=(r"^(p\d)\.png", r"^(p\d)_seg_(\w+)\.")))
    assert (report["cases"], report["classes"], report["class_names"]) == (4, 3, [*kinds])
    labels = reader.read_mask(tmp_path / "out/masks/case-0002.png", 0, 3)
    assert labels[::3, 0].tolist() == [1, 2, 3]


def test_a_pattern_of_pair_needs_a_group() -> None:
    for wrong in (("vol", "(a)"), ("(vol", "(a)")):
        with pytest.raises(UserFault, match="--pair"):
            pairs_by_pattern([], *wrong)


def test_one_odd_mask_elsewhere_takes_no_pairs_of_others_away() -> None:
    names = [f"{p}/{f}/7" for p in "ab" for f in ("images", "masks")]
    pairs, left = pair(*names, "masks/7")
    assert len(pairs) == 2
    assert set(left) == {"masks/7"}


@pytest.mark.parametrize("mask", ["masks/p{}.gif", "1st_manual/p{}_manual1.gif", "p{}_mask.nrrd"])
def test_masks_of_a_kind_that_is_not_read_are_the_reason_and_not_the_images_without_them(
    tmp_path: Path, mask: str
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/notes.txt").write_text("no image")
    for i in range(4):
        nifti(tmp_path / f"images/p{i}.nii.gz", scan(i))
        (tmp_path / mask.format(i)).parent.mkdir(exist_ok=True)
        (tmp_path / mask.format(i)).write_bytes(b"GIF89a")
    with pytest.raises(UserFault) as caught:
        prepare([tmp_path], None, Wish())
    first = caught.value.came.split("\n")[1]
    assert first.startswith(mask.format(0))
    assert "a kind of file that cannot be read here" in first
    assert "convert it" in caught.value.do


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/P1_us", "masks/P1_mri"),
        ("images/P1_T1", "masks/P1_T2"),
        ("P1_ct", "P1_pet_seg"),
        ("P1/ct", "P1/masks/pet"),
        ("images/P1_mri_t1", "masks/P1_mri_flair"),
        ("images/1_train", "masks/1_test"),
        ("images/1_training", "masks/1_test_mask"),
        ("train_images/1", "test_masks/1"),
        ("train/1", "test_masks/1_mask"),
        ("imagesTs/1", "labelsTr/1"),
        ("ct_images/1", "pet_masks/1"),
    ],
)
def test_a_mask_that_names_another_modality_or_split_is_not_the_image_s(image: str, mask: str) -> None:
    pairs, left = pair(image, mask)
    assert pairs == set()
    assert {*left} == {image, mask}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/P1_T1w", "masks/P1_T1_seg"),
        ("images/P1_T1", "masks/P1_mri"),
        ("images/P1_mri_t1", "masks/P1_mr"),
        ("images/P1_ct", "masks/P1_cta"),
        ("images/1_training", "masks/1_train"),
        ("images/P1_ct", "masks/P1"),
    ],
)
def test_a_modality_in_another_word_is_the_same(image: str, mask: str) -> None:
    assert pair(image, mask)[0] == {(image, mask)}


def drawn(home: Path, *paths: str) -> Path:
    """Pictures in folders of images, and drawings in those of masks."""
    for i, path in enumerate(paths):
        mask = any(word in path for word in ("masks", "labels"))
        values = lesion(i, (24, 20, 3))[..., 1] if mask else scan(i, (24, 20)).astype(np.uint8)
        picture(home / f"{path}.png", values)
    return home


def pairs_in(top: Path, *homes: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The pairs in the homes below `top`, by their paths there, and the names of what is left out."""
    found = discover([top / home for home in homes], None)
    pairs = [tuple(str(p.relative_to(top).with_suffix("")) for p in (c.image[0], c.mask)) for c in found.cases]
    return sorted((image, mask) for image, mask in pairs), [d.file.removesuffix(".png") for d in found.dropped]


@pytest.mark.parametrize(
    ("image", "mask", "whole"),
    [
        ("P2_images/03", "P1_masks/03", ["P1", "P2"]),
        ("P2_images/03", "P1_masks/03", []),
        ("P2/03", "P1_masks/03", []),
        ("Kim_images/03", "Meier_masks/03", ["Kim", "Meier"]),
        ("Kim_images/03", "Meier_masks/03", ["Huber"]),
        ("P_1_2_images/03", "P_1_masks/03", ["P_1", "P_1_2"]),
        ("test_images/02", "train_masks/02", ["train", "test"]),
        ("test_images/02", "train_masks/02", ["train"]),
    ],
)
def test_a_mask_whose_image_is_missing_is_not_taken_for_another_patient_s_or_split_s(
    tmp_path: Path, image: str, mask: str, whole: list[str]
) -> None:
    good = [(f"{of}_images/01", f"{of}_masks/01") for of in whole]
    paths = [path for both in good for path in both]
    pairs, left = pairs_in(drawn(tmp_path, image, mask, *paths), "")
    assert pairs == sorted(good)
    assert left == sorted([image, mask])


def test_a_test_image_of_nnunet_is_never_a_training_label_s(tmp_path: Path) -> None:
    both = [f"{folder}/c{i}" for folder in ("imagesTr", "labelsTr") for i in range(4)]
    tests = [f"imagesTs/c{i}" for i in range(6)]
    every = [(f"imagesTr/c{i}", f"labelsTr/c{i}") for i in range(4)]
    assert pairs_in(drawn(tmp_path, *both, *tests), "") == (every, tests)
    (tmp_path / "imagesTr/c2.png").unlink()
    assert pairs_in(tmp_path, "") == ([*every[:2], every[3]], [*tests, "labelsTr/c2"])


def wards(home: Path) -> list[Path]:
    """Two wards with the same names. One misses an image, the other a mask."""
    names = [f"{ward}/{kind}/0{i}" for ward in ("wa", "wb") for kind in ("images", "masks") for i in (1, 2, 3)]
    drawn(home, *(name for name in names if name not in ("wa/images/02", "wb/masks/02")))
    return [home / "wa", home / "wb"]


def test_a_mask_stays_in_the_folder_that_was_given_and_the_message_shows_which(tmp_path: Path) -> None:
    homes = wards(tmp_path)
    good = [(f"{ward}/images/0{i}", f"{ward}/masks/0{i}") for ward in ("wa", "wb") for i in (1, 3)]
    assert pairs_in(tmp_path, "wa", "wb") == (good, ["images/02", "masks/02"])
    assert pairs_in(tmp_path, "wa/images", "wa/masks", "wb/images", "wb/masks") == (good, ["02", "02"])
    image, mask = discover(homes, None).dropped
    assert image.why.endswith("(wa/masks/02.png): wb/images/02.png")
    assert mask.why.endswith("(wb/images/02.png): wa/masks/02.png")
    picture(homes[1] / "images/04.png", scan(4, (24, 20)).astype(np.uint8))
    assert [d.why for d in discover(homes, None).dropped][1] == (
        "an image without a mask of its name: wb/images/04.png"
    )


def test_masks_may_come_from_a_folder_of_their_own(tmp_path: Path) -> None:
    drawn(tmp_path, "scans2021/p1", "scans2021/p2", "from_masks_room/p1_mask", "from_masks_room/p2_mask")
    assert pairs_in(tmp_path, "scans2021", "from_masks_room") == (
        [(f"scans2021/p{i}", f"from_masks_room/p{i}_mask") for i in (1, 2)],
        [],
    )


def test_the_page_s_option_for_several_channels_of_nnunet_takes_the_second(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| nnU-Net"))
    image, mask = re.findall(r"'([^']+)'", row)
    for i in range(3):
        for channel in (0, 1):
            nifti(tmp_path / f"imagesTr/case_{i:03d}_000{channel}.nii.gz", scan(i))
        nifti(tmp_path / f"labelsTr/case_{i:03d}.nii.gz", lesion(i))
    cases = discover([tmp_path], None, pair=(image, mask)).cases
    assert [(case.name, case.mask.name) for case in cases] == [
        (f"imagesTr/case_{i:03d}_0001.nii.gz", f"case_{i:03d}.nii.gz") for i in range(3)
    ]


def test_masks_in_a_folder_of_another_name_are_told_with_the_option_for_them(tmp_path: Path) -> None:
    for i in range(3):
        nifti(tmp_path / f"Bilder/p{i}.nii", scan(i))
        nifti(tmp_path / f"Masken/p{i}.nii", lesion(i))
    with pytest.raises(UserFault, match="--masks DIR"):
        prepare([tmp_path], None, Wish())
    assert prepare([tmp_path], None, Wish(masks=tmp_path / "Masken"))["cases"] == 3
