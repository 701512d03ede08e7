"""Hostile updates and models, family by family: each is refused with the right reason, and no honest one is.

The families that are well formed and finite cannot be refused. `tests/exchange/test_robust.py` shows what they do to a
model under each rule.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pfedsam.config import Number
from pfedsam.exchange.codec import encode, wire_schema
from pfedsam.exchange.guard import Accepted, Rejected, Verdict, facts_fault, judge_message, judge_samples
from pfedsam.exchange.schema import Schema, Spec, Stamp
from pfedsam.record import said as rules
from pfedsam.record.results import UNKNOWN, as_known

SEEDS = 25
NUMBERS: tuple[Number, ...] = ("fp32", "bf16", "int8", "int4")
SCHEMA: Schema = {
    "encoder.x.lora.a.weight": Spec((4, 40), torch.float32),
    "encoder.x.lora.b.weight": Spec((96, 4), torch.float32),
    "decoder.head.weight": Spec((7, 11, 3), torch.float32),
    "decoder.scale": Spec((), torch.float32),
    "extra/control": Spec((5,), torch.float32, 10.0),
}
ROW = {"dice": 0.5, "iou": 0.4, "detected": 1.0, "scored": 3, "empty": 0, "false_alarms": 0}
LOSSES = {"global", "personal", "balance"}
REPORT: dict[str, Any] = {
    **{"losses": {"global": 0.7, "personal": 0.6}, "seconds": 2.5, "scoring_seconds": 0.5, "samples": 40},
    **{"bytes_sent": 9, "bytes_received": 9, "val": {"global": ROW, "personal": ROW}, "before": ROW},
    **{"private": {"run": "r-1", "round": 2}, "experts": {"share": 0.2, "experts": [0.5, 0.5]}},
}
TESTED: dict[str, Any] = {"global": ROW, "personal": ROW, "val": {"global": ROW, "personal": ROW}, "patients": 3}


@dataclass(frozen=True)
class Message:
    """What a site sends, and in which number format."""

    tensors: dict[Any, Any]
    stamp: Stamp
    samples: Any
    report: Any
    number: Number


def honest(rng: random.Random, number: Number | None = None, scale: float | None = None) -> Message:
    number = number or rng.choice(NUMBERS)
    scale = 10 ** rng.uniform(-8, 0) if scale is None else scale
    draw = torch.Generator().manual_seed(rng.randrange(2**31))
    tensors = {name: scale * torch.randn(spec.shape, generator=draw) for name, spec in SCHEMA.items()}
    return Message(encode(tensors, number), STAMP, REPORT["samples"], REPORT, number)


STAMP = Stamp(3, "c" * 64, "b" * 64)


def judged(message: Message) -> Verdict:
    """As the server judges an update: tensors, stamp, samples, report."""
    verdict = judge_message(message.tensors, message.stamp, schema=SCHEMA, expected=STAMP, number=message.number)
    verdict = judge_samples(message.samples) if isinstance(verdict, Accepted) else verdict
    fault = rules.report_fault(message.report, LOSSES) if isinstance(verdict, Accepted) else None
    if fault is None and isinstance(verdict, Accepted) and message.samples != message.report["samples"]:
        fault = "expected the samples of the report"
    return Rejected(fault) if fault else verdict


Change = Callable[[random.Random, Message], Message]


def tensors(change: Callable[[random.Random, dict[Any, Any], str], object], number: Number | None = None) -> Change:
    """A family that changes the tensors: `change` gets a copy, and one tensor's name."""

    def made(rng: random.Random, message: Message) -> Message:
        message = honest(rng, number) if number else message
        copy = dict(message.tensors)
        change(rng, copy, rng.choice(sorted(copy)))
        return replace(message, tensors=copy)

    return made


def put(value: Callable[[random.Random, Tensor], Any], number: Number | None = None) -> Change:
    """A family that puts something in one tensor's place."""
    return tensors(lambda rng, held, name: held.__setitem__(name, value(rng, held[name])), number)


def stamped(**fields: Callable[[random.Random], Any]) -> Change:
    return lambda rng, m: replace(m, stamp=replace(m.stamp, **{name: make(rng) for name, make in fields.items()}))


def counted(samples: Callable[[random.Random], Any]) -> Change:
    return lambda rng, m: replace(m, samples=samples(rng))


