"""The graph computes what torch does, for every way a branch can be built."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import pfedsam
from conftest import ROOT, after_a_round, save_model, tiny
from pfedsam.errors import UserFault
from pfedsam.export.merge import merged, plain
from pfedsam.export.onnx import CLOSE, OPSET, export_onnx
from pfedsam.inference.predictor import Predictor, load_model
from pfedsam.model.lora import LoRALinear, adapted, loras
from pfedsam.model.moe import LocalMoE
from pfedsam.site import Site

READINGS: list[dict[str, Any]] = [{"own": {"reading": reading}} for reading in ("R1", "R3", "post")]
BACKBONES: list[dict[str, Any]] = [
    {"model": {"backbone": name, "pretrained": False}, "method": method}
    for name, method in (("tiny_vit", "pfedsam"), ("vit_b", "pfedsam"), ("tiny_vit", "fedbn"))
]
OTHERS: list[dict[str, Any]] = [
    {"method": "fedmsa"},
    {"method": "fedms_sam"},
    {"method": "iat"},
    {"model": {"route": "window", "image_size": 80}},
    {"model": {"lora_on": "linear"}},
    {"model": {"lora_on": "linear", "experts_in": "mlp"}},
    {"model": {"gate_multiplied": False, "interpolation": "bicubic", "expert": "conv"}},
    {"model": {"experts_rank": 0, "expert": "conv", "experts_in": "qkv"}},
    {"model": {"experts": 0}},
    {"model": {"decoder": "lora"}},
    {"model": {"num_classes": 2, "exclusive": True}, "train": {"loss": "ce"}},
]


def shaken(open_site, tmp_path: Path, **changes: Any) -> Predictor:
    """A loaded model whose trained parts all matter: two steps of training leave them almost as drawn."""
    site = after_a_round(open_site, tiny(**changes))
    model = load_model(save_model(site, tmp_path / "model.safetensors"), device="cpu", precision="fp32")
    for branch in model.model.names():
        for place in adapted(model.model[branch]):
            for lora in loras(place):
                torch.nn.init.normal_(lora.b.weight, std=0.02)
    return model


def logits(data: bytes, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0])


def holds(model: Predictor, path: Path, branch: str) -> None:
    assert export_onnx(model, path, branch) <= CLOSE
    images = torch.rand(3, 3, model.size, model.size)
    expected = model.logits(images, branch)
    for part in (slice(0, 1), slice(0, 3)):
        error = (logits(path.read_bytes(), images[part]) - expected[part]).abs().max() / expected.abs().max().clamp_min(
            1
        )
        assert error <= CLOSE


def test_the_graph_with_experts_computes_what_torch_does_at_any_batch_and_says_how_to_feed_it(
    open_site, tmp_path: Path
) -> None:
    model = shaken(open_site, tmp_path, model={"lora_last": 2})
    holds(model, tmp_path / "model.onnx", "personal")
    graph = onnx.load(tmp_path / "model.onnx")
    notes = {entry.key: entry.value for entry in graph.metadata_props}
    assert notes["normalisation"] == "inside the graph"
    assert notes["scale"] == "values of 0 to 255 are divided by 255"
    assert notes["model_sha256"] == model.facts.sha256
    assert b"site-packages" not in (data := (tmp_path / "model.onnx").read_bytes())
    assert str(Path(pfedsam.__file__).parent).encode() not in data
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert {o.version for o in graph.opset_import if not o.domain} == {OPSET}


def code_of(page: str, heading: str) -> str:
    """The Python below a heading of a page."""
    _, text = (ROOT / "docs" / page).read_text().split(f"\n## {heading}\n")
    (code,) = re.findall(r"^```python\n(.*?)^```", text.split("\n## ")[0], re.DOTALL | re.MULTILINE)
    return str(code)


def test_the_page_s_code_without_pfedsam_makes_pfedsam_s_masks_and_the_graph_says_the_same_in_words(
    trained_model: Path, trained_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(trained_model, device="cpu", precision="fp32")
    export_onnx(model, tmp_path / "model.onnx", "personal")
    notes = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert "at least 1" in notes["input"]
    assert "bilinear with antialiasing" in notes["input"]
    assert "bilinear to 64 x 64, cut to the sides above, then bilinear to the image's own size" in notes["output"]
    code = code_of("predict.md", "ONNX, for other programs")
    assert "pfedsam" not in code
    monkeypatch.chdir(tmp_path)
    for i, size in enumerate(((512, 768), (768, 512), (37, 50))):
        grey = Image.fromarray((255 * trained_site.data["test"].picture(i)[0].numpy()).astype(np.uint8))
        speckle = np.asarray(grey.resize(size)) * np.random.default_rng(i).normal(1, 0.35, size[::-1])
        Image.fromarray(speckle.clip(0, 255).astype(np.uint8)).save("scan.png")
        found: dict[str, Any] = {}
        exec(code, found)
        expected = pfedsam.load(trained_model, device="cpu").predict("scan.png", scale="uint8") > 0
        assert found["mask"].shape == (1, *expected.shape)
        assert expected.any()
        assert 2 * (found["mask"][0].numpy() & expected).sum() / (found["mask"].sum() + expected.sum()) >= 0.98


@pytest.mark.long
@pytest.mark.parametrize("changes", READINGS + BACKBONES + OTHERS, ids=str)
def test_so_it_does_for_each_reading_backbone_and_method(open_site, tmp_path: Path, changes: dict[str, Any]) -> None:
    model = shaken(open_site, tmp_path, **changes)
    for branch in model.branches if changes.get("method", "pfedsam") == "pfedsam" else ("global",):
        holds(model, tmp_path / f"{branch}.onnx", branch)


@pytest.mark.parametrize("changes", [*READINGS, {}, *OTHERS], ids=str)
def test_a_plain_branch_has_the_logits_of_the_branch(open_site, tmp_path: Path, changes: dict[str, Any]) -> None:
    model = shaken(open_site, tmp_path, **changes)
    image = torch.randn(2, 3, model.size, model.size)
    for name in model.model.names():
        branch = model.model[name]
        found = plain(branch)
        assert all(m.dense for m in found.modules() if isinstance(m, LocalMoE))
        left = [m for m in found.modules() if isinstance(m, LoRALinear)]
        assert all(any(isinstance(part, LocalMoE) for part in place.modules()) for place in left)
        with torch.no_grad():
            assert torch.allclose(found(image), branch(image), atol=1e-4, rtol=1e-5), name


def test_merging_is_one_matrix_with_the_base_s_bias() -> None:
    place = LoRALinear(torch.nn.Linear(8, 6), rank=2, alpha=4.0)
    torch.nn.init.normal_(place.lora.b.weight)
    tokens = torch.randn(1, 3, 3, 8)
    assert torch.allclose(merged(place)(tokens), place(tokens), atol=1e-6)


def test_missing_packages_are_named(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UserFault, match=r"no onnxscript.*pfedsam\[onnx\]"):
        export_onnx(load_model(model_file), tmp_path / "model.onnx", "global")
    assert not (tmp_path / "model.onnx").exists()
