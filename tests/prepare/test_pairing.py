"""Images and masks find each other by name; what could be two things is left to the user."""

from pathlib import Path

import pytest
from prepare.corpus import lesion, nifti, nifti_site, scan

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
