"""Images and masks find each other by name; what could be two things is left to the user."""

import pytest

from pfedsam.prepare.pairing import item, paired


def pair(*paths: str) -> tuple[set[tuple[str, str]], dict[str, str]]:
    """Pairs, and what is said of the rest."""
    items = []
    for path in paths:
        *parts, name = path.split("/")
        items.append(item(path, (), tuple(parts), name))
    pairs, left = paired(items)
    return {(image.name, mask.name) for image, mask in pairs}, {d.file: d.why for d in left}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/p1", "masks/p1"),
        ("imagesTr/p1_0000", "labelsTr/p1"),
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
    ],
)
def test_these_names_belong_together(image: str, mask: str) -> None:
    assert pair(image, mask) == ({(image, mask)}, {})


def test_files_of_the_same_name_in_two_folders_are_not_mixed() -> None:
    paths = [f"{p}/{f}/scan" for p in ("p1", "p2") for f in ("images", "masks")]
    assert pair(*paths)[0] == {("p1/images/scan", "p1/masks/scan"), ("p2/images/scan", "p2/masks/scan")}


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
