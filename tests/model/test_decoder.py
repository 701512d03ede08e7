import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom

from pfedsam.model.decoder import PromptFreeDecoder


def sam_parts() -> tuple[MaskDecoder, PositionEmbeddingRandom]:
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, num_heads=4, mlp_dim=64)
    return MaskDecoder(transformer_dim=32, transformer=transformer).eval(), PositionEmbeddingRandom(16)


def test_it_is_sam_s_decoder_without_prompts_image_by_image() -> None:
    sam, position = sam_parts()
    embedding = torch.randn(3, 32, 8, 8)
    none = torch.zeros(1, 0, 32)
    code = position((8, 8))[None]
    slow = [sam.predict_masks(e[None], code, none, torch.zeros(1, 32, 8, 8))[0][:, :1] for e in embedding]
    assert torch.allclose(PromptFreeDecoder(sam, position, 1)(embedding), torch.cat(slow), atol=1e-5)


def test_several_classes_are_a_1x1_convolution_of_sam_s_four_masks() -> None:
    sam, position = sam_parts()
    decoder, embedding = PromptFreeDecoder(sam, position, 3), torch.randn(2, 32, 8, 8)
    conv = decoder.head.conv
    decoder.head, masks = None, None
    masks = decoder(embedding)
    assert masks.shape == (2, 4, 32, 32)
    decoder.head = torch.nn.Identity()
    slow = torch.einsum("om,bmhw->bohw", conv.weight[:, :, 0, 0], masks) + conv.bias[:, None, None]
    assert torch.allclose(conv(decoder(embedding)), slow, atol=1e-5)


def test_every_parameter_it_keeps_is_reached_by_a_gradient() -> None:
    for outputs in (1, 2):
        decoder = PromptFreeDecoder(*sam_parts(), outputs)
        decoder(torch.randn(2, 32, 8, 8)).square().sum().backward()
        dead = [n for n, p in decoder.named_parameters() if p.grad is None]
        assert dead == []
