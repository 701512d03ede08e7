"""Pixels that nobody labelled (`data.ignore`) take no part in a round or a score."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import tiny
from pfedsam.config import Config
from pfedsam.data.dataset import PLAIN, View
from pfedsam.data.square import fit_labels, shrink
from pfedsam.data.synthetic import write_site
from pfedsam.layout import Places
from pfedsam.site import Site
from pfedsam.study import initial_shared
from pfedsam.train.evaluate import reference

SPLITS = {"train": 4, "val": 1, "test": 2}


def site_of(root: Path, config: Config, right: int | None) -> Site:
    """A synthetic site; the right half of its masks has the value `right`, and the left half its labels."""
    write_site(root / "data", "site-1", SPLITS, seed=0)
    for path in (root / "data/masks").iterdir():
        mask = np.asarray(Image.open(path)).copy()
        if right is not None:
            mask[:, mask.shape[1] // 2 :] = right
        Image.fromarray(mask).save(path)
    return Site("site-1", config, Places(root / "data", root / "store"))


def ignoring(value: int) -> Config:
    return tiny(data={"ignore": value}, train={"augment": False})


def trained(site: Site) -> dict[str, torch.Tensor]:
    """The shared part after a round that begins alike for all settings."""
    site.receive(initial_shared(site.config)[0])
    site.train(0, 1)
    return site.shared()


def test_a_site_trains_to_the_same_weights_whatever_value_marks_what_nobody_labelled(tmp_path: Path) -> None:
    """255 and 200 mean the same there; as background the same half trains another model."""
    one, other = (trained(site_of(tmp_path / str(value), ignoring(value), value)) for value in (255, 200))
    background = trained(site_of(tmp_path / "0", ignoring(255), 0))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert not all(torch.equal(tensor, background[name]) for name, tensor in one.items())


def test_what_is_found_where_nobody_labelled_is_neither_right_nor_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that finds the whole left half's labels and all of the right half is perfect."""
    site = site_of(tmp_path, ignoring(255), 255)
    data = site.data["test"]

    def eager(logits: torch.Tensor, _: object, i: int) -> torch.Tensor:
        found = reference(data, i)
        found[..., found.shape[-1] // 2 :] = True
        return found

    monkeypatch.setattr("pfedsam.train.evaluate.masks", eager)
    scores = site.scores("test")["global"]
    assert [one.dice for one in scores if one.dice is not None] == [1.0] * sum(one.dice is not None for one in scores)
    assert {one.hd95 for one in scores if one.dice is not None} == {0.0}
    assert not any(one.found for one in scores if one.dice is None)
    assert any(one.dice is not None for one in scores)


def test_a_batch_says_where_nobody_labelled_at_the_size_of_the_loss(tmp_path: Path) -> None:
    batch = site_of(tmp_path, ignoring(200), 200).data["train"].batch([View(0, PLAIN)])
    assert batch.ignores
    assert (batch.label[..., 33:] == 255).all()
    assert (batch.label[..., :31] < 2).all()


def test_a_mask_is_shrunk_by_the_numbers_in_it_not_by_all_up_to_the_largest() -> None:
    mask = torch.zeros(1, 64, 64, dtype=torch.long)
    mask[:, :32, :32], mask[:, 32:] = 1, 255
    small = shrink(mask, 16)
    assert (small[0, :7, :7] == 1).all()
    assert (small[0, :7, 9:] == 0).all()
    assert (small[0, 9:] == 255).all()
    assert set(small.unique().tolist()) == {0, 1, 255}
    assert torch.equal(fit_labels(mask[0], 16), small[0])
