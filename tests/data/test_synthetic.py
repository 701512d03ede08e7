import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import tiny
from pfedsam.cli import main
from pfedsam.data import datalist, synthetic
from pfedsam.data.synthetic import (
    DEMO_SITES,
    PRETRAIN_SITES,
    appearance_of,
    draw,
    drawn,
    write_pool,
    write_site,
)
from pfedsam.errors import UserFault


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


def test_synthetic_images_are_not_mixed_into_a_folder_that_holds_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/datalist.csv").write_text("image,mask,split,group\n")
    assert main(["synthetic", str(tmp_path / "mine")]) == 2
    assert "an empty or no folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["datalist.csv"]
    assert (tmp_path / "mine/datalist.csv").read_text() == "image,mask,split,group\n"


def test_a_path_below_a_file_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["synthetic", str(tmp_path / "file/site")]) == 2
    assert f"expected to write {tmp_path / 'file/site'}" in capsys.readouterr().err


@pytest.mark.parametrize("pool", [False, True])
def test_a_full_disk_is_told_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: bool
) -> None:
    counts = {"train": 1, "val": 1, "test": 1}
    real = Image.Image.save

    def full(image: Image.Image, path: Path) -> None:
        if "_test_" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(image, path)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserFault, match="No space left on device"):
        write_pool(tmp_path / "out", counts, 0) if pool else write_site(tmp_path / "out", "site-1", counts, 0)
    assert list(tmp_path.iterdir()) == []


def test_what_an_interruption_left_of_a_pool_does_not_stop_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    counts = {"train": 1, "val": 1, "test": 1}
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_pool(tmp_path / "out", counts, seed=0)
    assert write_pool(tmp_path / "out", counts, seed=0).is_file()


def test_a_run_with_other_counts_another_seed_or_a_pool_does_not_train_on_an_earlier_one_s_images(
    tmp_path: Path,
) -> None:
    few = {"source": "synthetic", "train": 2, "val": 1, "test": 1}
    jobs = [tiny(data=few), tiny(data={**few, "train": 3}), tiny(data=few, seed=1), tiny(data={**few, "pool": True})]
    folders = [drawn(tmp_path, "site-1", job) for job in jobs]
    assert len(set(folders)) == len(jobs)
    assert [len(datalist.read(folder / "datalist.csv")["train"]) for folder in folders] == [2, 3, 2, 8]
    images = [(folder / "images/synthetic_train_000.png").read_bytes() for folder in folders[:3]]
    assert images[0] == images[1] != images[2]
    kept = (folders[0] / "datalist.csv").stat().st_mtime_ns
    assert drawn(tmp_path, "site-1", tiny(data=few, study="other")) == folders[0]
    assert (folders[0] / "datalist.csv").stat().st_mtime_ns == kept


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_site_without_images_of_a_split_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    assert main(["synthetic", str(tmp_path / "site"), f"--{split}", "0"]) == 2
    assert f"--{split} of 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()
