import pytest
import torch
from segment_anything.modeling.image_encoder import Block, window_partition
from timm.models.tiny_vit import ConvNorm
from torch import nn

from pfedsam.model import vit
from pfedsam.model.lora import LoRALinear
from pfedsam.model.moe import LocalMoE
from pfedsam.model.tinyvit import FoldedConvNorm, PixelGELU, build_tiny_vit
from pfedsam.model.vit import ViTBlock, head_by_head
from pfedsam.model.windows import cut, join, windowed

SIZES = [14, 16, 20, 28, 32]


@pytest.mark.parametrize("size", [14, 28])
def test_windows_are_cut_as_segment_anything_cuts_them_and_joined_again(size: int) -> None:
    x = torch.randn(3, size, size, 5)
    assert torch.equal(cut(x, 14, 14), window_partition(x, 14)[0])
    assert torch.equal(join(cut(x, 14, 14), 3, size, size), x)


def test_a_map_is_attended_in_whole_windows_and_smaller_ones_at_its_edges() -> None:
    seen = []

    def attend(windows: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(windows.shape[:5]))
        return windows

    tokens = torch.randn(2, 9, 5, 1)
    assert torch.equal(windowed(tokens, 4, attend), tokens)
    assert seen == [(2, 2, 1, 4, 4), (2, 2, 1, 4, 1), (2, 1, 1, 1, 4), (2, 1, 1, 1, 1)]


