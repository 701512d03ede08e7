"""No private tensor can be in a message, whatever the configuration."""

from typing import cast

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from conftest import tiny
from pfedsam import methods
from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.model import build
from pfedsam.model.lora import LoRALinear
from pfedsam.model.moe import LocalMoE
from pfedsam.model.partition import Kind, Part, Partition, kinds, partition, tensors_of, wire_name
from pfedsam.model.segmenter import Branches
from pfedsam.study import shared_schema

PLACES = [("qkv", "qkv"), ("linear", "qkv"), ("linear", "mlp"), ("linear", "all")]  # of LoRA and of the experts
SHARED = {"experts": 1, "top_k": 1, "experts_rank": 0, "expert": "conv"}  # an expert in the shared bottleneck
EXPERTS = ("pfedsam", "newcomer")
every_method = pytest.mark.parametrize("method", methods.names())


@pytest.mark.parametrize("method", ["fedper", "fedrep"])
def test_a_method_whose_decoder_is_all_that_stays_is_none_with_a_frozen_one(method: str) -> None:
    with pytest.raises(UserFault, match=f"another model.decoder in {method}"):
        shared_schema(tiny(method=method, model={"decoder": "frozen"}))


def in_post(method: str, reading: str) -> bool:
    """Whether LoRA is after the encoder."""
    return method == "pfedsam" and reading == "post"


def configs(method: str) -> st.SearchStrategy[Config]:
    """A method's settings."""
    return st.builds(
        lambda reading, exclusive, classes, last, places, rank, own, experts, backbone, decoder: tiny(
            method=method,
            own={"reading": reading} if method in EXPERTS else {},
            model={
                "backbone": backbone,
                "decoder": decoder if decoder != "lora" or methods.get(method).decoder_lora else "full",
                "exclusive": exclusive,
                "num_classes": classes,
                "lora_last": None if method in ("fedmsa", "fedms_sam") or in_post(method, reading) else last,
                "lora_on": places[0],
                "experts_in": places[1],
                "lora_rank": rank,
                "experts_rank": own[0],
                "expert": own[1],
                "experts": experts if own[0] else max(experts, int(reading == "R2" or method == "newcomer")),
                "top_k": 1,
            },
            train={"loss": "ce" if exclusive else "bce"},
        ),
        st.sampled_from(["R1", "R2", "R3", "post"]),
        st.booleans(),
        st.integers(1, 3),
        st.sampled_from([None, 1, 3]),
        st.sampled_from(PLACES),
        st.sampled_from([1, 4]),
        st.sampled_from([(0, "conv"), (2, "conv"), (2, "head")]),
        st.integers(0, 4),
        st.sampled_from(["tiny_vit"] if method == "fedbn" else ["demo", "tiny_vit"]),
        st.sampled_from(["full", "lora", "lean", *([] if methods.get(method).keeps else ["frozen"])]),
    )


def built(config: Config) -> tuple[Branches, Partition]:
    method = methods.get(config.method)
    with torch.device("meta"):
        parts = build.backbone(config.model, read=False)
        model = method.model(parts, config)
    return model, method.partition(model, config)


@every_method
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_every_parameter_is_exactly_one_of_shared_private_frozen(method: str, data: st.DataObject) -> None:
    config = data.draw(configs(method))
    model, part = built(config)
    counted = [name for which in Part for name in part.names(which)]
    assert sorted(counted) == sorted(name for name, _ in model.named_parameters())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {*part.names(Part.SHARED), *part.names(Part.PRIVATE)}


@every_method
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_no_private_tensor_can_be_in_a_message(method: str, data: st.DataObject) -> None:
    config = data.draw(configs(method))
    model, part = built(config)
    shared = tensors_of(model, part, Part.SHARED)
    experts = {id(p) for m in model.modules() if isinstance(m, LocalMoE) for p in m.parameters()}
    private = {id(t) for t in tensors_of(model, part, Part.PRIVATE).values()}
    assert experts <= private
    assert not private & {id(t) for t in shared.values()}
    assert sorted(shared_schema(config)) == sorted(wire_name(name) for name in shared)
    if "personal" in model and getattr(config.method_settings, "reading", "") != "R2":
        assert all(name.startswith("branch.global.") for name in shared)


@every_method
@settings(max_examples=2, deadline=None)
@given(st.data())
def test_the_base_is_frozen_and_held_once(method: str, data: st.DataObject) -> None:
    config = data.draw(configs(method))
    model, part = built(config)
    kind = kinds(model)
    base = [name for name in part.parts if kind[name] is Kind.BASE]
    trains = Kind.BASE in methods.get(config.method).trains
    assert all((part.parts[name] is Part.FROZEN) != trains for name in base)
    own = {wire_name(name) if name.startswith("branch.") else name for name in base}
    assert len(own) == len(base)


def test_lora_of_vit_b_at_rank_4_has_the_expected_size() -> None:
    schema = shared_schema(tiny(model={"backbone": "vit_b", "image_size": 256, "experts": 8}))
    lora = sum(torch.Size(s.shape).numel() for name, s in schema.items() if name.startswith("encoder."))
    assert lora == 36_864 * 4


def test_lora_of_vit_b_on_every_linear_layer_has_the_expected_size() -> None:
    schema = shared_schema(tiny(model={"backbone": "vit_b", "image_size": 256, "lora_on": "linear"}))
    lora = sum(torch.Size(s.shape).numel() for name, s in schema.items() if name.startswith("encoder."))
    assert lora == 12 * 4 * 768 * (4 + 2 + 5 + 5)  # a block: qkv, projection, the MLP's two


