"""What makes each baseline that method and no other."""

from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import tiny
from pfedsam import methods
from pfedsam.config import Config
from pfedsam.data.dataset import PLAIN, View
from pfedsam.methods.base import distance
from pfedsam.methods.iat import overlap
from pfedsam.model.adapters import TokenAdapter, adapt_blocks
from pfedsam.model.backbones import BUILDERS
from pfedsam.model.lora import loras
from pfedsam.model.partition import Part
from pfedsam.site import Site
from pfedsam.study import initial_shared, shared_schema


def update(site: Site) -> dict[str, torch.Tensor]:
    shared, _ = initial_shared(site.config)
    site.receive(shared)
    return site.train(0, 2).wire


def two_branches(name: str) -> bool:
    method = methods.get(name)
    return method.personal != method.global_


def names(config: Config, what: str) -> list[str]:
    return [name for name in shared_schema(config) if what in name]


def test_fedprox_without_its_pull_is_fedavg_and_with_it_stays_nearer(open_site) -> None:
    plain, free, held = (
        update(open_site(tiny(method=method, train={"max_steps": 4}, own=own)))
        for method, own in (("fedavg", {}), ("fedprox", {"mu": 0.0}), ("fedprox", {"mu": 50.0}))
    )
    assert all(torch.equal(plain[name], free[name]) for name in plain)
    length = {id(wire): sum(t.square().sum() for t in wire.values()) for wire in (plain, held)}
    assert length[id(held)] < 0.9 * length[id(plain)]


@pytest.mark.parametrize("method", ["fedmsa", "fedms_sam", "iat", "pfedsam"])
def test_the_class_head_begins_alike_whatever_adapters_a_method_has(method: str) -> None:
    one, other = (initial_shared(tiny(method=m, model={"num_classes": 2}))[0] for m in ("fedavg", method))
    (head,) = [name for name in one if name.endswith("head.conv.weight")]
    assert torch.equal(one[head], other[head])


def test_the_pull_is_the_squared_distance_to_what_came() -> None:
    branch = nn.Linear(2, 1, bias=False)
    nn.init.constant_(branch.weight, 3.0)
    found = distance(branch, {"weight": torch.ones(1, 2)})
    assert found.item() == 8.0
    found.backward()
    assert branch.weight.grad is not None
    assert torch.equal(branch.weight.grad, torch.full((1, 2), 4.0))


def test_ditto_s_shared_branch_is_fedavg_s(open_site) -> None:
    plain, ditto = (update(open_site(tiny(method=method))) for method in ("fedavg", "ditto"))
    assert all(torch.allclose(plain[name], ditto[name], atol=1e-5) for name in plain)


@pytest.mark.parametrize("method", [name for name in methods.names() if two_branches(name)])
def test_at_a_site_that_has_not_trained_the_personal_branch_is_the_model_that_came(open_site, method: str) -> None:
    site = open_site(tiny(method=method))
    shared = {name: tensor + 0.1 for name, tensor in initial_shared(site.config)[0].items()}
    image = site.data["test"].batch([View(0, PLAIN)]).image
    site.model.eval()
    for take in (site.recall, site.receive):
        take(shared)
        with torch.no_grad():
            found = site.model(image)
        assert torch.allclose(found[site.method.personal], found[site.method.global_], atol=1e-5)


def test_ditto_s_private_branch_stays_at_its_site_over_rounds(open_site) -> None:
    site = open_site(tiny(method="ditto"))
    update(site)
    private = {name: tensor.clone() for name, tensor in site.private().items()}
    site.receive(initial_shared(site.config)[0])
    assert all(torch.equal(site.private()[name], tensor) for name, tensor in private.items())


@pytest.mark.parametrize("method", ["fedper", "fedrep"])
def test_the_decoder_stays_with_its_site(method: str) -> None:
    config = tiny(method=method)
    assert names(config, "lora.") == list(shared_schema(config))


def test_fedrep_trains_the_head_first_and_then_the_body() -> None:
    phase = methods.get("fedrep").phase
    head, body = {Part.PRIVATE}, {Part.SHARED}
    assert [phase(done, 4) for done in range(4)] == [head, head, body, body]
    assert [phase(done, 3) for done in range(3)] == [head, head, body]
    assert [phase(done, 2) for done in range(2)] == [head, body]


