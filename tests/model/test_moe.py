import pytest
import torch
import torch.nn.functional as F

from pfedsam.model.moe import LocalMoE, balance, expected_load, mix, mix_all, route, squared_variation


def literal(moe: LocalMoE, h: torch.Tensor) -> torch.Tensor:
    """y = h + sum over the k best experts of g_i E_i(h), image by image, expert by expert."""
    out = []
    for image in h:
        g = torch.softmax(moe.gate.score.weight @ image.mean((1, 2)), 0)
        y = image.clone()
        for i in sorted(range(len(g)), key=lambda i: -g[i].item())[: moe.top_k]:
            expert, ratio = moe.experts[i], i + 1
            big = F.interpolate(image[None], scale_factor=ratio, mode="bilinear") if ratio > 1 else image[None]
            big = F.gelu(F.conv2d(big, expert.conv.weight, expert.conv.bias, padding=1))[0]
            side = image.shape[-1]
            y += g[i] * big.reshape(len(big), side, ratio, side, ratio).mean((2, 4))
        out.append(y)
    return torch.stack(out)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_mixture_equals_its_literal_reference(k: int) -> None:
    moe = LocalMoE(3, experts=4, top_k=k).eval()
    torch.nn.init.normal_(moe.gate.score.weight)
    h = torch.randn(5, 3, 6, 6)
    assert torch.allclose(moe(h), literal(moe, h), atol=1e-5)


def test_the_task_reaches_the_gate_even_with_one_expert_chosen() -> None:
    moe = LocalMoE(3, experts=4, top_k=1, noisy=False).train()
    moe(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert moe.gate.score.weight.grad.abs().sum() > 0


def test_without_the_gate_multiplied_the_task_does_not_reach_it() -> None:
    moe = LocalMoE(3, experts=4, top_k=1, noisy=False, multiplied=False).train()
    moe(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert moe.gate.score.weight.grad is None


def test_fresh_gates_do_not_all_fall_to_the_first_expert() -> None:
    moe = LocalMoE(4, experts=8, top_k=2).eval()
    _, scores, _ = moe.gate(torch.randn(64, 4, 6, 6))
    used = route(scores, 2)[1].sum(0)
    assert (used > 0).sum() > 2


def test_an_expert_runs_only_on_the_images_that_chose_it() -> None:
    counts = []

    class Counting(torch.nn.Module):
        def forward(self, h: torch.Tensor) -> torch.Tensor:
            counts.append(len(h))
            return h

    chosen = torch.tensor([[1.0, 0, 1], [1, 0, 0]])
    mix(torch.randn(2, 3, 4, 4), torch.nn.ModuleList(Counting() for _ in range(3)), chosen, chosen)
    assert counts == [2, 1]


def test_running_every_expert_on_every_image_gives_the_same_sum_and_gradients() -> None:
    experts = LocalMoE(3, experts=4, top_k=2).experts
    h, weights = torch.randn(2, 3, 6, 6, requires_grad=True), torch.rand(2, 4)
    chosen = torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1]])
    weights = (weights * chosen).requires_grad_()
    wanted = [h, weights, *experts.parameters()]

    def gradients(out: torch.Tensor) -> list[torch.Tensor]:
        found = torch.autograd.grad(out.square().sum(), wanted, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted, strict=True)]

    few, every = mix(h, experts, weights, chosen), mix_all(h, experts, weights)
    assert torch.allclose(few, every, atol=1e-6)
    for name, (a, b) in enumerate(zip(gradients(few), gradients(every), strict=True)):
        reached = chosen.bool() if name == 1 else slice(None)  # of a weight that is zero, the gradient is not asked for
        assert torch.allclose(a[reached], b[reached], atol=1e-4)


def test_a_layer_that_runs_every_expert_on_every_image_gives_the_same_output_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, here on the CPU: through the gate, its balance and the experts to the map itself."""
    moe = LocalMoE(3, experts=4, top_k=2, noisy=False).train()
    torch.nn.init.normal_(moe.gate.score.weight)
    h = torch.randn(5, 3, 6, 6, requires_grad=True)
    wanted = [h, *moe.parameters()]

    def passed() -> tuple[torch.Tensor, list[torch.Tensor]]:
        out = moe(h)
        found = torch.autograd.grad(out.square().mean() + moe.balance, wanted, allow_unused=True)
        return out, [torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted, strict=True)]

    few, few_gradients = passed()
    monkeypatch.setattr("pfedsam.model.moe.mix", lambda h, experts, weights, _: mix_all(h, experts, weights))
    every, every_gradients = passed()
    assert torch.allclose(few, every, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(few_gradients, every_gradients, strict=True))
    assert all(g.any() for g in few_gradients[:2])


def test_load_is_the_chance_of_being_chosen_under_fresh_noise_for_one_expert() -> None:
    torch.manual_seed(1)
    clean, deviation = torch.tensor([[0.5, 0.2, -0.1]]), torch.full((1, 3), 0.7)
    scores = clean + torch.randn_like(clean) * deviation
    chance = expected_load(clean, scores, deviation, 1)
    for i in range(3):
        others = scores[0, [j for j in range(3) if j != i]].max()
        drawn = clean[0, i] + torch.randn(200_000) * deviation[0, i]
        assert chance[0, i].item() == pytest.approx((drawn > others).float().mean().item(), abs=5e-3)


def test_balance_is_least_when_experts_are_used_alike() -> None:
    even, odd = torch.full((4, 4), 0.25), torch.eye(4)[:1].expand(4, 4)
    assert balance(even, even).item() == 0
    assert balance(odd, odd).item() > 1


def test_squared_variation_is_variance_over_squared_mean() -> None:
    assert squared_variation(torch.tensor([1.0, 3.0])).item() == pytest.approx(2 / 4)


def test_evaluation_is_free_of_noise() -> None:
    moe = LocalMoE(3, experts=4, top_k=2).eval()
    h = torch.randn(2, 3, 6, 6)
    assert torch.equal(moe(h), moe(h))
