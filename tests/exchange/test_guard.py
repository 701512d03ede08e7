"""Forty kinds of bad message, each refused for its own reason; honest ones pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pfedsam.exchange.guard import Accepted, Rejected, judge_message, judge_samples
from pfedsam.exchange.schema import Stamp, schema_of

HONEST = {"a.weight": torch.randn(4, 3), "b.bias": torch.randn(5), "scale": torch.randn(())}
STAMP = Stamp(3, "c" * 64, "b" * 64)


def verdict(change: Callable[[dict[str, Any]], object] = lambda _: None, stamp: Stamp = STAMP) -> Accepted | Rejected:
    tensors = dict(HONEST)
    change(tensors)
    return judge_message(tensors, stamp, schema=schema_of(HONEST), expected=STAMP)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors.__setitem__(name, value)


def test_an_honest_message_passes() -> None:
    assert verdict() == Accepted()


BAD = {
    "missing": (lambda t: t.pop("b.bias"), "missing"),
    "all missing": (lambda t: t.clear(), "missing"),
    "extra": (put("moe.gate", torch.ones(2)), "not declared"),
    "renamed": (lambda t: t.__setitem__("b.Bias", t.pop("b.bias")), "missing"),
    "path name": (put("../../etc", torch.ones(1)), "not declared"),
    "number name": (put(7, torch.ones(1)), "not declared"),
    "broadcastable scalar": (put("b.bias", torch.tensor(1000.0)), "shape"),
    "one element": (put("b.bias", torch.ones(1)), "shape"),
    "extra axis": (put("b.bias", torch.ones(1, 5)), "shape"),
    "transposed": (put("a.weight", torch.ones(3, 4)), "shape"),
    "longer": (put("b.bias", torch.ones(6)), "shape"),
    "empty": (put("b.bias", torch.ones(0)), "shape"),
    "fp16": (put("b.bias", torch.ones(5).half()), "float16"),
    "bf16": (put("b.bias", torch.ones(5).bfloat16()), "bfloat16"),
    "fp64": (put("b.bias", torch.ones(5).double()), "float64"),
    "int": (put("b.bias", torch.ones(5).long()), "int64"),
    "bool": (put("b.bias", torch.ones(5).bool()), "bool"),
    "complex": (put("b.bias", torch.ones(5).to(torch.complex64)), "complex"),
    "NaN": (put("b.bias", torch.full((5,), float("nan"))), "NaN or infinite"),
    "one NaN": (put("a.weight", torch.zeros(4, 3).index_put_((torch.tensor(2),), torch.tensor(float("nan")))), "NaN"),
    "infinite": (put("b.bias", torch.full((5,), float("inf"))), "NaN or infinite"),
    "minus infinite": (put("scale", torch.tensor(float("-inf"))), "NaN or infinite"),
    "a list": (put("b.bias", [1.0] * 5), "came list"),
    "an array": (put("b.bias", torch.ones(5).numpy()), "came ndarray"),
    "text": (put("b.bias", "weights"), "came str"),
    "nothing": (put("b.bias", None), "came NoneType"),
    "bytes": (put("b.bias", b"\x80\x04"), "came bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_tensor_is_refused_with_its_reason(name: str) -> None:
    change, told = BAD[name]
    got = verdict(change)
    assert isinstance(got, Rejected)
    assert told in got.reason


@pytest.mark.parametrize(
    ("stamp", "told"),
    [
        (Stamp(2, STAMP.config, STAMP.base), "expected round 3, came 2"),
        (Stamp(4, STAMP.config, STAMP.base), "expected round 3, came 4"),
        (Stamp(3, "d" * 64, STAMP.base), "expected config"),
        (Stamp(3, STAMP.config, "d" * 64), "expected base"),
        (Stamp(3, "", ""), "expected config"),
    ],
)
def test_a_message_of_another_round_or_model_is_refused(stamp: Stamp, told: str) -> None:
    got = verdict(stamp=stamp)
    assert isinstance(got, Rejected)
    assert told in got.reason


@pytest.mark.parametrize("samples", [0, -1, 10**9, 2.5, float("nan"), True, None, "12", [3]])
def test_a_weight_that_is_no_count_is_refused(samples: object) -> None:
    assert isinstance(judge_samples(samples), Rejected)
    assert judge_samples(12) == Accepted()
