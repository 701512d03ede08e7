from pathlib import Path

import numpy as np

from pfedsam.data import datalist
from pfedsam.data.synthetic import DEMO_SITES, PRETRAIN_SITES, appearance_of, draw, write_pool, write_site


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_site(tmp_path / name, "site-1", {"train": 2, "val": 1, "test": 1}, seed=5)
    write_site(tmp_path / "c", "site-1", {"train": 2, "val": 1, "test": 1}, seed=6)
    bytes_of = [b"".join(p.read_bytes() for p in sorted((tmp_path / n).rglob("*.png"))) for n in ("a", "b", "c")]
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]


def test_a_written_site_is_a_legal_one(tmp_path: Path) -> None:
    path = write_site(tmp_path, "site-2", {"train": 3, "val": 1, "test": 2}, seed=0)
    assert [len(rows) for rows in datalist.read(path, "site-2").values()] == [3, 1, 2]


def test_sites_differ_in_what_differs_between_hospitals() -> None:
    looks = list(DEMO_SITES.values())
    assert len(looks) >= 4
    for feature in ("gamma", "contrast", "cast", "noise", "blur", "side", "view", "lesion"):
        assert len({getattr(look, feature) for look in looks}) > 1, feature
    assert sum(look.margin > 0 for look in looks) == 1


def test_no_demo_site_looks_as_the_pretraining_did() -> None:
    assert not set(DEMO_SITES.values()) & set(PRETRAIN_SITES)


def test_the_mask_covers_what_is_brighter_or_darker() -> None:
    for look in PRETRAIN_SITES:
        differences = []
        for seed in range(8):
            image, mask = draw(look, np.random.default_rng(seed))
            grey = image.mean(-1)
            ring = (np.hypot(*(np.indices(mask.shape) - look.side / 2)) < 0.3 * look.side) & (mask == 0)
            differences.append(grey[mask > 0].mean() - grey[ring].mean())
        assert (np.mean(differences) < 0) == look.dark


def test_an_unknown_site_has_an_appearance_of_its_own_that_stays() -> None:
    assert appearance_of("hospital-a") == appearance_of("hospital-a") != appearance_of("hospital-b")


def test_the_pool_holds_every_demo_site_s_images(tmp_path: Path) -> None:
    rows = datalist.read(write_pool(tmp_path, {"train": 2, "val": 1, "test": 1}, seed=0))
    assert {split: len(found) for split, found in rows.items()} == {
        split: count * len(DEMO_SITES) for split, count in {"train": 2, "val": 1, "test": 1}.items()
    }