def segment_anything_block(window: int, size: int) -> Block:
    block = Block(32, 4, use_rel_pos=True, window_size=window, input_size=(size, size))
    for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
        nn.init.normal_(table)
    block.attn.qkv = LoRALinear(block.attn.qkv, rank=4, alpha=4)
    nn.init.normal_(block.attn.qkv.lora.b.weight)
    return block


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [14, 0])
def test_the_block_without_padding_equals_segment_anything_s_in_value_and_gradient(window: int, size: int) -> None:
    block, x = segment_anything_block(window, size), torch.randn(2, size, size, 32, requires_grad=True)
    weights = [block.attn.qkv.lora.a.weight, block.attn.qkv.lora.b.weight, block.attn.proj.weight, block.norm1.bias]
    expected = block(x)
    slow = torch.autograd.grad(expected.square().sum(), [x, *weights])
    found = ViTBlock(block)(x)
    fast = torch.autograd.grad(found.square().sum(), [x, *weights])
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert all((f - s).norm() <= 1e-5 * s.norm() for f, s in zip(fast, slow, strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [7, 14])
def test_the_tiny_block_without_padding_equals_timm_s_in_value_and_gradient(window: int, size: int) -> None:
    from timm.models.tiny_vit import TinyVitBlock

    from pfedsam.model.tinyvit import TinyViTBlock

    block = TinyVitBlock(32, 4, window).eval()
    nn.init.normal_(block.attn.attention_biases)
    nn.init.normal_(block.attn.norm.bias)
    block.attn.qkv = LoRALinear(block.attn.qkv, rank=4, alpha=4)
    nn.init.normal_(block.attn.qkv.lora.b.weight)
    weights = [block.attn.qkv.lora.a.weight, block.attn.qkv.lora.b.weight, block.attn.norm.bias]
    x = torch.randn(2, size, size, 32, requires_grad=True)
    expected = stock_timm(block, x)
    slow = torch.autograd.grad(expected.square().sum(), [x, *weights])
    found = TinyViTBlock(block)(x)
    fast = torch.autograd.grad(found.square().sum(), [x, *weights])
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert all((f - s).norm() <= 1e-5 * s.norm() for f, s in zip(fast, slow, strict=True))


def stock_timm(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """timm's own forward; its attention hands the projection windows as rows, ours takes maps."""

    class Rows(nn.Module):
        def __init__(self, linear: LoRALinear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x[:, None])[:, 0]

    linear = block.attn.qkv
    block.attn.qkv = Rows(linear)
    try:
        return block(x)
    finally:
        block.attn.qkv = linear


def test_heads_one_by_one_equal_the_plain_product_in_value_and_gradient() -> None:
    asked, held = torch.randn(2, 3, 7, 12, requires_grad=True), torch.randn(2, 3, 9, 12, requires_grad=True)
    values = torch.randn(2, 3, 9, 8, requires_grad=True)
    expected = (asked @ held.mT).softmax(-1) @ values
    slow = torch.autograd.grad(expected.square().sum(), [asked, held, values])
    fast = torch.autograd.grad((found := head_by_head(asked, held, values)).square().sum(), [asked, held, values])
    assert torch.allclose(found, expected, atol=1e-5)
    assert all(torch.allclose(f, s, atol=1e-4) for f, s in zip(fast, slow, strict=True))


def test_heads_one_by_one_can_be_exported_for_a_batch_of_any_size() -> None:
    class Heads(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return head_by_head(x, x, x)

    program = torch.export.export(Heads(), (torch.randn(2, 3, 7, 4),), dynamic_shapes=({0: torch.export.Dim("n")},))
    x = torch.randn(5, 3, 7, 4)
    assert torch.allclose(program.module()(x), Heads()(x), atol=1e-6)


@pytest.mark.parametrize(("keys", "way"), [(15, "plain"), (16, "head_by_head")])
def test_on_a_cpu_many_keys_are_attended_a_head_at_a_time(keys: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit, "LONG", 16)
    monkeypatch.setattr(vit, way, lambda *_: way)
    assert vit.attended(*(torch.zeros(1, 1, keys, 4) for _ in range(3))) == way


def test_a_block_of_many_tokens_equals_segment_anything_s() -> None:
    """With 1 024 tokens in one window its heads are computed one by one."""
    block, x = segment_anything_block(0, 32), torch.randn(1, 32, 32, 32)
    assert x.shape[1] * x.shape[2] >= vit.LONG
    assert torch.allclose(ViTBlock(block)(x), block(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_with_its_norm_folded_in_equals_the_two_in_value_and_gradient(stride: int) -> None:
    pair = ConvNorm(8, 16, 3, stride, 1, groups=4).eval()
    for tensor in (pair.bn.running_mean, pair.bn.weight, pair.bn.bias):
        nn.init.normal_(tensor)
    pair.bn.running_var.uniform_(0.1, 2)
    x, weights = torch.randn(2, 8, 9, 9, requires_grad=True), [pair.conv.weight, pair.bn.weight, pair.bn.bias]
    expected = pair(x)
    slow = torch.autograd.grad(expected.square().sum(), [x, *weights])
    found = FoldedConvNorm(pair)(x)
    fast = torch.autograd.grad(found.square().sum(), [x, *weights])
    assert torch.allclose(found, expected, atol=1e-5)
    assert all((f - s).norm() <= 1e-5 * s.norm() for f, s in zip(fast, slow, strict=True))
    assert FoldedConvNorm(pair).state_dict().keys() == pair.state_dict().keys()


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_gelu_by_pixel_equals_gelu_in_value_and_gradient_and_keeps_the_order_in_memory(order) -> None:
    x = torch.randn(2, 8, 5, 7).contiguous(memory_format=order).requires_grad_()
    (slow,) = torch.autograd.grad(nn.GELU()(x).square().sum(), x)
    found = PixelGELU()(x)
    (fast,) = torch.autograd.grad(found.square().sum(), x)
    assert found.is_contiguous(memory_format=order)
    assert torch.allclose(found, nn.GELU()(x), atol=1e-6)
    assert torch.allclose(fast, slow, atol=1e-5)


def test_every_gelu_of_tiny_vit_s_encoder_is_by_pixel() -> None:
    kinds = [type(module) for module in build_tiny_vit(None).modules()]
    assert nn.GELU not in kinds
    assert PixelGELU in kinds


def test_experts_see_the_image_s_own_map_or_its_windows_where_asked() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, h: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(h.shape))
            return h

    for window in (0, 14):
        moe = LocalMoE(4, experts=2, top_k=2, window=window).eval()
        moe.experts = nn.ModuleList([Spy()])
        out = moe(torch.randn(2, 4, 16, 16))
        assert out.shape == (2, 4, 16, 16)
    assert seen == [(2, 4, 16, 16), (8, 4, 14, 14)]