def test_fedrep_s_only_step_of_a_round_trains_head_and_body(open_site) -> None:
    site = open_site(tiny(method="fedrep", train={"max_steps": 1}))
    site.receive(initial_shared(site.config)[0])
    head = {name: tensor.clone() for name, tensor in site.private().items()}
    assert any(tensor.any() for tensor in site.train(0, 2).wire.values())
    assert any(not torch.equal(site.private()[name], tensor) for name, tensor in head.items())


def test_ffa_shares_b_alone_and_a_is_the_same_at_every_site(open_site) -> None:
    config = tiny(method="ffa_lora")
    assert names(config, "lora.a.") == []
    assert len(names(config, "lora.b.")) > 0
    sites = [open_site(config, name) for name in ("site-1", "site-2")]
    update(sites[0])
    pairs = zip(*(loras(site.model) for site in sites), strict=True)
    assert all(torch.equal(one.a.weight, other.a.weight) for one, other in pairs)


def test_fedsa_shares_a_alone() -> None:
    config = tiny(method="fedsa_lora")
    assert names(config, "lora.b.") == []
    assert len(names(config, "lora.a.")) > 0


def test_fedbn_keeps_norms_at_home_and_shares_all_else_that_fedavg_does(open_site) -> None:
    model = {"backbone": "tiny_vit", "pretrained": False}
    config = tiny(method="fedbn", model=model)
    assert shared_schema(config) == shared_schema(tiny(method="fedavg", model=model))
    site = open_site(config)
    norms = {name for name, m in site.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {name.rsplit(".", 1)[0] for name in site.private()} == norms


def test_fedms_sam_trains_and_sends_all_and_leaves_the_prepared_base_alone(open_site, tmp_path: Path) -> None:
    config = tiny(method="fedms_sam", train={"precision": "bf16"})
    parts = BUILDERS["demo"](64, None)
    site = open_site(config)
    wire = update(site)
    encoder = [name for name in wire if name.startswith("encoder.")]
    assert len(encoder) == len(list(parts.encoder.parameters()))
    assert all(wire[name].any() for name in encoder if "rel_pos" not in name)
    again = open_site(config, "site-2")
    assert again.base == site.base
    shared, _ = initial_shared(config)
    assert all(torch.equal(again.shared()[name], shared[name]) for name in shared)


def test_medical_sam_adapters_begin_at_the_pretrained_model(open_site) -> None:
    config = tiny(method="fedmsa")
    site = open_site(config)
    plain = open_site(tiny(method="fedavg"), "site-2")
    image = site.data["val"].batch([View(0, PLAIN)], None).image
    assert torch.equal(site.model(image)["global"], plain.model(image)["global"])


def test_medical_sam_adapters_begin_elsewhere_where_told_as_in_the_release(open_site) -> None:
    site = open_site(tiny(method="fedmsa", own={"start": "random"}))
    plain = open_site(tiny(method="fedavg"), "site-2")
    image = site.data["val"].batch([View(0, PLAIN)], None).image
    assert not torch.allclose(site.model(image)["global"], plain.model(image)["global"], atol=1e-3)


@pytest.mark.parametrize("backbone", ["demo", "tiny_vit"])
def test_medical_sam_adapters_are_where_fedmsa_has_them(backbone: str) -> None:
    """Token by token against the block's equation, written out, with adapters that do something."""
    encoder = BUILDERS[backbone](64, None).encoder.eval()
    block = next(unit for unit in encoder.units if hasattr(unit, "attn"))
    width = block.attn.proj.out_features
    x = torch.randn(2, 8, 8, width)
    seen: dict[str, torch.Tensor] = {}
    adapt_blocks(encoder)
    for name, module in {"space": block.attn.proj, "mlp": block.mlp}.items():
        module.register_forward_hook(lambda _m, args, out, name=name: seen.update({name: out, f"{name} in": args[0]}))
        nn.init.normal_(module.adapter.up.weight)
    block(x)
    found = seen["space in"] @ block.attn.proj.proj.weight.T + block.attn.proj.proj.bias
    assert torch.allclose(seen["space"], found + literal(block.attn.proj.adapter, found), atol=1e-5)
    token = seen["mlp in"]
    normed = block.mlp.mlp.norm(token) if backbone == "tiny_vit" else token
    assert torch.allclose(seen["mlp"], block.mlp.mlp(token) + 0.5 * literal(block.mlp.adapter, normed), atol=1e-5)


def literal(adapter: TokenAdapter, x: torch.Tensor) -> torch.Tensor:
    narrow = x @ adapter.down.weight.T + adapter.down.bias
    bent = narrow * 0.5 * (1 + torch.erf(narrow / 2**0.5))
    return bent @ adapter.up.weight.T + adapter.up.bias


def test_iat_shares_b_of_the_encoder_and_a_of_the_decoder() -> None:
    shared = list(shared_schema(tiny(method="iat")))
    assert not [n for n in shared if n.startswith("encoder.") and "lora.a." in n]
    assert not [n for n in shared if n.startswith("decoder.") and "lora.b." in n]
    assert [n for n in shared if n.startswith("encoder.") and "lora.b." in n]
    assert [n for n in shared if n.startswith("decoder.") and "lora.a." in n]


def test_the_overlap_is_the_squared_cosine_of_the_two_updates_in_weight_space() -> None:
    move_b, a, b, move_a = torch.randn(9, 2), torch.randn(2, 7), torch.randn(9, 2), torch.randn(2, 7)
    whole = torch.cosine_similarity((move_b @ a).flatten(), (b @ move_a).flatten(), dim=0).square().item()
    assert overlap(move_b, a, b, move_a).item() == pytest.approx(whole, rel=1e-4)
    assert overlap(3 * b, a, b, a).item() == pytest.approx(1.0, abs=1e-5)


def test_updates_on_other_outputs_and_unrelated_ones_do_not_overlap() -> None:
    a, move_a = torch.randn(2, 7), torch.randn(2, 7)
    upper, lower = torch.eye(4)[:, :2], torch.eye(4)[:, 2:]
    assert overlap(upper, a, lower, move_a).item() == 0.0
    large = [torch.randn(320, 8), torch.randn(8, 320), torch.randn(320, 8), torch.randn(8, 320)]
    assert overlap(*large).item() < 1e-2


def test_the_overlap_is_harmless_before_anything_has_moved() -> None:
    still = torch.zeros(9, 2, requires_grad=True)
    overlap(still, torch.randn(2, 7), torch.zeros(9, 2), torch.zeros(2, 7)).backward()
    assert still.grad is not None
    assert not still.grad.isnan().any()


def test_a_move_that_weight_decay_alone_has_made_gives_the_overlap_no_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's A has no gradient of the task while B is zero; AdamW shrinks it all the same, by about rounding."""

    def slope(way: float) -> float:
        torch.manual_seed(0)
        a, b = torch.randn(8, 256), 1e-3 * torch.randn(128, 8)
        move_a = (way * a + 1e-3 * way * torch.randn(8, 256)).requires_grad_()
        overlap(b.clone(), a, b, move_a).backward()
        assert move_a.grad is not None
        return move_a.grad.norm().item()

    idle, real = slope(1e-7), slope(1e-1)
    monkeypatch.setattr("pfedsam.methods.iat.SHORT", 0.0)
    assert idle < 1e-4 * slope(1e-7)
    assert real == pytest.approx(slope(1e-1), rel=0.1)


def test_iat_s_regulariser_holds_the_shared_factor_off_the_private_drift(open_site) -> None:
    """With the regulariser alone to gain from, the overlap of the two moves falls."""
    train = {"max_steps": 8, "lr": 1e-2}
    found = []
    for weight in (0.0, 20.0):
        site = open_site(tiny(method="iat", train=train, own={"orthogonal_weight": weight}))
        update(site)
        found.append(torch.stack([overlap(*one) for one in methods.iat.moves(site.model)]).mean().item())
    assert found[1] < found[0]
