"""The base on disk: what comes back is what the backbone is, mapped and not copied."""

import logging
from pathlib import Path

import pytest
import torch

from pfedsam.config import ModelConfig
from pfedsam.errors import UserFault
from pfedsam.model import build
from pfedsam.model.prepared import prepared

DEMO = ModelConfig(backbone="demo", image_size=64)


def tensors(parts: object) -> dict[str, torch.Tensor]:
    return {
        f"{n}.{k}": v for n in ("encoder", "decoder", "position") for k, v in getattr(parts, n).state_dict().items()
    }


def test_in_float32_the_prepared_base_is_the_backbone_bit_for_bit(tmp_path: Path) -> None:
    expected = build.backbone(DEMO)
    parts, digest = prepared(DEMO, None, tmp_path, bf16=False)
    assert digest == build.base_digest(expected)
    found = tensors(parts)
    assert found.keys() == tensors(expected).keys()
    assert all(torch.equal(found[name], value) for name, value in tensors(expected).items())
    assert not any(p.requires_grad for p in parts.encoder.parameters())


def test_rounded_it_computes_what_autocast_computes_and_keeps_its_digest(tmp_path: Path) -> None:
    plain = build.backbone(DEMO)
    parts, digest = prepared(DEMO, None, tmp_path, bf16=True)
    assert digest == build.base_digest(plain)
    image = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(parts.encoder(image), plain.encoder(image))


def test_real_tiny_vit_comes_back_with_its_lookup_tables(real: Path, tmp_path: Path) -> None:
    config = ModelConfig(backbone="tiny_vit", image_size=256)
    plain, image = build.backbone(config, real / "weights"), torch.randn(1, 3, 256, 256)
    parts, _ = prepared(config, real / "weights", tmp_path, bf16=False)
    found, expected = parts.encoder.eval()(image), plain.encoder.eval()(image)
    assert torch.allclose(found, expected, atol=1e-5)  # a mapped tensor's address may choose another kernel
    assert all(torch.equal(v, tensors(plain)[name]) for name, v in tensors(parts).items())


def test_it_is_written_once_and_mapped_from_then_on(tmp_path: Path) -> None:
    prepared(DEMO, None, tmp_path, bf16=True)
    (path,) = tmp_path.glob("*.safetensors")
    written = path.stat().st_mtime_ns
    parts, _ = prepared(DEMO, None, tmp_path, bf16=True)
    assert path.stat().st_mtime_ns == written
    if Path("/proc/self/maps").exists():
        assert str(path) in Path("/proc/self/maps").read_text()
    assert parts.encoder.channels == 128


@pytest.mark.parametrize("harm", ["torn", "flipped", "no note"])
def test_a_damaged_file_is_prepared_anew(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    prepared(DEMO, None, tmp_path, bf16=True)
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    if harm == "no note":
        path.with_suffix(".json").unlink()
    else:
        path.unlink()  # a new file: the old one may still be mapped
        path.write_bytes(whole[:-100] if harm == "torn" else whole[:-1] + bytes([whole[-1] ^ 1]))
    with caplog.at_level(logging.INFO):
        prepared(DEMO, None, tmp_path, bf16=True)
    assert path.read_bytes() == whole
    assert ("is damaged" in caplog.text) == (harm != "no note")


def test_missing_weights_are_told_as_ever(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match=r"sam_vit_b_01ec64\.pth"):
        prepared(ModelConfig(backbone="vit_b", image_size=256), tmp_path, tmp_path, bf16=True)
    assert not list(tmp_path.glob("*.safetensors"))


def test_without_pretrained_weights_everybody_has_the_same_ones(tmp_path: Path) -> None:
    random = ModelConfig(backbone="tiny_vit", image_size=64, pretrained=False)
    parts, digest = prepared(random, tmp_path / "no weights", tmp_path, bf16=False)
    torch.manual_seed(7)
    assert digest == build.base_digest(build.backbone(random)) == build.base_digest(parts)
    assert digest != build.base_digest(build.backbone(DEMO))
