import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import in_one, tiny
from pfedsam.data import dataset, reader
from pfedsam.data.augment import augmentation
from pfedsam.data.datalist import Row
from pfedsam.data.dataset import PLAIN, Dataset, View, open_site
from pfedsam.data.square import fit, fit_labels, label_map, unfit
from pfedsam.doctor import checks
from pfedsam.errors import UserFault


def volumes(folder: Path, count: int, slices: int, mask_slices: int | None = None) -> list[Row]:
    rows = []
    for i in range(count):
        image = np.random.default_rng(i).normal(100, 20, (20, 30, slices)).astype(np.float32)
        mask = np.zeros((20, 30, slices if mask_slices is None else mask_slices), np.uint8)
        mask[5:9, 5:9] = 1
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"{i}.nii")
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), folder / f"{i}_m.nii")
        rows.append(Row(f"{i}.nii", f"{i}_m.nii", "train", str(i)))
    return rows


@pytest.mark.parametrize("shape", [(100, 100), (60, 100), (128, 32), (33, 57)])
def test_what_is_fitted_comes_back_at_its_own_size_and_place(shape: tuple[int, int]) -> None:
    image = torch.zeros(1, *shape)
    image[:, shape[0] // 4 : shape[0] // 2, shape[1] // 4 : shape[1] // 2] = 1
    fitted = fit(image, 128)
    assert fitted.shape == (1, 128, 128)
    back = unfit(fitted, shape, 128)
    assert ((back > 0.5) != (image > 0.5)).float().mean() < 0.03


@pytest.mark.parametrize(("side", "size"), [(300, 128), (1536, 256), (2000, 1024)])
def test_a_label_lies_where_its_lesion_lies_in_the_image(tmp_path: Path, side: int, size: int) -> None:
    """What a perfect learner of the label predicts has the middle of the mask."""
    rows, columns = np.ogrid[:side, :side]
    mask = ((rows - 0.4 * side) ** 2 + (columns - 0.6 * side) ** 2 < (0.1 * side) ** 2).astype(np.uint8)
    Image.fromarray(mask * 255).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "a_m.png")
    data = Dataset(tmp_path, [Row("a.png", "a_m.png", "train", "a")], tiny(model={"image_size": size}), split="train")
    learned = unfit(data.batch([View(0, PLAIN)]).label.float(), (side, side), size)[0] > 0.5
    shift = learned.nonzero().double().mean(0) - torch.from_numpy(mask).nonzero().double().mean(0)
    assert shift.abs().max() < 0.3
    again = data.labels(0)
    assert torch.equal(fit_labels(again, side), again.long())


def test_slices_of_a_volume_are_one_case(tmp_path: Path) -> None:
    data = Dataset(tmp_path, volumes(tmp_path, 2, 3), tiny(data={"scale": "percentile"}), split="train")
    assert list(data.cases()) == [[0, 1, 2], [3, 4, 5]]


def test_two_annotators_masks_of_one_image_are_two_cases(tmp_path: Path) -> None:
    (row,) = volumes(tmp_path, 1, 3)
    shutil.copy(tmp_path / row.mask, tmp_path / "second_m.nii")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
    rows = [row, Row(row.image, "second_m.nii", "train", "0"), *2 * [Row("a.png", "a.png", "train", "a")]]
    data = Dataset(tmp_path, rows, tiny(), split="train")
    assert list(data.cases()) == [[0, 1, 2], [3, 4, 5], [6], [7]]


def test_images_are_normalised_as_the_backbone_was_trained(tmp_path: Path) -> None:
    data = Dataset(tmp_path, volumes(tmp_path, 1, 2), tiny(), split="train")
    grey = torch.full((3, 4, 4), 0.5)
    expected = (127.5 - torch.tensor((123.675, 116.28, 103.53))) / torch.tensor((58.395, 57.12, 57.375))
    assert torch.allclose(data.normalise(grey)[:, 0, 0], expected, atol=1e-5)


