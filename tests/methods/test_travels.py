"""Methods whose novelty is what travels: what leaves, what stays, and what the server makes of it."""

import math

import pytest
import torch

from conftest import tiny
from pfedsam import methods
from pfedsam.data.dataset import View
from pfedsam.exchange.codec import decode
from pfedsam.exchange.schema import size_of
from pfedsam.exchange.server import Contribution, ServerState, begin_state, message
from pfedsam.exchange.store import Moment
from pfedsam.methods import dual_lora, fca
from pfedsam.model.lora import adapted
from pfedsam.study import down_schema, initial_shared, private_schema, shared_schema


def moved_by(*values: float, samples: float = 1) -> Contribution:
    return Contribution(samples, lambda: {"w": torch.tensor(values)})


@pytest.mark.parametrize(("early", "blocks"), [(0.25, 1), (0.5, 2), (0.6, 3), (1.0, 4)])
def test_fedsca_sends_the_first_blocks_lora_alone(early: float, blocks: int) -> None:
    config = tiny(method="fedsca", own={"early": early}, model={"backbone": "vit_b", "lora_last": 4})
    units = sorted({int(name.split(".")[2]) for name in shared_schema(config)})
    plain = shared_schema(tiny(method="fedavg", model={"backbone": "vit_b", "lora_last": 4}))
    adapted = sorted({int(name.split(".")[2]) for name in plain if name.startswith("encoder.")})
    assert units == adapted[:blocks]
    assert len(shared_schema(config)) == 2 * blocks
    stays = {name.split(".", 2)[2] for name in private_schema(config)}
    assert stays == plain.keys() - shared_schema(config).keys()


def test_fedsca_weighs_sites_by_samples_and_similarity() -> None:
    each = {"a": moved_by(1.0, 0.0, samples=3), "b": moved_by(2.0, 0.0), "c": moved_by(0.0, 4.0)}
    state = ServerState({"w": torch.zeros(2)})
    config = tiny(method="fedsca", own={"temperature": 0.5})
    after = methods.get("fedsca").rule(state, each, config)
    far = math.exp(-1 / 0.5)
    assert after.model_of("a")["w"].tolist() == pytest.approx([(3 * 1 + 2) / (4 + far), 4 * far / (4 + far)])
    assert after.model_of("c")["w"].tolist() == pytest.approx([(3 + 2) * far / (4 * far + 1), 4 / (4 * far + 1)])
    mean = methods.get("fedsca").rule(state, each, tiny(method="fedsca", own={"temperature": 1000.0}))
    assert mean.model_of("c")["w"].tolist() == pytest.approx(mean.shared["w"].tolist(), abs=2e-3)


def test_fca_s_score_is_the_cosine_of_the_two_moves_in_a_unit() -> None:
    own = {"a": torch.tensor([[1.0, 0.0], [2.0, 2.0]]), "b": torch.tensor([[0.0, 1.0]])}
    mean = {"a": torch.tensor([[3.0, 0.0], [-1.0, -1.0]]), "b": torch.tensor([[0.0, -0.5]])}
    (found,) = fca.scores(iter([("a", "b")]), own, mean)
    assert found.tolist() == pytest.approx([1.0, -1.0], abs=1e-5)
    (still,) = fca.scores(iter([("a", "b")]), own, {name: torch.zeros_like(one) for name, one in mean.items()})
    assert still.tolist() == [0.0, 0.0]


def test_fca_s_binary_split_takes_the_units_that_agree_most_and_its_soft_one_a_sigmoid() -> None:
    score = torch.tensor([[0.9, -0.5], [0.1, 0.8]])
    binary = fca.common_shares(score, fca.Settings(common=0.5))
    assert binary.tolist() == [[1, 0], [0, 1]]
    assert fca.common_shares(score, fca.Settings(common=0.0)).sum() == 0
    soft = fca.common_shares(score, fca.Settings("soft", sharpness=2.0))
    assert soft[0, 0].item() == pytest.approx(1 / (1 + math.exp(-1.8)))