def said(**changes: Callable[[random.Random], Any]) -> Change:
    """A family that changes entries of the report. A dotted name is written with two underscores."""

    def made(rng: random.Random, message: Message) -> Message:
        report = {key: dict(value) if isinstance(value, dict) else value for key, value in REPORT.items()}
        for name, make in changes.items():
            outer, _, inner = name.partition("__")
            (report[outer] if inner else report)[inner or outer] = make(rng)
        return replace(message, report=report)

    return made


def filled(value: float) -> Change:
    return put(lambda _, t: torch.full(t.shape, value, dtype=torch.float32), "fp32")


def one_value(value: float) -> Change:
    def change(rng: random.Random, tensor: Tensor) -> Tensor:
        flat = tensor.clone().flatten()
        flat[rng.randrange(len(flat))] = value
        return flat.reshape(tensor.shape)

    return put(change, "fp32")


def scale_of(value: float, number: Number) -> Change:
    """A family with one bad scale in quantised tensors."""

    def change(rng: random.Random, held: dict[str, Tensor], _: str) -> None:
        name = rng.choice([name for name in sorted(held) if not name.startswith("extra/")])
        wire = held[name].clone()
        wire[:2] = torch.tensor([value]).bfloat16().view(torch.uint8)
        held[name] = wire

    return tensors(change, number)


def text(least: int, most: int) -> Callable[[random.Random], str]:
    return lambda rng: "".join(rng.choice("abc <>&^\x1b\n;=+@") for _ in range(rng.randint(least, most)))


def big(rng: random.Random) -> int:
    return rng.randint(10**7 + 1, 10**12)


