"""Public sets as downloaded become a folder a site; an archive can put nothing elsewhere."""

import contextlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from prepare.corpus import lesion, nifti, picture, scan
from public_sets import RECIPES, Recipe, cook, main, unpack

from pfedsam.data import datalist, reader
from pfedsam.errors import UserFault
from pfedsam.prepare.site import Wish


def prostate(folder: Path, count: int = 3) -> Path:
    for site in RECIPES["prostate"].sites:
        for i in range(count):
            nifti(folder / f"{site}/Case{i:02d}.nii.gz", scan(i, (9, 8, 3)))
            end = "Segmentation" if site == "UCL" else "segmentation"
            nifti(folder / f"{site}/Case{i:02d}_{end}.nii.gz", lesion(i, (9, 8, 3)) * min(i + 1, 2))
    return folder


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for file in sorted(folder.rglob("*")):
            packed.write(file, Path("top") / file.relative_to(folder))
    return path


def test_the_prostate_set_becomes_six_sites(tmp_path: Path) -> None:
    few = Recipe("", {"BIDMC": 2, "ISBI": 2, "ISBI_1.5": None}, RECIPES["prostate"].table)
    nifti(tmp_path / "raw/BIDMC/Case09.nii.gz", scan(9, (9, 8, 3)))
    archive = zipped(prostate(tmp_path / "raw"), tmp_path / "raw.zip")
    answer = cook([archive], tmp_path / "out", few, Wish())
    assert set(answer["sites"]) == {"BIDMC", "ISBI", "ISBI_1.5"}
    assert answer["faults"] == ["BIDMC: 3 cases, but the set has 2", "ISBI: 3 cases, but the set has 2"]
    assert answer["sites"]["BIDMC"]["dropped"][0]["file"] == "Case09.nii.gz"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["BIDMC", "ISBI", "ISBI_1.5"]
    assert set(datalist.read(tmp_path / "out/BIDMC/datalist.csv")) == {"train", "val", "test"}


def test_zones_of_the_prostate_are_one_class(tmp_path: Path) -> None:
    answer = cook([prostate(tmp_path / "raw")], tmp_path / "out", RECIPES["prostate"], Wish())
    assert all(report["classes"] == 1 and report["labels"][1]["cases"] == 3 for report in answer["sites"].values())
    assert answer["faults"][0] == "BIDMC: 3 cases, but the set has 12"


def test_the_fundus_set_has_rim_and_cup(tmp_path: Path) -> None:
    mask = np.full((12, 12), 255, np.uint8)
    mask[2:9, 2:9], mask[4:6, 4:6] = 128, 0
    for domain in range(1, 5):
        for i, (split, name) in enumerate((("train", "a1"), ("train", "b1"), ("test", "c1"))):
            where = tmp_path / f"raw/Fundus/Domain{domain}/{split}/ROIs"
            picture(where / f"image/{name}.png", scan(4 * domain + i, (12, 12, 3)).astype(np.uint8))
            picture(where / f"mask/{name}.png", mask)
    answer = cook([tmp_path / "raw"], tmp_path / "out", RECIPES["fundus"], Wish())
    assert len(answer["sites"]) == 4
    assert not answer["complete"]
    labels = reader.read_mask(tmp_path / "out/Domain2/masks/case-0001.png", 0, 2)
    assert np.array_equal(labels, np.select([mask == 128, mask == 0], [1, 2], 0))


def test_fedfms_fundus_joins_soft_maps_and_reads_each_set_s_own_values(tmp_path: Path) -> None:
    truth = np.zeros((12, 12), np.uint8)
    truth[2:9, 2:9], truth[4:6, 4:6] = 1, 2
    for i in range(3):
        eye = scan(i, (12, 12, 3)).astype(np.uint8)
        picture(tmp_path / f"raw/ORIGA/Images/{i}.png", eye)
        picture(tmp_path / f"raw/ORIGA/Masks/{i}.png", truth)
        picture(tmp_path / f"raw/REFUGE/train/Images/{i}.png", eye)
        picture(tmp_path / f"raw/REFUGE/train/Masks/{i}.png", np.array([255, 128, 0], np.uint8)[truth])
        maps = tmp_path / f"raw/Drishti-GS1_files/Training/GT/drishtiGS_{i:03d}/SoftMap"
        picture(tmp_path / f"raw/Drishti-GS1_files/Training/Images/drishtiGS_{i:03d}.png", eye)
        picture(maps / f"drishtiGS_{i:03d}_ODsegSoftmap.png", (truth > 0).astype(np.uint8) * 200 + 20)
        picture(maps / f"drishtiGS_{i:03d}_cupsegSoftmap.png", (truth > 1).astype(np.uint8) * 200 + 20)
    answer = cook([tmp_path / "raw"], tmp_path / "out", RECIPES["fedfms-fundus"], Wish())
    assert "G1020: no folder of that name" in answer["faults"]
    for site in ("ORIGA", "REFUGE", "Drishti-GS1"):
        assert answer["sites"][site]["cases"] == 3
        assert np.array_equal(reader.read_mask(tmp_path / "out" / site / "masks/case-0001.png", 0, 2), truth)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Drishti-GS1", "ORIGA", "REFUGE"]


def test_nuclei_of_any_number_are_one_class(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"raw/TNBC/images/{i}.png", scan(i, (9, 9, 3)).astype(np.uint8))
        picture(tmp_path / f"raw/TNBC/labels/{i}.png", np.arange(81, dtype=np.uint16).reshape(9, 9))
    assert main(["nuclei", str(tmp_path / "raw"), str(tmp_path / "out")]) == 1
    assert reader.read_mask(tmp_path / "out/TNBC/masks/case-0001.png", 0, 1).sum() == 80


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:/evil.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_puts_nothing_elsewhere(tmp_path: Path, name: str, kind: str) -> None:
    path, folder = tmp_path / f"bad.{kind}", tmp_path / "in"
    folder.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("fine.txt", "x")
            packed.writestr(name, "x")
    else:
        with tarfile.open(path, "w:gz") as rolled:
            rolled.addfile(tarfile.TarInfo(name), io.BytesIO())
    with contextlib.suppress(UserFault):
        unpack(path, folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "in"]
    assert not Path("/tmp/evil.txt").exists()


def test_a_tar_of_the_folder_it_was_made_in_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.txt").write_text("x")
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as rolled:
        rolled.add(tmp_path / "raw", ".")
        assert rolled.getnames() == [".", "./a.txt"]
    unpack(tmp_path / "set.tar.gz", tmp_path / "in")
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.txt"]


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("out")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    with tarfile.open(tmp_path / "bad.tar", "w") as rolled:
        rolled.addfile(link)
    with pytest.raises(UserFault, match=r"bad\.tar"):
        unpack(tmp_path / "bad.tar", tmp_path)


def test_a_damaged_archive_is_one_clear_fault_and_leaves_nothing(tmp_path: Path) -> None:
    archive = zipped(prostate(tmp_path / "raw"), tmp_path / "raw.zip")
    damaged = bytearray(archive.read_bytes())
    damaged[200:260] = bytes(60)
    archive.write_bytes(damaged)
    with pytest.raises(UserFault, match=r"raw\.zip"):
        cook([archive], tmp_path / "out", RECIPES["prostate"], Wish())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw", "raw.zip"]
