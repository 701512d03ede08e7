"""SAM with prompts answers as segment-anything does, and a coarse mask becomes the right prompts."""

import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

from conftest import tiny
from pfedsam.config import ModelConfig
from pfedsam.model.backbones import DEMO, PROMPTS, vit
from pfedsam.model.build import backbone, lora, segmenter
from pfedsam.model.prepared import prepared
from pfedsam.model.prompted import Prompt, answer, prompt_of

SIDE = 64


def test_an_answer_is_segment_anything_s_for_the_same_weights_and_prompts() -> None:
    config = tiny(model={"pretrained": False})
    parts = backbone(config.model)
    theirs = MaskDecoder(
        transformer_dim=128,
        transformer=TwoWayTransformer(depth=2, embedding_dim=128, num_heads=8, mlp_dim=512),
        iou_head_hidden_dim=128,
    )
    theirs.load_state_dict(parts.decoder.state_dict())
    grid = SIDE // 8
    asks = PromptEncoder(128, (grid, grid), (SIDE, SIDE), 16)
    asks.load_state_dict(parts.prompts.state_dict())
    points, signs = torch.rand(2, 3, 2) * SIDE, torch.tensor([[1.0, 0.0, 1.0]] * 2)
    box, mask = torch.tensor([[4.0, 6.0, 40.0, 50.0]] * 2), torch.randn(2, 1, 4 * grid, 4 * grid)
    branch = segmenter(config, parts, lora)
    with torch.no_grad():
        embedding = branch.encoder(torch.randn(2, 3, SIDE, SIDE))
        ours = answer(branch, parts.prompts, embedding, Prompt(points, signs, box, mask))
        for i in range(2):  # theirs takes one image at a time
            tokens, dense = asks((points[i : i + 1], signs[i : i + 1]), box[i : i + 1], mask[i : i + 1])
            expected, _ = theirs(embedding[i : i + 1], asks.get_dense_pe(), tokens, dense, multimask_output=False)
            assert torch.allclose(ours[i : i + 1], expected, atol=1e-5)


def test_a_coarse_mask_becomes_its_box_its_surest_points_and_itself() -> None:
    coarse = torch.full((2, 8, 8), -1.0)
    coarse[0, 2:4, 1:6] = 1.0
    coarse[0, 3, 4], coarse[0, 7, 0] = 3.0, -9.0
    prompt, present = prompt_of(coarse, 32)
    assert present.tolist() == [True, False]
    assert prompt.box[0].tolist() == [4, 8, 23, 15]
    assert prompt.points[0].tolist() == [[17.5, 13.5], [1.5, 29.5]]
    assert prompt.signs[0].tolist() == [1, 0]
    assert torch.equal(prompt.mask[:, 0], coarse)


def test_prompts_come_from_the_weights_and_are_kept_with_the_prepared_base(tmp_path) -> None:
    config = ModelConfig(backbone="demo", image_size=SIDE, pretrained=False)
    first, _ = prepared(config, None, tmp_path, bf16=False)
    again, _ = prepared(config, None, tmp_path, bf16=False)
    state = first.prompts.state_dict()
    assert state.keys() == again.prompts.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.prompts.state_dict().items())
    whole = {f"{PROMPTS}{name}": tensor for name, tensor in state.items()}
    parts = {f"mask_decoder.{name}": tensor for name, tensor in first.decoder.state_dict().items()}
    encoder = {f"image_encoder.{name}": t for name, t in DEMO.encoder(SIDE).state_dict().items()}
    assert vit(SIDE, encoder | parts | whole, DEMO).prompts is not None
    position = {name: tensor for name, tensor in whole.items() if "pe_layer" in name}
    assert vit(SIDE, encoder | parts | position, DEMO).prompts is None


@pytest.mark.parametrize("part", ["mask_downscaling.0.weight", "not_a_point_embed.weight"])
def test_the_published_mobile_sam_has_its_prompts(real, part: str) -> None:
    config = ModelConfig(backbone="tiny_vit", image_size=256)
    assert backbone(config, real / "weights").prompts.state_dict()[part].abs().sum() > 0
