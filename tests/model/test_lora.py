import pytest
import torch
from segment_anything.modeling.image_encoder import window_partition
from torch import nn

from pfedsam.model.lora import LoRA, LoRALinear, to_map, to_tokens


def test_a_fresh_adapter_changes_nothing() -> None:
    base = nn.Linear(8, 24)
    x = torch.randn(2, 4, 4, 8)
    assert torch.equal(LoRALinear(base, rank=3, alpha=3)(x), base(x))


def test_the_adapter_is_the_paper_s_sum() -> None:
    layer = LoRALinear(nn.Linear(8, 24), rank=2, alpha=6)
    nn.init.normal_(layer.lora.b.weight)
    x = torch.randn(5, 9, 8)
    a, b, w, bias = layer.lora.a.weight, layer.lora.b.weight, layer.base.weight, layer.base.bias
    slow = torch.stack([w @ t + bias + (6 / 2) * b @ (a @ t) for t in x.reshape(-1, 8)]).reshape(5, 9, 24)
    assert torch.allclose(layer(x), slow, atol=1e-5)


@pytest.mark.parametrize("size", [14, 20, 28])
def test_windows_are_stitched_to_the_image_they_were_cut_from(size: int) -> None:
    images = torch.randn(3, size, size, 5)
    windows, padded = window_partition(images, 14)
    maps = to_map(windows, 3)
    assert maps.shape == (3, 5, *padded)
    assert torch.equal(maps[:, :, :size, :size], images.permute(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [(8, 7, 7, 4), (8, 49, 4), (2, 16, 16, 4)])
def test_maps_go_back_to_the_tokens_they_came_from(shape: tuple[int, ...]) -> None:
    tokens = torch.randn(shape)
    assert torch.equal(to_tokens(to_map(tokens, 2), tokens), tokens)


def test_the_bottleneck_sees_one_map_per_image_or_window_by_window_where_asked() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, h: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(h.shape))
            return h

    lora = LoRA(8, 8, rank=4, alpha=4)
    lora.mix = Spy()
    for lora.per_window in (False, True):
        lora(torch.randn(8, 7, 7, 8), images=2)
    assert seen == [(2, 4, 14, 14), (8, 4, 7, 7)]
