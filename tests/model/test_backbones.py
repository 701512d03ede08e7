import pytest
import torch
from segment_anything.modeling import ImageEncoderViT

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