def two_rounds_of_fca(open_site, split: str):
    """A site that has trained a round, received a model that moved the other way in some units, and trained again."""
    config = tiny(method="fca", own={"split": split, "common": 0.5}, model={"lora_rank": 4})
    site = open_site(config)
    shared = initial_shared(config)[0]
    site.receive(shared, Moment("run", 0))
    first = site.train(0, 2).wire
    arrived = {}
    for name, tensor in shared.items():
        sign = torch.tensor([1.0, 1.0, -1.0, -1.0])
        way = sign[:, None] if ".lora.a." in name else sign[None, :] if ".lora.b." in name else 1.0
        arrived[name] = tensor + way * first[name] / 2
    own = {name: shared[name] + first[name] for name in shared}
    site.receive(arrived, Moment("run", 1), trained=True)
    return site, arrived, own


def test_fca_keeps_its_individual_units_and_sends_nothing_of_them(open_site) -> None:
    site, arrived, own = two_rounds_of_fca(open_site, "binary")
    began = site.shared()
    wire = site.train(1, 2).wire
    trained = {name: tensor for name, tensor in site.shared().items() if ".lora." in name}
    for name in trained:
        rows = [one if ".lora.a." in name else one.T for one in (began[name], arrived[name], own[name], wire[name])]
        begins, came, kept, sent = rows
        assert torch.equal(begins[:2], came[:2])
        assert torch.allclose(begins[2:], kept[2:], atol=1e-7)
        assert not sent[2:].any()
        assert sent[:2].any()
        assert not torch.equal(trained[name], own[name])  # it trains them all the same
        assert torch.equal(site._here.memory["move/" + name], trained[name] - began[name])
    private = {name.split(".", 2)[2]: tensor for name, tensor in site.private().items()}
    assert all(torch.equal(private[name], tensor) for name, tensor in site.shared().items())


def test_fca_s_soft_split_moves_each_unit_its_share_of_the_way(open_site) -> None:
    site, arrived, own = two_rounds_of_fca(open_site, "soft")
    m = torch.sigmoid(torch.tensor([1.0, 1.0, -1.0, -1.0]))  # of cosines of 1 and -1
    for name, tensor in site.shared().items():
        if ".lora." in name:
            share = m[:, None] if ".lora.a." in name else m[None, :]
            assert torch.allclose(tensor, share * arrived[name] + (1 - share) * own[name], atol=1e-4)
        else:
            assert torch.equal(tensor, arrived[name])


def test_fca_s_final_test_scores_the_server_s_model_as_it_came(open_site) -> None:
    site, arrived, _ = two_rounds_of_fca(open_site, "binary")
    site.train(1, 2)
    site.recall(arrived, Moment("run", 10), trained=True)
    assert all(torch.equal(tensor, arrived[name]) for name, tensor in site.shared().items())
    assert any(not torch.equal(t, arrived[n.split(".", 2)[2]]) for n, t in site.private().items())


def test_both_lora_of_dual_lora_add_up_and_the_global_branch_has_one(open_site) -> None:
    site = open_site(tiny(method="dual_lora", own={"local_rank": 3}))
    personal, plain = (adapted(site.model[name])[0] for name in ("personal", "global"))
    with torch.no_grad():
        for part in (personal.lora, personal.own):
            torch.nn.init.normal_(part.b.weight)
    x = torch.randn(1, 2, 2, personal.base.in_features)
    shared = personal.base(x) + x @ personal.lora.a.weight.T @ personal.lora.b.weight.T
    local = x @ personal.own.a.weight.T @ personal.own.b.weight.T
    assert personal.own.a.weight.shape[0] == 3
    assert torch.allclose(personal(x), shared + local, atol=1e-4)
    assert torch.allclose(plain(x), shared, atol=1e-4)


