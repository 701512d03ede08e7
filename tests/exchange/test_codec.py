"""Formats on the wire, each against a literal reference, value by value."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from conftest import tiny
from pfedsam.exchange.codec import BLOCK, CODECS, decode, encode, quantise, wire_schema, with_feedback
from pfedsam.exchange.guard import Accepted, Rejected, judge_message
from pfedsam.exchange.ledger import payload_bytes
from pfedsam.exchange.schema import Stamp, schema_of
from pfedsam.study import shared_schema

NUMBERS = list(CODECS)
STEPS = {"int8": 127, "int4": 7}
shapes = st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple) | st.sampled_from([(64,), (65,), (3, 128)])


def drawn(shape: tuple[int, ...], seed: int, size: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def literal(x: torch.Tensor, most: int) -> torch.Tensor:
    """Block by block, value by value: round(x / scale) * scale, scale = max |x| / most, up to bfloat16."""
    out, flat = [], x.flatten().tolist()
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        scale = rounded_up(torch.tensor(max(map(abs, block))) / most)
        for value in block:
            whole = (torch.tensor(value) / scale).round().clamp(-most, most) if scale else torch.tensor(0.0)
            out.append((whole * scale).item())
    return torch.tensor(out).view(x.shape)


def rounded_up(x: torch.Tensor) -> torch.Tensor:
    """The first of bfloat16's numbers, counted up from zero, that is not below x."""
    bits = int(x.view(torch.int32)) >> 16 << 16
    return torch.tensor(bits + (0x10000 if bits < int(x.view(torch.int32)) else 0)).int().view(torch.float32)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 99), st.sampled_from([1.0, 1e-12, 1e12]), st.sampled_from(sorted(STEPS)))
def test_integers_equal_their_literal_reference(shape: tuple[int, ...], seed: int, size: float, number: str) -> None:
    tensors = {"x": drawn(shape, seed, size)}
    wire = encode(tensors, number)
    assert schema_of(wire) == wire_schema(schema_of(tensors), number)
    assert torch.equal(decode(wire, schema_of(tensors), number)["x"], literal(tensors["x"], STEPS[number]))


@pytest.mark.parametrize("number", ["fp32", "bf16"])
def test_floats_are_the_tensors_themselves_or_rounded_to_bfloat16(number: str) -> None:
    tensors = {"x": drawn((5, 7), 0)}
    wire = encode(tensors, number)
    expected = tensors["x"] if number == "fp32" else tensors["x"].bfloat16().float()
    assert torch.equal(decode(wire, schema_of(tensors), number)["x"], expected)
    assert wire["x"].shape == (5, 7)


@pytest.mark.parametrize("number", NUMBERS)
def test_zeros_stay_zeros(number: str) -> None:
    tensors = {"x": torch.zeros(70)}
    assert torch.equal(decode(encode(tensors, number), schema_of(tensors), number)["x"], tensors["x"])


def test_rounding_is_off_by_half_a_step_at_most() -> None:
    x = drawn((1000,), 3)
    scale, integers = quantise(x, 7)
    error = (integers * scale.float()[:, None]).flatten()[:1000] - x
    assert (error.abs() <= 0.5001 * scale.float().repeat_interleave(BLOCK)[:1000]).all()


@pytest.mark.parametrize("most", sorted(STEPS.values()))
def test_no_block_s_largest_value_is_cut(most: int) -> None:
    """A scale to the nearest is too small for half of all blocks: their largest value lies beyond the last step."""
    x = drawn((200 * BLOCK,), 4, 1e-5)
    scale, _ = quantise(x, most)
    assert (x.view(-1, BLOCK).abs().amax(1) <= scale.float() * most).all()


@pytest.mark.parametrize("number", NUMBERS)
def test_with_feedback_the_sum_of_messages_is_the_sum_of_updates_but_for_one_rounding(number: str) -> None:
    shape, owed, sent, meant = (300,), {}, torch.zeros(300), torch.zeros(300)
    for round_ in range(20):
        update = {"x": drawn(shape, round_) * 1e-3}
        wire, owed = with_feedback(update, owed, number)
        sent, meant = sent + decode(wire, schema_of(update), number)["x"], meant + update["x"]
    left = owed.get("x", torch.zeros(300))
    assert torch.allclose(sent + left, meant, atol=1e-7)
    assert left.abs().max() < 1e-3


def test_without_feedback_int4_loses_what_feedback_keeps() -> None:
    update = {"x": torch.cat([torch.full((1,), 1.0), torch.full((63,), 0.05)])}
    sent, owed = torch.zeros(64), {}
    for _ in range(40):
        wire, owed = with_feedback(update, owed, "int4")
        sent = sent + decode(wire, schema_of(update), "int4")["x"]
    assert decode(encode(update, "int4"), schema_of(update), "int4")["x"][1:].abs().sum() == 0
    assert torch.allclose(sent[1:] / 40, update["x"][1:], atol=0.005)


@pytest.mark.parametrize(
    ("decoder", "number", "megabytes"),
    [
        ("lean", "fp32", 0.6),
        ("lean", "int8", 0.16),
        ("lean", "int4", 0.09),
        ("lora", "fp32", 1.3),
        ("lora", "int8", 0.34),
    ],
)
def test_a_small_update_of_vit_b_is_as_small_as_promised(decoder: str, number: str, megabytes: float) -> None:
    schema = shared_schema(tiny(model={"backbone": "vit_b", "image_size": 256, "decoder": decoder, "experts": 8}))
    wire = wire_schema(schema, number)
    size = sum(torch.Size(s.shape).numel() * s.dtype.itemsize for s in wire.values())
    values = sum(torch.Size(s.shape).numel() for s in schema.values())
    bits = {"fp32": 32, "int8": 8, "int4": 4}[number]
    assert size <= megabytes * 1e6
    assert size <= 1.1 * values * bits / 8


@pytest.mark.parametrize("number", NUMBERS)
def test_the_guard_takes_what_the_codec_makes_and_refuses_what_would_become_infinite(number: str) -> None:
    tensors, stamp = {"x": drawn((130,), 0)}, Stamp(0, "c", "b")
    schema, wire = schema_of(tensors), encode(tensors, number)
    assert judge_message(wire, stamp, schema=schema, expected=stamp, number=number) == Accepted()
    bad = wire["x"].clone()
    if number in STEPS:
        bad[:2] = torch.tensor([float("inf")]).bfloat16().view(torch.uint8)
    else:
        bad[0] = float("nan")
    verdict = judge_message({"x": bad}, stamp, schema=schema, expected=stamp, number=number)
    told = "finite values" if number not in STEPS else "scales of 0 or from 1.18e-38 on"
    assert isinstance(verdict, Rejected)
    assert told in verdict.reason
    short = judge_message({"x": wire["x"][:-1]}, stamp, schema=schema, expected=stamp, number=number)
    assert isinstance(short, Rejected)
    assert "expected shape" in short.reason


def test_bytes_of_a_message_are_those_of_its_wire_tensors() -> None:
    tensors = {"x": torch.zeros(6400)}
    assert payload_bytes(encode(tensors, "int8")) == 6400 + 200
    assert payload_bytes(encode(tensors, "int4")) == 3200 + 200
