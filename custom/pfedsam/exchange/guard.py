"""The guard: accepts or rejects a message, with a reason. It is pure. Site and server call the same function."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfedsam.config import Number
from pfedsam.errors import one_line
from pfedsam.exchange.codec import decode, scales_fault, wire_schema
from pfedsam.exchange.schema import Schema, Spec, Stamp
from pfedsam.files import encodable
from pfedsam.tensors import not_finite


@dataclass(frozen=True)
class Accepted:
    """The message matches the schema."""


@dataclass(frozen=True)
class Rejected:
    """The message is refused. `reason` says what was expected and what came, on one line, whatever came."""

    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", one_line(self.reason))


Verdict = Accepted | Rejected

FACTS = 32_768  # most characters of all that a message says beside its tensors; ours have under 1 000
TEXT = 200  # most characters of one text in it; ours are digests and names


def judge_message(
    tensors: dict[str, Any], stamp: Stamp, *, schema: Schema, expected: Stamp, number: Number = "fp32"
) -> Verdict:
    """Whether names, shapes, dtypes and values match the schema, and the stamp the expected one.

    Args:
        tensors: as they came; a `Rejected` in a tensor's place, if it was refused before it was read.
        schema: of the shared tensors, and of what the method declares beside them.
        number: the number format of the shared tensors in the message.
    """
    if refused := next((one for one in tensors.values() if isinstance(one, Rejected)), None):
        return refused
    wire = wire_schema(schema, number)
    reason = stamp_fault(stamp, expected) or names_fault(tensors, wire)
    for name in sorted(wire) if reason is None else ():
        reason = reason or tensor_fault(name, tensors[name], wire[name])
    reason = reason or scales_fault(tensors, schema, number)
    if reason is None and number in ("int8", "int4"):
        opened = decode(tensors, schema, number)
        reason = next((fault for name in sorted(schema) if (fault := value_fault(name, opened[name]))), None)
    return Accepted() if reason is None else Rejected(reason)


def judge_samples(samples: Any, most: int = 10_000_000) -> Verdict:
    """Whether a claimed number of training slices can be a weight: an integer in 1..`most` (our choice)."""
    if isinstance(samples, int) and not isinstance(samples, bool) and 1 <= samples <= most:
        return Accepted()
    return Rejected(f"expected a number of samples in 1..{most}, came {samples!r}")


def facts_fault(facts: Any) -> str | None:
    """Why facts beside the tensors may not be sent. None if they are few, and only finite numbers and short texts."""
    try:
        texts, size = list(_texts(facts)), len(json.dumps(facts, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as fault:
        return f"expected numbers and texts beside the tensors, came others: {str(fault)[:TEXT]}"
    if size > FACTS:
        return f"expected at most {FACTS} characters beside the tensors, came {size}"
    longest = max((len(text) for text in texts), default=0)
    return f"expected texts of at most {TEXT} characters, came one of {longest}" if longest > TEXT else None


def _texts(facts: Any) -> Iterator[str]:
    """All texts in facts, the names of values too. ValueError if a name is no text, or a text cannot be in a file.

    JSON would write a name that is none as a text, so that two names could become one.
    """
    if isinstance(facts, str):
        if not encodable(facts):
            raise ValueError("half of a character (a lone surrogate)")
        yield facts
    elif isinstance(facts, dict):
        for key, value in facts.items():
            if not isinstance(key, str):
                raise ValueError(f"{type(key).__name__} as the name of a value")
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(facts, list | tuple):
        for value in facts:
            yield from _texts(value)


def stamp_fault(stamp: Stamp, expected: Stamp) -> str | None:
    """Why the stamp is not the expected one, or None if it is."""
    for field in ("round", "config", "base"):
        came, wanted = getattr(stamp, field), getattr(expected, field)
        if type(came) is not type(wanted) or came != wanted:  # True is 1, and a tensor is compared value by value
            return f"expected {field} {_short(wanted)}, came {_short(came)}"
    return None


def names_fault(tensors: dict[str, Any], schema: Schema) -> str | None:
    """Why the set of names is not the schema's, or None if it is."""
    missing, extra = sorted(schema.keys() - tensors.keys()), sorted(tensors.keys() - schema.keys(), key=str)
    if missing:
        return f"expected {len(schema)} tensors, {len(missing)} are missing, e.g. {missing[0]}"
    if extra:
        return f"expected {len(schema)} tensors, {len(extra)} are not declared, e.g. {str(extra[0])[:80]!r}"
    return None


def tensor_fault(name: str, tensor: Any, spec: Spec) -> str | None:
    """Why one tensor does not match its spec, or None if it does."""
    if not isinstance(tensor, Tensor):
        return f"expected a tensor at {name}, came {type(tensor).__name__}"
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        return f"expected a dense tensor at {name}, came {_short(tensor.layout)}"
    if tuple(tensor.shape) != spec.shape:
        return f"expected shape {spec.shape} at {name}, came {tuple(tensor.shape)}"
    if tensor.dtype != spec.dtype:
        return f"expected {spec.dtype} at {name}, came {tensor.dtype}"
    return value_fault(name, tensor, spec.most)


def value_fault(name: str, tensor: Tensor, most: float = math.inf) -> str | None:
    """Why a rule cannot use the values: not finite, or larger in size than `most`. None if it can."""
    if not_finite({name: tensor}):
        return f"expected finite values at {name}, came NaN or infinite"
    largest = max(-float(tensor.min()), float(tensor.max())) if most < math.inf and tensor.numel() else 0.0
    return f"expected values within {most:g} at {name}, came {largest:g}" if largest > most else None


def _short(value: Any) -> str:
    return str(value)[:12]