FAMILIES: dict[str, tuple[Change, str]] = {
    "a tensor is missing": (tensors(lambda _, held, name: held.pop(name)), "are missing"),
    "all are missing": (tensors(lambda _, held, __: held.clear()), "are missing"),
    "half are missing": (tensors(lambda _, held, __: [held.pop(n) for n in sorted(held)[::2]]), "are missing"),
    "renamed": (tensors(lambda _, held, name: held.__setitem__(name.upper(), held.pop(name))), "are missing"),
    "a private tensor": (tensors(lambda _, held, __: held.__setitem__("x.gate", torch.ones(3))), "not declared"),
    "a path as name": (tensors(lambda _, held, __: held.__setitem__("../../x", torch.ones(3))), "not declared"),
    "a number as name": (tensors(lambda rng, held, _: held.__setitem__(rng.random(), torch.ones(3))), "not declared"),
    "escape codes as name": (tensors(lambda _, held, __: held.__setitem__("\x1b[2J", torch.ones(3))), "not declared"),
    "many names": (tensors(lambda _, held, __: held.update({f"n{i}": torch.ones(1) for i in range(99)})), "99 are"),
    "a scalar that would be spread": (
        tensors(lambda _, held, __: held.__setitem__(HEAD, torch.tensor(1e3)), "fp32"),
        "expected shape",
    ),
    "one value that would be spread": (put(lambda _, t: torch.ones([1] * (t.ndim + 1))), "expected shape"),
    "one axis more": (put(lambda _, t: t[None]), "expected shape"),
    "one value more": (put(lambda _, t: torch.cat([t.flatten(), t.flatten()[:1]])), "expected shape"),
    "half of the values": (put(lambda _, t: torch.cat([t.flatten()] * 2)), "expected shape"),
    "no values": (put(lambda _, __: torch.ones(0, 3)), "expected shape"),
    "huge and empty": (put(lambda _, __: torch.ones(0, 10**9)), "expected shape"),
    "another order of axes": (
        tensors(lambda _, held, __: held.__setitem__(HEAD, held[HEAD].permute(2, 0, 1)), "fp32"),
        "expected shape",
    ),
    "float16": (put(lambda _, t: t.to(torch.float16), "fp32"), "float16"),
    "float64": (put(lambda _, t: t.to(torch.float64), "fp32"), "float64"),
    "bfloat16 for float32": (put(lambda _, t: t.to(torch.bfloat16), "fp32"), "bfloat16"),
    "float32 for bfloat16": (
        tensors(lambda _, held, __: held.__setitem__(HEAD, held[HEAD].float()), "bf16"),
        "float32",
    ),
    "integers": (put(lambda _, t: t.to(torch.int64), "fp32"), "int64"),
    "truth values": (put(lambda _, t: t.to(torch.bool), "fp32"), "bool"),
    "complex numbers": (put(lambda _, t: t.to(torch.complex64), "fp32"), "complex64"),
    "signed bytes": (tensors(lambda _, held, __: held.__setitem__(HEAD, held[HEAD].view(torch.int8)), "int8"), "int8"),
    "sparse": (put(lambda _, t: t.to_sparse() if t.ndim else torch.ones(2).to_sparse(), "fp32"), "dense"),
    "NaN everywhere": (filled(math.nan), "NaN or infinite"),
    "infinite everywhere": (filled(math.inf), "NaN or infinite"),
    "one NaN": (one_value(math.nan), "NaN or infinite"),
    "one infinite value": (one_value(math.inf), "NaN or infinite"),
    "one minus infinite value": (one_value(-math.inf), "NaN or infinite"),
    "an extra beyond its bound": (
        tensors(lambda _, held, __: held.__setitem__("extra/control", torch.full((5,), 11.0))),
        "within 10",
    ),
    "a scale of NaN in int8": (scale_of(math.nan, "int8"), "scales"),
    "an infinite scale in int8": (scale_of(math.inf, "int8"), "scales"),
    "a negative scale in int8": (scale_of(-1.0, "int8"), "scales"),
    "a subnormal scale in int8": (scale_of(1e-39, "int8"), "scales"),
    "a scale that overflows in int8": (scale_of(3e38, "int8"), "NaN or infinite"),
    "a scale of NaN in int4": (scale_of(math.nan, "int4"), "scales"),
    "a negative scale in int4": (scale_of(-1e-3, "int4"), "scales"),
    "without values": (put(lambda _, t: t.to("meta"), "fp32"), "dense"),
    "a list": (put(lambda _, t: t.tolist()), "expected a tensor"),
    "an array": (put(lambda _, t: t.numpy(), "fp32"), "expected a tensor"),
    "text": (put(lambda rng, _: text(1, 99)(rng)), "expected a tensor"),
    "pickled bytes": (put(lambda _, __: b"\x80\x04cos\nsystem\n"), "expected a tensor"),
    "nothing": (put(lambda _, __: None), "expected a tensor"),
    "a past round": (stamped(round=lambda rng: rng.randint(-9, 2)), "expected round"),
    "a future round": (stamped(round=lambda rng: rng.randint(4, 10**9)), "expected round"),
    "a round of text": (stamped(round=text(1, 9)), "expected round"),
    "a broken round": (stamped(round=lambda rng: 3 + rng.uniform(0.01, 0.9)), "expected round"),
    "other settings": (stamped(config=text(1, 64)), "expected config"),
    "no settings": (stamped(config=lambda _: ""), "expected config"),
    "another base": (stamped(base=text(1, 64)), "expected base"),
    "no stamp at all": (stamped(round=lambda _: None, config=lambda _: None, base=lambda _: None), "expected round"),
    "no samples": (counted(lambda _: 0), "number of samples"),
    "negative samples": (counted(lambda rng: -rng.randint(1, 10**9)), "number of samples"),
    "too many samples": (counted(big), "number of samples"),
    "broken samples": (counted(lambda rng: rng.uniform(1, 99)), "number of samples"),
    "samples of text": (counted(text(1, 5)), "number of samples"),
    "samples NaN": (counted(lambda _: math.nan), "number of samples"),
    "samples True": (counted(lambda _: True), "number of samples"),
    "other samples than the report": (counted(lambda rng: rng.randint(41, 10**7)), "samples of the report"),
    "no report": (lambda _, m: replace(m, report=None), "expected"),
    "a report of text": (lambda rng, m: replace(m, report=text(1, 150)(rng)), "expected"),
    "a page of text in the report": (said(note=text(300, 9_000)), "at most 200 characters"),
    "a patient in the report": (said(patient=lambda _: "Doe^John 1970-01-01"), "expected no 'patient'"),
    "a thousand numbers in the report": (said(more=lambda rng: [rng.random() for _ in range(1000)]), "expected no"),
    "more than the report holds": (said(more=lambda rng: [rng.random() for _ in range(9000)]), "at most 32768"),
    "a tensor in the report": (said(picture=lambda _: torch.ones(3)), "numbers and texts"),
    "a loop in the report": (said(loop=lambda _: _loop()), "numbers and texts"),
    "a loss NaN": (said(losses__global=lambda _: math.nan), "numbers and texts"),
    "a loss of text": (said(losses__global=text(1, 9)), "loss global"),
    "a loss without end": (said(losses__global=lambda _: 10**400), "loss global"),
    "a patient as a loss": (said(losses=lambda _: {"doe_john_born_1970_01_01": 0.0}), "losses named"),
    "a loss with escape codes": (said(losses=lambda _: {"\x1b[31m": 1.0}), "losses named balance, global, personal"),
    "a loss with a formula": (said(losses=lambda _: {"=cmd()": 1.0}), "losses named"),
    "a loss named by a number": (said(losses=lambda _: {math.nan: 1.0, "global": 1.0}), "float as the name"),
    "two losses of one name": (said(losses=lambda _: {float("nan"): 1.0, float("nan"): 1.0}), "float as the name"),
    "a loss without a name": (said(losses=lambda _: {None: 1.0}), "NoneType as the name"),
    "a number deep within": (said(before=lambda _: {**ROW, "by_unit": {"mm": {1: 0.5}}}), "int as the name"),
    "half of a character": (said(private=lambda _: {"run": "\ud800", "round": 1}), "half of a character"),
    "a hundred losses": (said(losses=lambda _: {f"l{i}": 1.0 for i in range(100)}), "losses named"),
    "a Dice above one": (said(before=lambda rng: {**ROW, "dice": rng.uniform(1.01, 99)}), "dice of before"),
    "a negative Dice": (said(before=lambda rng: {**ROW, "dice": -rng.random() - 0.01}), "dice of before"),
    "a Dice NaN": (said(val=lambda _: {"global": {**ROW, "dice": math.nan}, "personal": ROW}), "numbers and texts"),
    "another branch": (said(val=lambda _: {"global": ROW, "personal": ROW, "third": ROW}), "expected no 'third'"),
    "a branch less": (said(val=lambda _: {"global": ROW}), "an object as val personal"),
    "markup as unit": (said(before=lambda _: {**ROW, "unit": "<b>"}), "mm or px"),
    "negative bytes": (said(bytes_sent=lambda rng: -rng.randint(1, 99)), "bytes_sent"),
    "seconds without end": (said(seconds=lambda _: math.inf), "numbers and texts"),
    "a run that leads elsewhere": (said(private=lambda _: {"run": "../../x", "round": 1}), "as private"),
    "a run that is a number": (said(private=lambda _: {"run": 5.5, "round": 1}), "as private"),
    "a run that is true": (said(private=lambda _: {"run": True, "round": 1}), "as private"),
    "experts of other names": (said(experts=lambda _: {"weights": [0.5]}), "expected no 'weights'"),
    "experts beyond one": (said(experts=lambda rng: {"share": rng.uniform(1.01, 9)}), "experts' share"),
    "patients as distances": (
        said(before=lambda _: {**ROW, "by_unit": ["Doe^John 1970-01-01"]}),
        "an object as by_unit",
    ),
    "a patient as distances": (
        said(before=lambda _: {**ROW, "by_unit": {"mm": "Doe^John"}}),
        "an object as before in mm",
    ),
    "NaN as distances": (said(before=lambda _: {**ROW, "by_unit": [math.nan]}), "numbers and texts"),
    "brackets without end": (said(before=lambda _: {**ROW, "by_unit": _nested(300)}), "an object as by_unit"),
}
HEAD = "decoder.head.weight"


