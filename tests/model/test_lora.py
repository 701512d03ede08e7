import torch
from torch import nn

from pfedsam.export.merge import merged
from pfedsam.model.lora import LoRA, LoRALinear, PostAdapter, added, side_by_side, taking


def test_a_fresh_adapter_changes_nothing() -> None:
    base = nn.Linear(8, 24)
    x = torch.randn(2, 4, 4, 8)
    assert torch.equal(LoRALinear(base, rank=3, alpha=3)(x), base(x))


def test_the_adapter_is_the_paper_s_sum() -> None:
    layer = LoRALinear(nn.Linear(8, 24), rank=2, alpha=6)
    nn.init.normal_(layer.lora.b.weight)
    x = torch.randn(5, 3, 3, 8)
    a, b, w, bias = layer.lora.a.weight, layer.lora.b.weight, layer.base.weight, layer.base.bias
    slow = torch.stack([w @ t + bias + (6 / 2) * b @ (a @ t) for t in x.reshape(-1, 8)]).reshape(5, 3, 3, 24)
    assert torch.allclose(layer(x), slow, atol=1e-5)


def test_a_padded_token_skips_the_experts() -> None:
    layer = LoRALinear(nn.Linear(8, 24), rank=2, alpha=6)
    nn.init.normal_(layer.lora.b.weight)
    token = torch.randn(8)
    plain = layer(token[None, None, None])[0, 0, 0]
    layer.lora.mix = nn.Conv2d(2, 2, 1)
    assert torch.allclose(layer.constant(token), plain[None], atol=1e-6)


def test_side_by_side_puts_each_share_of_the_batch_through_its_own_branch() -> None:
    base = nn.Linear(8, 8)
    for make in (lambda: LoRALinear(base, rank=2, alpha=2), lambda: PostAdapter(8, rank=2, alpha=2)):
        one, two = nn.Sequential(make()), nn.Sequential(make())
        for net in (one, two):
            nn.init.normal_(net[0].lora.b.weight)
        x = torch.randn(3, 8, 8, 8)
        expected = [one(x), two(x)]
        with side_by_side(one, [two]):
            found = one(x.repeat(2, 1, 1, 1)).chunk(2)
        assert all(torch.allclose(f, e, atol=1e-6) for f, e in zip(found, expected, strict=True))
        assert torch.equal(one(x), expected[0])


def test_of_a_place_s_own_detour_only_the_wanted_share_is_taken() -> None:
    layer, x = LoRALinear(nn.Linear(8, 8), rank=2, alpha=2), torch.randn(2, 4, 4, 8)
    layer.own = LoRA(8, 8, rank=3, alpha=3)
    for lora in (layer.lora, layer.own):
        nn.init.normal_(lora.b.weight)
    whole, own = layer(x), layer.own.b(layer.own.a(x))
    taking(layer, 0.25)
    wanted = whole - 0.75 * own
    assert torch.allclose(layer(x), wanted, atol=1e-5)
    assert torch.allclose(merged(layer)(x), wanted, atol=1e-5)
    assert torch.allclose(layer.constant(x[0, 0, 0]), wanted[0, 0, :1], atol=1e-5)
    assert torch.allclose(added(layer, x)[1], 0.25 * own, atol=1e-5)
    taking(layer, 1.0)
    assert torch.equal(layer(x), whole)
