import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT

from pfedsam.errors import UserFault
from pfedsam.model import weights
from pfedsam.model.backbones import BUILDERS, ViTShape, fit_positions, vit, vit_encoder
from pfedsam.model.encoder import adapt


def small(size: int) -> ImageEncoderViT:
    return ImageEncoderViT(size, embed_dim=32, depth=2, num_heads=2, use_rel_pos=True, window_size=14, out_chans=16)


def test_the_row_of_units_is_segment_anything_s_encoder() -> None:
    net, image = small(64).eval(), torch.randn(2, 3, 64, 64)
    expected = net(image)
    assert torch.allclose(vit_encoder(net)(image), expected, atol=1e-6)


def test_stem_and_body_are_the_whole_encoder_and_the_stem_is_frozen() -> None:
    encoder, image = vit_encoder(small(64)), torch.randn(1, 3, 64, 64)
    expected = encoder(image)
    adapt(encoder.requires_grad_(False), rank=2, alpha=2, last=1)
    assert encoder.split == 2
    assert torch.equal(encoder.body(encoder.stem(image)), expected)


def test_positions_fit_another_size_and_stay_as_they_are_at_their_own() -> None:
    big, little = small(128), small(64)
    state = fit_positions(big.state_dict(), little)
    little.load_state_dict(state)
    same = fit_positions(big.state_dict(), small(128))
    assert all(torch.equal(same[k], v) for k, v in big.state_dict().items())


def test_a_smooth_position_table_stays_smooth_when_interpolated() -> None:
    big = small(256)
    ramp = torch.linspace(0, 1, 16).view(1, 16, 1, 1).expand(1, 16, 16, 32)
    state = {**big.state_dict(), "pos_embed": ramp.clone()}
    table = fit_positions(state, small(128))["pos_embed"][0, :, 0, 0]
    assert torch.allclose(table[1:-1].diff(), table[1:-1].diff().mean().expand(5), atol=0.02)


@pytest.mark.parametrize(("name", "blocks", "width"), [("vit_b", 12, 768), ("vit_l", 24, 1024), ("vit_h", 32, 1280)])
def test_sam_s_three_sizes_have_sam_s_shapes(name: str, blocks: int, width: int) -> None:
    with torch.device("meta"):
        encoder = BUILDERS[name](256, None).encoder
    attention = [u for u in encoder.units if hasattr(u, "attn")]
    assert len(attention) == blocks
    assert attention[0].attn.qkv.in_features == width
    assert sum(u.window_size == 0 for u in attention) == 4


def test_vit_b_at_1024_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        parts = BUILDERS["vit_b"](1024, None)
    assert sum(p.numel() for p in parts.encoder.parameters()) == 89_670_912
    assert sum(p.numel() for p in parts.decoder.parameters()) == 4_058_340


def test_a_sam_state_loads_strictly_at_another_size() -> None:
    shape = ViTShape(width=32, depth=2, heads=2, every=2)
    source = vit(128, None, shape)
    net = ImageEncoderViT(128, embed_dim=32, depth=2, num_heads=2, use_rel_pos=True, window_size=14)
    state = {f"image_encoder.{k}": v for k, v in net.state_dict().items()}
    state |= {f"mask_decoder.{k}": v for k, v in source.decoder.state_dict().items()}
    state |= {f"prompt_encoder.pe_layer.{k}": v for k, v in source.position.state_dict().items()}
    parts = vit(64, state, shape)
    assert parts.encoder(torch.randn(1, 3, 64, 64)).shape == (1, 256, 4, 4)


def test_the_demo_weights_are_the_recorded_ones() -> None:
    import json

    path = weights.locate("demo")
    record = json.loads(path.with_suffix(".json").read_text())
    assert weights.sha256(path) == record["sha256"]
    assert path.stat().st_size <= 6_000_000


def test_missing_weights_are_told_with_file_hash_source_and_place(tmp_path: Path) -> None:
    with pytest.raises(UserFault) as fault:
        weights.read("vit_b", tmp_path)
    for part in ("sam_vit_b_01ec64.pth", "ec2df627", "github.com/facebookresearch", str(tmp_path), "PFEDSAM_WEIGHTS"):
        assert part in str(fault.value)


def test_a_file_with_the_right_name_and_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"not SAM")
    with pytest.raises(UserFault, match="sha256 ec2df627"):
        weights.read("vit_b", tmp_path)


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A known file's conversion, the file itself gone."""
    source = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save({"x": torch.arange(300.0)}, source)
    known = weights.WeightFile(source.name, weights.sha256(source), weights.SAM)
    monkeypatch.setitem(weights.KNOWN, "vit_b", (known,))
    monkeypatch.setitem(weights.FILES, known.name, known)
    target = weights.convert(source)
    source.unlink()
    return target


def test_a_known_file_is_converted_once_and_then_preferred(converted: Path) -> None:
    assert weights.locate("vit_b", converted.parent) == converted
    assert torch.equal(weights.read("vit_b", converted.parent)["x"], torch.arange(300.0))


@pytest.mark.parametrize("size", [0, 6, 40, 600])
def test_a_cut_conversion_is_to_be_converted_again(converted: Path, size: int) -> None:
    converted.write_bytes(converted.read_bytes()[:size])
    with pytest.raises(UserFault, match="delete it and run: pfedsam convert"):
        weights.locate("vit_b", converted.parent)
    with pytest.raises(UserFault, match="delete it and run: pfedsam convert"):
        weights.read("vit_b", converted.parent)


def test_a_changed_value_in_a_conversion_is_found_when_it_is_read(converted: Path) -> None:
    data = bytearray(converted.read_bytes())
    data[-2] ^= 1
    converted.write_bytes(data)
    assert weights.locate("vit_b", converted.parent) == converted
    with pytest.raises(UserFault, match="delete it and run: pfedsam convert"):
        weights.read("vit_b", converted.parent)


def test_a_conversion_of_an_earlier_version_is_still_read(converted: Path) -> None:
    known = weights.KNOWN["vit_b"][0]
    facts = {"source": known.name, "source_sha256": known.sha256}
    save_file({"x": torch.arange(3.0)}, converted, metadata=facts)
    assert torch.equal(weights.read("vit_b", converted.parent)["x"], torch.arange(3.0))


def test_a_conversion_that_finds_the_disk_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save({"x": torch.arange(3.0)}, source)
    monkeypatch.setitem(weights.FILES, source.name, weights.WeightFile(source.name, weights.sha256(source), ""))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserFault, match="No space left"):
        weights.convert(source)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_mobile_sam_loads_strictly_and_gives_its_embedding(real: Path, size: int) -> None:
    state = weights.read("tiny_vit", real / "weights")
    encoder = BUILDERS["tiny_vit"](size, state).encoder.eval()
    with torch.no_grad():
        embedding = encoder(torch.zeros(1, 3, size, size))
    assert embedding.shape == (1, 256, size // 16, size // 16)
    assert embedding.isfinite().all()
