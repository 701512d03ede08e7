"""Targets: what arrives over the wire, and what a person writes. Codec, guard, report, settings."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, get_args

import torch
from attacks.test_corpus import LOSSES, REPORT, SCHEMA, STAMP, TESTED, honest
from fuzz.harness import Target, changed, json_like
from hypothesis import strategies as st
from torch import Tensor

from conftest import tiny
from pfedsam.config import Number, to_dict
from pfedsam.exchange.codec import LEAST, decode, encode, scales_fault, wire_schema
from pfedsam.exchange.guard import Accepted, Rejected, facts_fault, judge_message, judge_samples
from pfedsam.exchange.schema import Spec, Stamp, schema_of
from pfedsam.files import write_json
from pfedsam.record.said import report_fault, tested_fault
from pfedsam.settings import from_dict, from_record, read_config
from pfedsam.tensors import not_finite

NUMBERS = st.sampled_from(get_args(Number))
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int64]
DTYPES += [torch.bool, torch.complex64]
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple) | st.sampled_from([s.shape for s in SCHEMA.values()])


HONEST = {number: honest(Random(0), number) for number in get_args(Number)}


def floats(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 9), max_size=3))
    size = torch.Size(shape).numel()
    value = st.floats(width=32, allow_nan=False, allow_infinity=False)
    few = draw(st.lists(value, min_size=min(size, 1), max_size=min(size, 40)))
    return torch.tensor((few * (size // max(1, len(few)) + 1))[:size], dtype=torch.float32).reshape(shape)


def round_trip(drawn: tuple[Tensor, Any], _: Path) -> None:
    """What was encoded is decoded to the same shape, each value at most half a step away, and the guard takes it."""
    tensor, number = drawn
    tensors = {"x": tensor}
    schema, wire = schema_of(tensors), encode(tensors, number)
    assert schema_of(wire) == wire_schema(schema, number)
    back = decode(wire, schema, number)["x"]
    assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)
    if not tensor.numel():
        return
    largest = float(tensor.abs().max())
    step = {"fp32": 0.0, "bf16": 2.0**-7, "int8": 1 / 127, "int4": 1 / 7}[number]
    if largest * (1 + 2**-7) < torch.finfo(torch.float32).max:  # else rounding up is infinite, which the guard refuses
        least = 0.0 if number == "fp32" else LEAST * 127
        assert not_finite({"x": back}) is None
        assert float((back - tensor).abs().max()) <= 0.51 * step * largest * (1 + 2**-7) + least
        assert scales_fault(wire, schema, number) is None


def tensor(draw: st.DrawFn) -> Any:
    if draw(st.integers(0, 9)) == 0:
        return draw(json_like())
    shape, dtype = draw(SHAPES), draw(st.sampled_from(DTYPES))
    filled = torch.full(shape, draw(st.sampled_from([0.0, 1.0, -1.0, 3e38, float("nan")]))).to(dtype)
    form = draw(st.sampled_from(["", "", "", "meta", "sparse", "transposed", "expanded"]))
    if form == "meta":
        return filled.to("meta")
    if form == "sparse" and filled.ndim:
        return filled.to_sparse()
    if form == "expanded":
        return filled[None].expand(3, *filled.shape)
    return filled.transpose(0, 1) if form == "transposed" and filled.ndim > 1 else filled


def message(draw: st.DrawFn) -> tuple[Any, ...]:
    """An honest message in which some tensors, the stamp and the samples are replaced."""
    sent = HONEST[draw(NUMBERS)]
    names = st.sampled_from(sorted(sent.tensors)) | json_like().filter(lambda key: not isinstance(key, list | dict))
    tensors = dict(sent.tensors) | draw(st.dictionaries(names, st.composite(tensor)(), max_size=3))
    for name in draw(st.lists(st.sampled_from(sorted(sent.tensors)), max_size=2)):
        tensors.pop(name, None)
    fields = draw(st.dictionaries(st.sampled_from(["round", "config", "base"]), json_like(), max_size=2))
    return tensors, replace(STAMP, **fields), sent.number, draw(json_like())


def guard(drawn: tuple[Any, ...], _: Path) -> None:
    """Each message is accepted or refused. What is accepted fits the schema exactly, and is finite."""
    tensors, stamp, number, samples = drawn
    verdict = judge_message(tensors, stamp, schema=SCHEMA, expected=STAMP, number=number)
    assert isinstance(judge_samples(samples), Accepted | Rejected)
    if isinstance(verdict, Rejected):
        assert len(verdict.reason) < 400
        return
    assert stamp == STAMP
    assert [type(one) for one in vars(stamp).values()] == [int, str, str]
    assert schema_of(tensors) == {n: Spec(s.shape, s.dtype) for n, s in wire_schema(SCHEMA, number).items()}
    assert not_finite(decode(tensors, SCHEMA, number)) is None


def wire_bytes(drawn: tuple[bytes, Any], _: Path) -> None:
    """Arbitrary bytes in the place of a quantised tensor are refused, or decoded to finite values."""
    content, number = drawn
    spec = wire_schema({"x": Spec((70,), torch.float32)}, number)["x"]
    wire = {"x": torch.tensor(list(content.ljust(spec.shape[0], b"\0")[: spec.shape[0]]), dtype=torch.uint8)}
    schema, stamp = {"x": Spec((70,), torch.float32)}, Stamp(0, "", "")
    if isinstance(judge_message(wire, stamp, schema=schema, expected=stamp, number=number), Accepted):
        assert not_finite(decode(wire, schema, number)) is None


def report(drawn: Any, folder: Path) -> None:
    """Whatever a site says is refused with a short reason, or can be written as JSON that has no NaN."""
    for fault in (report_fault(drawn, LOSSES), tested_fault(drawn)):
        if fault is not None:
            assert len(fault) < 400
            continue
        assert facts_fault(drawn) is None
        write_json(folder / "results.json", drawn)
        assert "NaN" not in (folder / "results.json").read_text()


def settings(drawn: tuple[Any, str], folder: Path) -> None:
    """Settings are read, written, and read again as the same, or refused."""
    values, how = drawn
    if how == "bytes":
        (folder / "job.json").write_bytes(values[0] * values[1])
        read_config(folder / "job.json")
        return
    config = (from_dict if how == "dict" else from_record)(values)
    again = from_record(to_dict(config))
    assert again.digest() == config.digest()
    config.text().encode()
    "".join(config.class_names).encode()


FULL = to_dict(tiny())
DEEP = st.tuples(st.sampled_from([b"[", b'{"model": ', b"9"]), st.sampled_from([500, 20_000, 10**6]))
SETTINGS = st.tuples(
    changed(FULL) | json_like(keys=st.sampled_from([*FULL, "name"])), st.sampled_from(["dict", "record"])
) | st.tuples(st.tuples(st.binary(max_size=60), st.just(1)) | DEEP, st.just("bytes"))
TARGETS = (
    Target("codec", st.tuples(st.composite(floats)(), NUMBERS), round_trip, 150),
    Target("codec bytes", st.tuples(st.binary(max_size=80), st.sampled_from(["int8", "int4"])), wire_bytes, 150),
    Target("guard", st.composite(message)(), guard, 150),
    Target("report", changed(REPORT) | changed(TESTED) | json_like(), report, 250),
    Target("settings", SETTINGS, settings, 250),
)