def test_a_thousand_slices_are_opened_without_reading_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    real = reader.read_image
    monkeypatch.setattr(reader, "read_image", lambda *a: (read.append(a), real(*a))[1])
    data = Dataset(tmp_path, volumes(tmp_path, 2, 500), tiny(data={"scale": "uint8"}), split="train")
    assert len(data) == 1000
    assert read == []
    data[700]
    assert len(read) == 1


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match=r"0_m\.nii of the size of its image"):
        Dataset(tmp_path, volumes(tmp_path, 1, 3, mask_slices=2), tiny(), split="train")


def stored(folder: Path, image: np.ndarray, mask: np.ndarray, *, unset: bool = False) -> list[Row]:
    """A row of an image and a mask with these affines, their voxels cut off; `unset`: the mask says no place."""
    for name, affine in {"a.nii": image, "a_m.nii": mask}.items():
        file = nibabel.Nifti1Image(np.zeros((20, 30, 4), np.uint8), affine)
        if unset and name == "a_m.nii":
            file.set_sform(None, 0)
            file.set_qform(None, 0)
        file.to_filename(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:352])
    return [Row("a.nii", "a_m.nii", "train", "a")]


def moved(affine: np.ndarray, along_x: float) -> np.ndarray:
    return affine + np.outer([along_x, 0, 0, 0], [0, 0, 0, 1])


RAS, LAS = np.diag([0.5, 0.5, 3, 1]), np.diag([-0.5, 0.5, 3, 1])


@pytest.mark.parametrize("mask", [LAS, np.eye(4), moved(RAS, 0.3)], ids=["LAS", "identity", "moved"])
def test_a_volume_and_a_mask_that_lie_apart_are_refused_by_their_headers_alone(
    tmp_path: Path, mask: np.ndarray
) -> None:
    with pytest.raises(UserFault, match=r"mm away .*pfedsam prepare") as fault:
        Dataset(tmp_path, stored(tmp_path, RAS, mask), tiny(), split="train")
    assert all(str(tmp_path / name) in str(fault.value) for name in ("a.nii", "a_m.nii"))


def test_a_mask_that_does_not_say_where_it_lies_is_refused_beside_a_volume_that_does(tmp_path: Path) -> None:
    rows = stored(tmp_path, RAS, RAS, unset=True)
    for plane, said in (("axial", r"a position in the header of .*a_m\.nii"), ("stored", "mm away")):
        with pytest.raises(UserFault, match=said):
            Dataset(tmp_path, rows, tiny(data={"plane": plane}), split="train")


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_a_volume_and_a_mask_less_than_half_a_voxel_apart_are_a_pair(tmp_path: Path, shift: float) -> None:
    assert len(Dataset(tmp_path, stored(tmp_path, RAS, moved(RAS, shift)), tiny(), split="train")) == 4


