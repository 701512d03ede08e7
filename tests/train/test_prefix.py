"""The cache of the frozen front changes nothing but time."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import tiny
from pfedsam.config import to_dict
from pfedsam.data.augment import augmentation
from pfedsam.data.dataset import PLAIN, Batch, View
from pfedsam.errors import UserFault
from pfedsam.layout import Places
from pfedsam.settings import from_dict
from pfedsam.site import Site
from pfedsam.study import initial_shared
from pfedsam.train.precision import autocast
from pfedsam.train.prefix import Bounded, Disk, prefix

TRAIN = {"views": 2, "cache": "memory", "max_steps": None, "epochs": 2, "batch_size": 4}
LAST = {"lora_last": 2}


def entry(value: float, size: int = 100) -> dict[str, torch.Tensor]:
    return {"hidden": torch.full((size,), value, dtype=torch.bfloat16)}


def sent(hospital: Path, folder: Path, **train: object) -> dict[str, torch.Tensor]:
    """What a site sends after two rounds."""
    config = tiny(model=LAST, train={**TRAIN, **train})
    site = Site("site-1", config, Places(hospital, folder / "store", scratch=folder / "scratch"))
    shared, _ = initial_shared(config)
    wire = {}
    for round_ in range(2):
        site.receive(shared)
        wire = site.train(round_, 2).wire
    return wire


@pytest.mark.parametrize("train", [{"cache_gb": 1e-6}, {"cache": "disk"}, {"cache": "disk", "cache_gb": 1e-5}])
def test_a_round_is_the_same_bits_whatever_the_cache_still_holds(
    hospital: Path, tmp_path: Path, train: dict[str, object]
) -> None:
    expected = sent(hospital, tmp_path / "a")
    found = sent(hospital, tmp_path / "b", **train)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_cached_view_is_the_front_of_that_view_augmented(hospital: Path, tmp_path: Path) -> None:
    site = Site("site-1", tiny(model=LAST, train=TRAIN), Places(hospital, tmp_path))
    front, data, change = prefix(site.model, site.config, tmp_path), site.data["train"], augmentation(5, site.config)
    assert front is not None
    views = [View(0, 0), View(0, 1), View(1, 0), View(0, PLAIN)]
    for _ in range(2):
        batch = front.batch(data, views, change)
        for row, view in enumerate(views):
            alone = data.batch([view], change)
            with torch.no_grad(), autocast(torch.device("cpu"), "fp32"):
                hidden = site.model.stem(alone.image)[0].bfloat16().float()
            assert torch.equal(batch.image[row], hidden)
            assert torch.equal(batch.label[row], alone.label[0])
    assert not torch.equal(batch.image[0], batch.image[1])


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_mask_or_an_image_that_was_corrected_is_not_answered_from_the_cache(
    hospital: Path, tmp_path: Path, cache: str
) -> None:
    """With all masks emptied the disk once still gave the old labels, and a new image its old picture."""
    shutil.copytree(hospital, tmp_path / "data")
    config = tiny(model=LAST, train={**TRAIN, "cache": cache})

    def batch() -> Batch:
        if cache == "disk" or not sites:
            sites.append(Site("site-1", config, Places(tmp_path / "data", tmp_path / "store")))
        site = sites[-1]
        return site._source(site.data["train"], [View(0, 1), View(1, PLAIN)], augmentation(5, config))

    sites: list[Site] = []
    before = batch()
    row = sites[0].data["train"].slices[0]
    Image.fromarray(np.zeros(row.shape, np.uint8)).save(row.mask)
    assert before.label[0].any()
    emptied = batch()
    assert torch.equal(emptied.image, before.image)
    assert not emptied.label[0].any()
    assert torch.equal(emptied.label[1], before.label[1])
    Image.fromarray(np.zeros((*row.shape, 3), np.uint8)).save(row.image)
    blackened = batch()
    assert not torch.equal(blackened.image[0], before.image[0])
    assert torch.equal(blackened.image[1], before.image[1])


def test_evaluation_behind_the_front_finds_what_the_whole_model_finds(hospital: Path, tmp_path: Path) -> None:
    cached = Site("site-1", tiny(model=LAST, train=TRAIN), Places(hospital, tmp_path / "a"))
    whole = Site("site-1", tiny(model=LAST), Places(hospital, tmp_path / "b"))
    shared, _ = initial_shared(whole.config)
    for site in (cached, whole):
        site.receive(shared)
    found, expected = cached.summary("test", "global"), whole.summary("test", "global")
    assert found["dice"] == pytest.approx(expected["dice"], abs=0.02)
    assert expected["dice"] > 0


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_the_shelf_stays_within_its_bound_and_drops_what_was_not_used_for_longest(tmp_path: Path, kind: str) -> None:
    size = 200 if kind == "memory" else None
    shelf = Bounded({} if kind == "memory" else Disk(tmp_path), 3 * 200)
    for number in range(3):
        shelf.put(str(number), entry(number))
    assert shelf.get("0") is not None
    shelf.put("3", entry(3))
    assert shelf.get("1") is None
    assert [float(shelf.get(key)["hidden"][0]) for key in ("0", "2", "3")] == [0, 2, 3]
    assert shelf.used == 600
    assert size is None or shelf.used == 3 * size


def test_a_disk_shelf_finds_what_an_earlier_process_left_and_skips_what_is_torn(tmp_path: Path) -> None:
    first = Bounded(Disk(tmp_path), 10_000)
    first.put("a", entry(1))
    first.put("b", entry(2))
    (tmp_path / "a.safetensors").write_bytes(b"torn")
    again = Bounded(Disk(tmp_path), 10_000)
    assert again.get("a") is None
    assert torch.equal(again.get("b")["hidden"], entry(2)["hidden"])


def test_a_cache_of_views_that_never_come_again_is_refused() -> None:
    with pytest.raises(UserFault, match=r"train\.views"):
        tiny(train={"cache": "memory"})
    assert from_dict({**to_dict(tiny()), "train": {"cache": "memory", "augment": False}}).train.cache == "memory"