def _loop() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    return loop


def _nested(deep: int) -> list[Any]:
    return [_nested(deep - 1)] if deep else []


def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    assert len(FAMILIES) >= 60
    assert len(FAMILIES) * SEEDS >= 1000


@pytest.mark.parametrize("name", FAMILIES)
def test_every_message_of_a_hostile_family_is_refused_for_its_reason(name: str) -> None:
    change, reason = FAMILIES[name]
    for seed in range(SEEDS):
        rng = random.Random(f"{name}{seed}")
        verdict = judged(change(rng, honest(rng)))
        assert isinstance(verdict, Rejected), seed
        assert reason in verdict.reason, verdict.reason
        assert len(verdict.reason) < 400


def test_none_of_a_thousand_honest_updates_is_refused() -> None:
    for seed in range(1000):
        rng = random.Random(seed)
        number = NUMBERS[seed % 4]
        scale = 10.0 ** (-8 + 8 * (seed // 4) / 249)
        assert judged(honest(rng, number, scale)) == Accepted(), (number, scale)


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-39, 1e-30, 1e4, 1e30])
@pytest.mark.parametrize("number", NUMBERS)
def test_nor_is_one_of_an_extreme_scale(number: Number, scale: float) -> None:
    message = honest(random.Random(0), number, scale)
    small = {name: t for name, t in message.tensors.items() if name != "extra/control"}
    assert judged(replace(message, tensors={**small, "extra/control": torch.zeros(5)})) == Accepted()
    assert {name: (tuple(t.shape), t.dtype) for name, t in small.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in wire_schema(SCHEMA, number).items() if name in small
    }