@pytest.mark.parametrize(("image", "mask"), [("a.nii", "a.png"), ("a.png", "a.nii")])
@pytest.mark.parametrize("shape", [(20, 20), (20, 30)])
def test_a_picture_and_a_volume_are_no_pair_as_one_counts_rows_and_the_other_x(
    tmp_path: Path, image: str, mask: str, shape: tuple[int, int]
) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((*shape, 1), np.uint8), LAS), tmp_path / "a.nii")
    Image.fromarray(np.zeros(shape[:: 1 if shape[0] == shape[1] else -1], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserFault, match="save both in one format") as fault:
        Dataset(tmp_path, [Row(image, mask, "train", "a")], tiny(), split="train")
    assert all(str(tmp_path / name) in str(fault.value) for name in (image, mask))


def test_an_epoch_gives_every_slice_once_in_an_order_of_its_seed(tmp_path: Path) -> None:
    data = Dataset(tmp_path, volumes(tmp_path, 1, 6), tiny(train={"batch_size": 4}), split="train")
    epochs = [list(data.order(torch.Generator().manual_seed(s))) for s in (1, 1, 2)]
    assert [len(part) for part in epochs[0]] == [4, 2]
    assert sorted(i for part in epochs[0] for i in part) == list(range(6))
    assert epochs[0] == epochs[1]
    assert epochs[0] != epochs[2]


def test_a_view_comes_out_the_same_in_whatever_company(tmp_path: Path) -> None:
    data, change = Dataset(tmp_path, volumes(tmp_path, 1, 6), tiny(), split="train"), augmentation(3, tiny())
    one = data.batch([View(2, 5), View(1, 0), View(2, PLAIN)], change)
    other = data.batch([View(0, 1), View(2, 5)], change)
    assert torch.equal(one.image[0], other.image[1])
    assert not torch.equal(one.image[0], one.image[2])
    assert torch.equal(one.image[2], data.normalise(data[2][0]))


def test_augmentation_moves_image_and_mask_together_and_keeps_class_numbers() -> None:
    mask = torch.zeros(64, 64, dtype=torch.long)
    mask[10:30, 12:40] = 1
    image = mask.float().expand(3, -1, -1).clone()
    change = augmentation(3, tiny())
    for number in range(10):
        moved, labels = change(image, mask, View(0, number))
        assert set(labels.unique().tolist()) <= {0, 1}
        assert ((moved.mean(0) > 0.5) != (labels > 0)).float().mean() < 0.03


def test_the_loss_is_taken_at_256_at_most() -> None:
    assert dataset.label_size(tiny(model={"image_size": 128})) == 128
    assert dataset.label_size(tiny(model={"image_size": 1024})) == 256


def test_a_limited_site_keeps_so_many_rows_and_the_same_ones_each_time(hospital: Path) -> None:
    places = hospital / "site-1", "site-1"
    limited = [open_site(*places, tiny(data={"limit": {"site-1": 2}})) for _ in range(2)]
    assert [len(limited[0][split]) for split in ("train", "val", "test")] == [2, 2, 3]
    assert limited[0]["train"].slices == limited[1]["train"].slices
    assert len(open_site(*places, tiny(data={"limit": {"site-2": 2}}))["train"]) == 6


def test_values_beyond_eight_bits_are_told_and_not_cut_off(hospital: Path, tmp_path: Path) -> None:
    shutil.copytree(hospital / "site-1", tmp_path / "site-1")
    for path in (tmp_path / "site-1/images").glob("*train*.png"):
        deep = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 4
        Image.fromarray(deep).save(path)
    sets = open_site(tmp_path, "site-1", tiny())
    with pytest.raises(UserFault, match="to percentile"):
        sets["train"].picture(0)
    percentile = open_site(tmp_path, "site-1", tiny(data={"scale": "percentile"}))
    assert percentile["train"].picture(0).max() == 1


def test_of_two_overlapping_classes_that_are_both_certain_the_one_with_the_higher_logit_is_named() -> None:
    """Both sigmoids are 1 in float32, so they cannot show which is higher."""
    maps = torch.tensor([[[18.0, 30.0, -30.0]], [[30.0, 18.0, -18.0]]])
    assert label_map(maps, exclusive=False).tolist() == [[2, 1, 0]]


def test_a_pooled_job_reads_a_datalist_of_several_sites_and_no_single_site_s_folder(
    hospital: Path, tmp_path: Path
) -> None:
    config = tiny(method="fedavg", data={"pool": True})
    with pytest.raises(UserFault, match=r"a datalist of several sites.*site-1/datalist\.csv, with no such column"):
        open_site(hospital, "site-1", config)
    assert "several sites" in checks.data(config, hospital, "site-1").do
    with pytest.raises(UserFault, match="rows of site-1 alone"):
        open_site(in_one(hospital, tmp_path / "one", ["site-1"]), "pooled", config)
    found = open_site(in_one(hospital, tmp_path / "both", ["site-1", "site-2"]), "pooled", config)
    assert {split: len(data) for split, data in found.items()} == {"train": 12, "val": 4, "test": 6}