def test_dual_lora_trains_both_by_one_loss_and_sends_the_global_one(open_site) -> None:
    config = tiny(method="dual_lora")
    assert shared_schema(config) == shared_schema(tiny(method="fedavg"))
    assert all(".own." in name for name in private_schema(config))
    site = open_site(config)
    batch = site.data["train"].batch([View(0), View(1)])
    found = dual_lora.losses(site.model, batch, config)
    assert list(found) == ["personal"]
    found["personal"].backward()
    place = adapted(site.model["personal"])[0]
    assert all(bool(part.b.weight.grad.any()) for part in (place.lora, place.own))
    site.receive(initial_shared(config)[0])
    before = {name: tensor.clone() for name, tensor in site.private().items()}
    wire = site.train(0, 2).wire
    assert any(tensor.any() for name, tensor in wire.items() if ".lora.b." in name)
    assert any(not torch.equal(site.private()[name], tensor) for name, tensor in before.items())


ATTENTIONS = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")  # of a layer of SAM's decoder


def test_flap_sam_shares_of_the_decoder_what_makes_masks_and_trains_nothing_else_of_it(open_site) -> None:
    config = tiny(method="flap_sam", model={"num_classes": 2})
    decoder = {name.removeprefix("decoder.") for name in shared_schema(config) if name.startswith("decoder.")}
    tops = {name.split(".")[0] for name in decoder}
    assert tops == {"upscaling", "hypernetworks", "iou_token", "mask_tokens", "transformer", "head"}
    attentions = [f"layers.{i}.{kind}" for i in (0, 1) for kind in ATTENTIONS] + ["final_attn_token_to_image"]
    factors = {f"{at}.{end}_proj.lora.{f}.weight" for at in attentions for end in "qv" for f in "ab"}
    assert {name.removeprefix("transformer.") for name in decoder if name.startswith("transformer")} == {
        "norm_final_attn.weight",
        "norm_final_attn.bias",
        *factors,
    }
    whole = shared_schema(tiny(method="fedavg", model={"num_classes": 2}))
    for part in ("decoder.upscaling.", "decoder.hypernetworks.", "encoder."):
        assert {n for n in whole if n.startswith(part)} == {n for n in shared_schema(config) if n.startswith(part)}
    site = open_site(config)
    frozen = {n: p.clone() for n, p in site.model["global"].decoder.named_parameters() if n not in decoder}
    site.receive(initial_shared(config)[0])
    wire = site.train(0, 2).wire
    trained = [name for name in decoder if any(part in name for part in ("upscaling.0", "hypernetworks.0", ".lora.b."))]
    assert all(wire["decoder." + name].any() for name in trained)
    live = dict(site.model["global"].decoder.named_parameters())
    assert all(torch.equal(live[name], tensor) for name, tensor in frozen.items())


def test_flap_sam_s_message_at_vit_b_leaves_the_decoder_s_transformer_out() -> None:
    model = {"backbone": "vit_b", "image_size": 256}
    whole, part = (shared_schema(tiny(method=name, model=model)) for name in ("fedavg", "flap_sam"))
    left = {name: spec for name, spec in whole.items() if name not in part}
    assert all(name.startswith("decoder.transformer.") for name in left)
    assert size_of(part) < size_of(whole) / 4


@pytest.mark.parametrize("method", ["fca", "fedala", "apple"])
def test_a_site_that_has_not_trained_predicts_with_the_server_s_model(open_site, method: str) -> None:
    site, down = open_site(tiny(method=method)), down_schema(tiny(method=method))
    moved = {name: tensor + 0.01 for name, tensor in initial_shared(site.config)[0].items()}
    site.recall(decode(message(begin_state(moved, down), site.name, site.config, down), down, "fp32"))
    private = {name.split(".", 2)[2]: t for name, t in site.private().items() if name.startswith("branch.")}
    assert all(torch.equal(private[name], tensor) for name, tensor in moved.items())
