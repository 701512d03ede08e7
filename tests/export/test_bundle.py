"""MONAI runs the bundle, and its masks are the model's."""

import errno
import json
import re
import shutil
import sys
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from conftest import tiny
from pfedsam.cli import main
from pfedsam.data import reader
from pfedsam.errors import UserFault
from pfedsam.export.bundle import Labels, pictures, write_bundle
from pfedsam.inference.predictor import load_model
from pfedsam.study import initial_shared
from pfedsam.tensors import pack

REQUIRED = (  # what MONAI's schema of metadata asks for, and for each tensor in network_data_format
    *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
    *("task", "description", "authors", "copyright", "network_data_format"),
)
TENSOR = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"}


@pytest.fixture(scope="module")
def bundle(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    write_bundle(model_file, folder, "personal", "# Card\n")
    return folder


@pytest.mark.filterwarnings("ignore:parsing config_file")  # MONAI warns of any configuration that it runs
def test_monai_runs_it_on_a_folder_and_its_masks_are_the_model_s(bundle: Path, hospital: Path, tmp_path: Path) -> None:
    images, rng = tmp_path / "images [2026]", np.random.default_rng(0)
    images.mkdir()
    drawn = sorted((hospital / "site-1/images").glob("*.png"))[0]
    (images / "drawn.png").write_bytes(drawn.read_bytes())
    Image.fromarray(rng.integers(0, 256, (40, 72), np.uint8)).save(images / "grey.png")  # neither square nor RGB
    config = str(bundle / "configs/inference.json")
    override = {"bundle_root": str(bundle), "dataset_dir": str(images), "output_dir": str(tmp_path / "masks")}
    monai.bundle.run(meta_file=str(bundle / "configs/metadata.json"), config_file=config, **override)
    model = load_model(bundle / "models/model.safetensors")
    for path in images.glob("*.png"):
        picture = torch.from_numpy(reader.read_image(path) / 255).permute(2, 0, 1)
        found = np.asarray(Image.open(tmp_path / f"masks/{path.stem}_mask.png"))
        assert np.array_equal(found, model.mask(picture, "personal")[0].numpy().astype(np.uint8)), path.name


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match=r"came no such folder.*correct --dataset_dir"):
        pictures(str(tmp_path / "typo"))
    with pytest.raises(UserFault, match="came no such file"):
        pictures(str(tmp_path))
    (tmp_path / "A.PNG").write_bytes(b"")
    with pytest.raises(UserFault, match=r"came 1 files of other kinds, such as A\.PNG"):
        pictures(str(tmp_path))


def test_monai_finds_the_network_s_channels_and_numbers_as_the_metadata_say(bundle: Path) -> None:
    files = {
        f"{kind}_file": str(bundle / f"configs/{name}.json")
        for kind, name in (("meta", "metadata"), ("config", "inference"))
    }
    monai.bundle.verify_net_in_out("network_def", **files, device="cpu", any=48, bundle_root=str(bundle))


def test_the_metadata_have_all_that_monai_s_schema_asks_for(bundle: Path) -> None:
    known = json.loads((bundle / "configs/metadata.json").read_text())
    assert known.keys() >= set(REQUIRED)
    tensors = [*known["network_data_format"]["inputs"].values(), *known["network_data_format"]["outputs"].values()]
    assert all(tensor.keys() >= TENSOR for tensor in tensors)
    assert known["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "class 1"}


def test_its_readme_has_the_card_and_the_commands(bundle: Path) -> None:
    text = (bundle / "docs/README.md").read_text()
    assert text.startswith("# Card")
    for named in re.findall(r"configs/[a-z]+\.[a-z]+", text):
        assert (bundle / named).is_file(), named
    assert {"configs/inference.json", "configs/train.json"} <= set(re.findall(r"configs/[a-z]+\.json", text))
    assert (bundle / "LICENSE").is_file()


def test_each_setting_that_its_readme_names_is_one_of_its_training(bundle: Path) -> None:
    text, known = (bundle / "docs/README.md").read_text(), json.loads((bundle / "configs/train.json").read_text())
    table = [line for line in text.splitlines() if line.startswith("| `--")]
    assert table
    assert set(re.findall(r"`--(\w+)`", "".join(table))) <= known.keys()


def test_the_likeliest_of_overlapping_classes_is_written() -> None:
    logits = torch.tensor([[[2.0, -1.0, 1.0]], [[1.0, -2.0, 3.0]]])
    sample = {"image": MetaTensor(torch.zeros(3, 1, 3), meta={"filename_or_obj": "a.png"}), "pred": logits}
    assert Labels(False)(sample)["pred"].tolist() == [[[1, 0, 2]]]
    assert Labels(True)(sample)["pred"].tolist() == [[[0, 0, 1]]]
    assert Labels(True)(sample)["pred"].meta["filename_or_obj"] == "a.png"


def test_a_folder_that_exists_is_left_alone(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="a folder that does not exist yet"):
        write_bundle(model_file, tmp_path, "personal", "")


def test_a_disk_that_fills_leaves_no_half_bundle(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserFault, match="No space left"):
        write_bundle(model_file, tmp_path / "new/bundle", "personal", "")
    assert not list(tmp_path.rglob("*bundle*"))


@pytest.mark.parametrize(
    ("bundle", "branch", "told"), [("file/bundle", "global", "file/bundle"), ("bundle", "personal", "came personal")]
)
def test_a_bundle_that_cannot_be_is_told_before_the_model_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bundle: str, branch: str, told: str
) -> None:
    config = tiny()
    shared, base = initial_shared(config)
    facts = {"run": "run", "config": config.digest(), "base": base, "settings": config.text(), "round": "1"}
    (tmp_path / "models").mkdir()
    (tmp_path / "models/shared.safetensors").write_bytes(pack(shared, facts))
    (tmp_path / "file").write_text("no folder")
    out = tmp_path / "model.safetensors"
    command = ["export", str(tmp_path), "--out", str(out), "--bundle", str(tmp_path / bundle), "--branch", branch]
    assert main(command) == 2
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "models"]


def test_a_bundle_without_monai_is_told_before_the_model_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny()
    shared, base = initial_shared(config)
    facts = {"run": "run", "config": config.digest(), "base": base, "settings": config.text(), "round": "1"}
    (tmp_path / "shared.safetensors").write_bytes(pack(shared, facts))
    monkeypatch.delitem(sys.modules, "pfedsam.export.bundle")
    monkeypatch.setitem(sys.modules, "monai", None)
    command = ["export", str(tmp_path), "--shared", str(tmp_path / "shared.safetensors")]
    assert main([*command, "--out", str(tmp_path / "m.safetensors"), "--bundle", str(tmp_path / "b")]) == 2
    assert "pfedsam[bundle]" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["shared.safetensors"]