@pytest.mark.parametrize(("on", "where"), PLACES)
def test_experts_of_vit_b_at_rank_4_have_the_expected_size_and_place(on: str, where: str) -> None:
    settings = {"backbone": "vit_b", "image_size": 256, **SHARED, "experts": 8, "lora_on": on, "experts_in": where}
    model, part = built(tiny(model=settings))
    kind = kinds(model)
    gate = 4 * 8 + 2 * 4 + 1  # scores, and its inputs' mean, variance and count
    count = sum(p.numel() for n, p in model.named_parameters() if kind[n] is Kind.EXPERT)
    assert count == 12 * (4 if where == "all" else 1) * (8 * (4 * 4 * 9 + 4) + gate)
    place = {"qkv": ".attn.qkv.lora.mix.", "mlp": ".mlp.lin1.lora.mix.", "all": ".lora.mix."}[where]
    assert all(place in n for n, k in kind.items() if k is Kind.EXPERT)
    assert part.parts


@pytest.mark.parametrize(("expert", "experts", "numbers"), [("head", 0, 8), ("conv", 4, 8), ("head", 4, 32)])
def test_a_private_bottleneck_of_vit_b_has_the_expected_size_and_leaves_what_is_shared_alone(
    expert: str, experts: int, numbers: int
) -> None:
    """`numbers` is its width: its rank, or that of all heads together."""
    settings = {"backbone": "vit_b", "image_size": 256, "experts": experts, "experts_rank": 8, "expert": expert}
    model, part = built(tiny(own={"reading": "R2"}, model={**settings, "lora_on": "linear", "experts_in": "all"}))
    tensors = dict(model.named_parameters())
    own = [name for name in part.names(Part.PRIVATE) if ".own.mix." not in name]
    assert sum(tensors[name].numel() for name in own) == 12 * numbers * 768 * (4 + 2 + 5 + 5)
    without = shared_schema(tiny(own={"reading": "R2"}, model={**settings, **SHARED, "lora_on": "linear"}))
    assert {wire_name(name) for name in part.names(Part.SHARED)} == set(without)


def test_the_lean_decoder_trains_its_tokens_last_norms_and_head_alone() -> None:
    model, part = built(tiny(model={"decoder": "lean", "num_classes": 2}))
    trained = {n.split(".decoder.")[1] for n in part.names(Part.SHARED) if ".decoder." in n}
    assert {name.rsplit(".", 1)[0] for name in trained} == {
        "iou_token",
        "mask_tokens",
        "transformer.norm_final_attn",
        "upscaling.1",
        "head.conv",
    }
    assert all(not p.requires_grad for n, p in model.named_parameters() if part.parts.get(n) is Part.FROZEN)


def test_a_decoder_by_lora_trains_its_linear_layers_lora_and_all_that_is_not_linear() -> None:
    model, part = built(tiny(own={"reading": "R2"}, model={"decoder": "lora", "experts_in": "all", "experts_rank": 2}))
    decoder = cast(nn.Module, model["global"].decoder)
    linear = {name for name, module in decoder.named_modules() if isinstance(module, LoRALinear)}
    factors = {f"{name}.lora.{factor}.weight" for name in linear for factor in "ab"}
    base = {f"{name}.base.{what}" for name in linear for what in ("weight", "bias")}
    shared = {wire_name(n).removeprefix("decoder.") for n in part.names(Part.SHARED) if ".decoder." in n}
    assert len(linear) == 2 * (3 * 4 + 2) + 4 + 3  # two blocks' three attentions and MLP, the last attention, hyper-net
    assert shared == {name for name, _ in decoder.named_parameters()} - base
    assert factors <= shared
    own = {n for n in part.names(Part.PRIVATE) if ".decoder." in n}
    assert own == {f"branch.personal.decoder.{name}.own.{factor}.weight" for name in linear for factor in "ab"}


@pytest.mark.parametrize(("method", "kept"), [("fedsa_lora", "b"), ("fedper", "ab"), ("ffa_lora", "a")])
def test_methods_that_keep_a_factor_keep_the_decoders_too(method: str, kept: str) -> None:
    _, part = built(tiny(method=method, model={"decoder": "lora"}))
    stays = {
        n for which in (Part.PRIVATE, Part.FROZEN) for n in part.names(which) if ".decoder." in n and ".lora." in n
    }
    assert stays == {n for n in part.parts if ".decoder." in n and any(f".lora.{f}." in n for f in kept)}


def test_the_frozen_decoder_trains_its_head_alone() -> None:
    _, part = built(tiny(model={"decoder": "frozen", "num_classes": 2}))
    assert {n.split(".decoder.")[1] for n in part.names(Part.SHARED) if ".decoder." in n} == {
        "head.conv.weight",
        "head.conv.bias",
    }


def test_two_shared_tensors_never_get_one_name_on_the_wire() -> None:
    """216 tensors were declared, 108 were sent, and nothing said so."""
    method = methods.get("ditto")
    with torch.device("meta"):
        model = method.model(build.backbone(tiny().model, read=False), tiny())
    with pytest.raises(UserFault, match=r"a different name on the wire.*branch\.global\..* and branch\.personal\."):
        partition(model, lambda branch, kind: Part.SHARED)