def test_no_text_of_a_site_enters_the_record_as_the_name_of_a_run() -> None:
    """An honest site may begin with a run that the server has deleted. So its report is not refused."""
    report = {**REPORT, "private": {"run": "Doe_John-1970-01-01", "round": 2}}
    assert rules.report_fault(report, LOSSES) is None
    assert as_known(report, {"r-1"}) == {**REPORT, "private": {"run": UNKNOWN, "round": 2}}
    for honest_one in (REPORT, {**REPORT, "private": {}}):
        assert as_known(honest_one, {"r-1"}) == honest_one


def test_a_final_test_is_held_to_its_numbers_too() -> None:
    assert rules.tested_fault(TESTED) is None
    assert facts_fault(TESTED) is None
    for change, told in (
        ({"patient": "Doe"}, "expected no 'patient'"),
        ({"patients": 2.5}, "a whole number as patients"),
        ({"global": {**ROW, "dice": 2.0}}, "dice of global"),
        ({"val": {"global": ROW}}, "an object as val personal"),
    ):
        assert told in str(rules.tested_fault({**TESTED, **change}))


MANY = {"mm": {"hd95": 3.0, "assd": 1.0, "surface_dice": 0.5}, "px": {"hd95": 2.0}}
FULL_ROW = {**ROW, "hd95": None, "assd": None, "surface_dice": None, "unit": "mixed", "by_unit": MANY}
EXPERTS = {"share": 0.2, "entropy": 0.9, "varies": 0.1, "experts": [0.5, 0.5], "dice_without": 0.4}
FULL = {"before": FULL_ROW, "val": {"global": FULL_ROW, "personal": FULL_ROW}, "experts": EXPERTS}
OTHERS: list[Any] = [[], ["Doe^John 1970-01-01"], [0.5], [[]], "Doe^John 1970-01-01", True, {}, {"x": 0.5}]


def ways(value: Any, way: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The keys that lead to each value within nested objects."""
    deeper = value.items() if isinstance(value, dict) else ()
    return [*filter(None, [way]), *(found for key, one in deeper for found in ways(one, (*way, key)))]


def put(value: dict[str, Any], way: tuple[str, ...], other: Any) -> dict[str, Any]:
    key, *deeper = way
    return {**value, key: put(value[key], tuple(deeper), other) if deeper else other}


def fits(way: tuple[str, ...], other: Any) -> bool:
    """Whether an honest site could say it: an object whose keys may all lack, or the experts' list of shares."""
    if way == ("experts", "experts"):
        return other in ([], [0.5])
    return other == {} and way[-1] in ("by_unit", "mm", "px", "experts")


@pytest.mark.parametrize("way", ways(FULL), ids="/".join)
def test_no_value_of_another_kind_passes_anywhere_in_a_report(way: tuple[str, ...]) -> None:
    assert rules.tested_fault({**TESTED, **FULL}) is None
    assert rules.report_fault({**REPORT, **FULL}, LOSSES) is None
    for other in OTHERS:
        assert (rules.tested_fault(put({**TESTED, **FULL}, way, other)) is None) == fits(way, other), other
        assert (rules.report_fault(put({**REPORT, **FULL}, way, other), LOSSES) is None) == fits(way, other), other
