"""Weak labels, and images without labels: what a site trains on, and that its scores use whole masks."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from conftest import tiny
from pfedsam.config import Config
from pfedsam.data.datalist import Row, read, write_csv
from pfedsam.data.dataset import PLAIN, View, open_site
from pfedsam.data.square import fit_labels, shrink
from pfedsam.data.synthetic import write_site
from pfedsam.data.taken import taken
from pfedsam.data.values import IGNORED
from pfedsam.data.weak import KINDS, weakened
from pfedsam.errors import UserFault
from pfedsam.layout import Places
from pfedsam.prepare.site import Wish, prepare
from pfedsam.site import Site
from pfedsam.study import initial_shared
from pfedsam.train.evaluate import reference


def whole() -> torch.Tensor:
    """Two objects of class 1 and one of class 2, on 96 x 128 pixels."""
    labels = torch.zeros(96, 128, dtype=torch.long)
    labels[10:40, 10:50], labels[60:80, 90:120], labels[50:90, 20:40] = 1, 1, 2
    return labels


@pytest.mark.parametrize("kind", ["scribble", "point", "block"])
def test_a_weak_label_is_never_wrong_and_mostly_absent_and_the_same_each_time(kind: str) -> None:
    labels = whole()
    found = weakened(labels, kind, seed=1)
    known = found != IGNORED
    assert torch.equal(found[known], labels[known])
    assert 0 < known.float().mean() < 0.25
    assert torch.equal(found, weakened(labels, kind, seed=1))
    assert not torch.equal(found, weakened(labels, kind, seed=2))


@pytest.mark.parametrize("kind", ["scribble", "point"])
def test_each_object_has_its_mark_and_the_background_too(kind: str) -> None:
    labels, found = whole(), weakened(whole(), kind, seed=3)
    for number in (1, 2):
        parts, count = ndimage.label((labels == number).numpy())
        assert all((found.numpy()[parts == i] == number).any() for i in range(1, count + 1))
    assert (found == 0).any()


def test_a_box_says_background_outside_and_the_class_in_its_middle() -> None:
    labels = torch.zeros(30, 40, dtype=torch.long)
    labels[6:15, 9:21] = torch.tril(torch.ones(9, 12, dtype=torch.long))
    found = weakened(labels, "box", seed=0)
    rows, columns = np.nonzero(labels.numpy())
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    expected = torch.zeros_like(labels)
    expected[box] = IGNORED
    expected[9:12, columns.min() + 3 : columns.max() - 2] = 1
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_without_objects_and_pixels_without_labels_stay_so(kind: str) -> None:
    empty = torch.zeros(20, 20, dtype=torch.long)
    assert set(weakened(empty, kind, seed=0).unique().tolist()) <= {0, IGNORED}
    half = whole()
    half[:, 64:] = IGNORED
    assert (weakened(half, kind, seed=0)[:, 64:] == IGNORED).all()


def test_a_thin_line_survives_where_labels_are_sparse() -> None:
    mask = torch.full((1, 64, 64), IGNORED)
    mask[0, 30], mask[0, 50] = 1, 0
    assert (shrink(mask, 16) == IGNORED).all()
    for small in (shrink(mask, 16, sparse=True)[0], fit_labels(mask[0], 16, sparse=True)):
        assert (small[7] == 1).all()
        assert (small[12] == 0).all()
        assert (small == IGNORED).sum() == 14 * 16


def site_of(root: Path, config: Config, rows: list[Row] | None = None) -> Site:
    if not (root / "data").exists():
        write_site(root / "data", "site-1", {"train": 4, "val": 1, "test": 2}, seed=0)
    if rows is not None:
        write_csv(root / "data/datalist.csv", rows)
    return Site("site-1", config, Places(root / "data", root / f"store-{config.digest()[:8]}"))


def rows_of(root: Path) -> list[Row]:
    return rows_below(root / "data")


def rows_below(folder: Path) -> list[Row]:
    return [row for rows in read(folder / "datalist.csv").values() for row in rows]


def trained(site: Site) -> dict[str, torch.Tensor]:
    site.receive(initial_shared(site.config)[0])
    site.train(0, 1)
    return site.shared()


def plain(**changes: object) -> Config:
    return tiny(method="fedavg", train={"augment": False, "max_steps": None}, **changes)


def test_only_training_takes_weak_labels(tmp_path: Path) -> None:
    site = site_of(tmp_path, plain(data={"weaken": {"site-1": "scribble"}}))
    batch = site.data["train"].batch([View(i, PLAIN) for i in range(4)])
    assert batch.ignores
    assert (batch.label == IGNORED).float().mean() > 0.5
    assert {0, 1} <= set(batch.label.unique().tolist())
    for split in ("val", "test"):
        assert not site.data[split].ignores
        assert site.data[split].batch([View(0, PLAIN)]).label.max() <= 1
        assert reference(site.data[split], 0).any()
    assert torch.equal(site.data["train"].label(View(1, PLAIN)), batch.label[1])


def test_a_datalist_s_weak_mask_is_what_training_reads_and_evaluation_does_not(tmp_path: Path) -> None:
    """Weak labels beside the whole masks train to the same model as weak labels alone."""
    site_of(tmp_path, plain())
    data, rows = tmp_path / "data", rows_of(tmp_path)
    for row in rows:
        labels = torch.from_numpy(np.array(Image.open(data / row.mask))).long()
        Image.fromarray(weakened(labels, "scribble", 5).numpy().astype(np.uint8)).save(data / Path(row.image).name)
    beside = [Row(r.image, r.mask, r.split, r.group, Path(r.image).name) for r in rows]
    both = site_of(tmp_path, plain(), beside)
    with (data / "datalist.csv").open() as file:
        assert next(csv.reader(file)) == ["image", "mask", "split", "group", "weak"]
    assert (both.data["train"].batch([View(0, PLAIN)]).label == IGNORED).float().mean() > 0.5
    one, scores = trained(both), both.scores("test")
    assert not both.data["test"].ignores
    alone = [Row(r.image, "", r.split, r.group, r.weak) if r.split == "train" else r for r in beside]
    other = site_of(tmp_path, plain(study="alone"), alone)
    again = trained(other)
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    assert scores == other.scores("test")
    assert any(s.dice is not None for s in scores["global"])


def test_images_without_masks_are_left_out_of_methods_that_need_labels_and_do_not_count(tmp_path: Path) -> None:
    """Two labelled images train to the same model whether or not two others are there."""
    site_of(tmp_path, plain())
    rows = rows_of(tmp_path)
    train = [row for row in rows if row.split == "train"]
    rest = [row for row in rows if row.split != "train"]
    bare = [Row(row.image, "", row.split, row.group) for row in train[2:]]
    few = site_of(tmp_path, plain(study="few"), [*train[:2], *rest])
    shared = trained(few)
    more = site_of(tmp_path, plain(study="more"), [*train[:2], *bare, *rest])
    more.receive(initial_shared(more.config)[0])
    update = more.train(0, 1)
    assert update.samples == 2
    assert update.report.seen == 2
    assert all(torch.equal(tensor, shared[name]) for name, tensor in more.shared().items())


def test_a_method_of_unlabelled_images_gets_them_without_a_label(tmp_path: Path) -> None:
    site_of(tmp_path, plain())
    rows = rows_of(tmp_path)
    rows[0] = Row(rows[0].image, "", "train", rows[0].group)
    write_csv(tmp_path / "data/datalist.csv", rows)
    data = open_site(tmp_path / "data", "site-1", plain(), unlabelled=True)["train"]
    assert len(data) == 4
    assert data.labelled() == [1, 2, 3]
    batch = data.batch([View(0, PLAIN), View(1, PLAIN)])
    assert batch.ignores
    assert (batch.label[0] == IGNORED).all()
    assert (batch.label[1] != IGNORED).all()


def test_every_other_image_of_a_batch_has_a_label_where_some_have_none(tmp_path: Path) -> None:
    config = plain(data={"unlabelled": {"site-1": 0.75}})
    write_site(tmp_path / "data", "site-1", {"train": 12, "val": 1, "test": 1}, seed=0)
    data = open_site(tmp_path / "data", "site-1", config, unlabelled=True)["train"]
    known, draw = set(data.labelled()), torch.Generator().manual_seed(0)
    assert len(known) == 3
    epochs = [list(data.order(draw)) for _ in range(2)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4, 4, 4]
        assert all(len(known & set(batch)) == 2 for batch in batches)
        slices = [i for batch in batches for i in batch]
        assert [slices.count(i) for i in sorted(known)] == [2, 2, 2]
        assert len(set(slices) - known) == 6
    assert epochs[0] != epochs[1]


def test_a_share_of_the_masks_goes_by_seed_at_its_site_alone() -> None:
    rows = [Row(f"{i}.png", f"{i}_m.png", "train", str(i)) for i in range(20)]
    config = tiny(data={"unlabelled": {"site-1": 0.6}})
    kept = taken(rows, config, "site-1", unlabelled=False)
    assert len(kept) == 8
    assert kept == taken(rows, config, "site-1", unlabelled=False)
    assert kept != taken(rows, tiny(seed=1, data={"unlabelled": {"site-1": 0.6}}), "site-1", unlabelled=False)
    every = taken(rows, config, "site-1", unlabelled=True)
    assert [row.image for row in every] == [row.image for row in rows]
    assert [row for row in every if row.mask] == kept
    assert taken(rows, config, "site-2", unlabelled=False) == rows
    with pytest.raises(UserFault, match="training image with a mask at site-1 for pfedsam; came 20 without"):
        taken(rows, tiny(data={"unlabelled": {"site-1": 1.0}}), "site-1", unlabelled=False)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_row_without_a_mask_is_of_the_training_split(tmp_path: Path, split: str) -> None:
    site_of(tmp_path, plain())
    rows = [Row(r.image, "" if r.split == split else r.mask, r.split, r.group) for r in rows_of(tmp_path)]
    with pytest.raises(UserFault, match="nothing in mask"):
        read(write_csv(tmp_path / "data/datalist.csv", rows))


def test_settings_without_weak_labels_have_the_digest_that_they_had_before_there_were_any() -> None:
    assert "weaken" not in tiny().text()
    assert "unlabelled" not in tiny().text()
    config = tiny(data={"weaken": {"a": "box"}, "unlabelled": {"a": 0.5}})
    assert tiny().unlike(config) == {"data.weaken": {"a": "box"}, "data.unlabelled": {"a": 0.5}}
    assert config.unlike(tiny()) == {"data.weaken": {}, "data.unlabelled": {}}


def test_a_datalist_s_weak_masks_are_prepared_beside_the_whole_ones_and_bare_rows_are_named(tmp_path: Path) -> None:
    write_site(tmp_path / "hospital", "site-1", {"train": 4, "val": 1, "test": 1}, seed=0)
    data, rows = tmp_path / "hospital", rows_below(tmp_path / "hospital")
    sparse = np.full((128, 128), IGNORED, np.uint8)
    sparse[10, 20:40], sparse[60, :9] = 1, 0
    Image.fromarray(sparse).save(data / "weak.png")
    bare, first, *rest = rows
    write_csv(
        data / "datalist.csv",
        [replace(bare, mask=""), replace(first, weak="weak.png"), *rest],
    )
    report = prepare([data], tmp_path / "out", Wish())
    (one,) = [row for row in rows_below(tmp_path / "out") if row.weak]
    assert one.mask != one.weak
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / one.weak)), sparse)
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / one.mask)), np.array(Image.open(data / first.mask)))
    assert [(left["file"], left["why"]) for left in report["dropped"]] == [(bare.image, "the datalist names no mask")]
