import pytest
import torch
import torch.nn.functional as F

from pfedsam.model.moe import (
    LocalMoE,
    Standard,
    balance,
    expected_load,
    mix,
    mix_all,
    route,
    scaled,
    squared_variation,
    weights_of,
)
from pfedsam.model.watch import entropy


def literal(moe: LocalMoE, h: torch.Tensor) -> torch.Tensor:
    """y = h + sum over the k best experts of g_i E_i(h), their g_i divided by their sum, expert by expert."""
    out = []
    for image in h:
        standard = moe.gate.standard
        pooled = (image.mean((1, 2)) - standard.mean) / standard.variance.sqrt()
        g = torch.softmax(moe.gate.score.weight @ pooled.clamp(-3, 3), 0)
        y = image.clone()
        best = sorted(range(len(g)), key=lambda i: -g[i].item())[: moe.top_k]
        if moe.top_k > 1:
            g = g / sum(g[i] for i in best)
        for i in best:
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
    moe = LocalMoE(3, experts=4, top_k=1).train()
    moe(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert moe.gate.score.weight.grad.abs().sum() > 0


def test_without_the_gate_multiplied_the_task_does_not_reach_it() -> None:
    moe = LocalMoE(3, experts=4, top_k=1, multiplied=False).train()
    moe(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert moe.gate.score.weight.grad is None


def test_fresh_gates_do_not_all_fall_to_the_first_expert() -> None:
    moe = LocalMoE(4, experts=8, top_k=2).eval()
    _, scores, _ = moe.gate(torch.randn(64, 4, 6, 6))
    used = route(scores, 2)[1].sum(0)
    assert (used > 0).sum() > 2


def kinds_of_images(count: int) -> torch.Tensor:
    """Maps that are nearly alike, (count, 4, 6, 6): of two kinds, whose mean differs by a hundredth."""
    common, apart = torch.ones(4), 0.01 * torch.tensor([1.0, -1, 1, -1])
    signs = torch.ones(count).index_fill(0, torch.arange(0, count, 2), -1)
    return (common + signs[:, None] * apart)[..., None, None] + 1e-3 * torch.randn(count, 4, 6, 6)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_the_gate_tells_the_kinds_of_images_apart_that_a_site_has(scale: float) -> None:
    """On raw maps it gave all images the same gates, so that nothing was routed."""
    found = {}
    for rule in ("chosen", "quiet"):
        torch.manual_seed(0)
        moe = LocalMoE(4, experts=4, top_k=2, rule=rule).train()
        for _ in range(100):
            moe(scale * kinds_of_images(2))
        found[rule] = entropy_between(moe.eval().routed(scale * kinds_of_images(64))[0].detach())
    assert found["quiet"] < 0.01 < 0.03 < found["chosen"]


def entropy_between(gates: torch.Tensor) -> float:
    """What the gates depend on the image: the entropy of their mean less their mean entropy, a part of log M."""
    return entropy(gates.mean(0, keepdim=True)) - entropy(gates)


def test_the_gate_s_mean_and_variance_become_those_of_the_images() -> None:
    standard = Standard(3).train()
    x = 5 + 2 * torch.randn(4000, 3)
    for batch in x.split(2):
        standard(batch)
    assert torch.allclose(standard.mean, torch.full((3,), 5.0), atol=0.8)
    assert torch.allclose(standard.variance.sqrt(), torch.full((3,), 2.0), atol=0.6)
    assert standard.eval()(x).std() == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("form", ["conv", "head"])
@pytest.mark.parametrize("k", [2, 4])
def test_training_and_evaluation_give_experts_the_same_weight(form: str, k: int) -> None:
    """The gate of earlier versions gave the chosen two 0.47 in training and 0.25 in evaluation."""
    h = torch.randn(32, 8, 6, 6)
    moe = LocalMoE(8, experts=4, top_k=k, form=form)
    sums = [moe.train(mode).routed(h)[2].sum(-1) for mode in (True, False)]
    assert all(torch.allclose(total, torch.ones(32)) for total in sums)
    added = [(moe.train(mode)(h) - (h if form == "conv" else 0)).norm() for mode in (True, False)]
    assert abs(added[0] / added[1] - 1) < 0.1


def test_the_gate_of_earlier_versions_still_weighs_as_they_did() -> None:
    """Their model files predict as at their sites."""
    gates, chosen = route(torch.zeros(1, 8), 2)
    assert weights_of(gates, chosen, multiplied=True, whole=False).sum() == 0.25


def test_a_head_is_its_own_low_rank_adapter_times_its_weight() -> None:
    a, b, x = torch.randn(3, 2, 5), torch.randn(3, 7, 2), torch.randn(1, 5, 4, 4)
    weights = torch.tensor([[0.2, 0.0, 0.8]])
    h = torch.einsum("mrd,bdhw->bmrhw", a, x).flatten(1, 2)
    found = torch.einsum("omr,bmrhw->bohw", b.movedim(0, 1), scaled(h, weights).unflatten(1, (3, 2)))
    wanted = sum(weights[0, i] * torch.einsum("or,rd,bdhw->bohw", b[i], a[i], x) for i in range(3))
    assert torch.allclose(found, wanted, atol=1e-5)


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
    moe = LocalMoE(3, experts=4, top_k=2).train()
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
    moe = LocalMoE(3, experts=4, top_k=2, rule="noisy").eval()
    h = torch.randn(2, 3, 6, 6)
    assert torch.equal(moe(h), moe(h))
