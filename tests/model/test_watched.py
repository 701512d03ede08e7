import pytest
import torch
from torch import nn

from conftest import tiny
from pfedsam import methods
from pfedsam.model import build
from pfedsam.model.lora import LoRALinear, adapted
from pfedsam.model.moe import LocalMoE
from pfedsam.model.segmenter import Branches
from pfedsam.model.watch import Watch, entropy, watching, without_experts

OWN = {"experts_rank": 2, "experts_in": "all", "lora_on": "linear"}


def branches(**model: object) -> Branches:
    """Two branches in one model (reading R2), with a private part that adds something."""
    config = tiny(own={"reading": "R2"}, model={"image_size": 64, **model})
    found = methods.get("pfedsam").model(build.backbone(config.model), config)
    torch.manual_seed(0)
    for place in (place for branch in found.names() for place in adapted(found[branch])):
        for lora in filter(None, (place.lora, place.own)):
            nn.init.normal_(lora.b.weight, std=0.1)
    return found.eval()


@pytest.mark.parametrize("model", [{**OWN, "expert": "head"}, {**OWN, "experts": 0}, {"experts": 3}])
def test_without_its_experts_a_branch_is_the_global_one_and_then_itself_again(model: dict[str, object]) -> None:
    found, image = branches(**model), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = found(image)
        with without_experts(found["personal"]):
            bare = found(image, ("personal",))["personal"]
        after = found(image)
    assert torch.allclose(bare, before["global"], atol=1e-5)
    assert not torch.allclose(bare, before["personal"], atol=1e-3)
    assert torch.equal(after["personal"], before["personal"])


@pytest.mark.parametrize("model", [{**OWN, "expert": "head"}, {**OWN, "expert": "conv"}, {"experts": 3}])
def test_a_branch_s_experts_are_told_in_shares_of_one(model: dict[str, object]) -> None:
    found = branches(**model)
    with torch.no_grad(), watching(found["personal"]) as watch:
        found(torch.randn(4, 3, 64, 64), ("personal",))
    facts = watch.facts()
    assert 0 < facts["share"] < 1
    assert 0 < facts["entropy"] <= 1
    assert 0 <= facts["varies"] < 1
    assert sum(facts["experts"]) == pytest.approx(1, abs=1e-3)


def test_a_private_bottleneck_without_experts_has_a_share_and_no_gate() -> None:
    found = branches(**OWN, experts=0)
    with torch.no_grad(), watching(found["personal"]) as watch:
        found(torch.randn(2, 3, 64, 64), ("personal",))
    assert watch.facts().keys() == {"share"}


def test_a_branch_without_an_l_moe_has_nothing_to_tell() -> None:
    found = branches(experts=3)
    with torch.no_grad(), watching(found["global"]) as watch:
        found(torch.randn(2, 3, 64, 64), ("global",))
    assert watch.facts() == Watch().facts() == {}


def test_entropy_is_one_for_gates_that_are_alike_and_none_for_a_single_choice() -> None:
    assert all(1 - 1e-6 < entropy(torch.full((3, count), 1 / count)) <= 1 for count in range(2, 9))
    assert entropy(torch.eye(4)) == 0
    assert entropy(torch.ones(3, 1)) == 0


@pytest.mark.parametrize("experts", [0, 3])
def test_an_own_detour_is_its_formula(experts: int) -> None:
    """W0 x + s B A x + B' mix(A' x)."""
    layer = LoRALinear(nn.Linear(5, 7), rank=2, alpha=4)
    own = layer.own = build.own_detour(layer, 3)
    if experts:
        own.mix = LocalMoE(3, experts=experts, top_k=2).eval()
    for lora in (layer.lora, own):
        nn.init.normal_(lora.b.weight)
    x = torch.randn(2, 4, 4, 5)
    narrow = x @ own.a.weight.T
    if own.mix is not None:
        narrow = own.mix(narrow.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    wanted = layer.base(x) + 2 * x @ layer.lora.a.weight.T @ layer.lora.b.weight.T + narrow @ own.b.weight.T
    assert torch.allclose(layer(x), wanted, atol=1e-5)
