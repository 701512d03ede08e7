"""The schema of a legal message. `study.shared_schema` derives it from the partition."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from pfedsam.tensors import Tensors, below

EXTRA = "extra/"  # before the name of what a method sends beside shared tensors; no parameter's name holds a slash
STAMP = "pfedsam_stamp"  # a message's key: its `Stamp`
REPORT = "pfedsam_report"  # a message's key: what a site says of its round


@dataclass(frozen=True)
class Spec:
    """Shape and number format of one tensor on the wire, and the largest size of its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    most: float = math.inf

    def zeros(self) -> Tensor:
        """A tensor of zeros that fulfils this spec."""
        return torch.zeros(self.shape, dtype=self.dtype)


Schema = dict[str, Spec]
T = TypeVar("T")


def extras_of(message: Mapping[str, T]) -> dict[str, T]:
    """The part of a message or its schema that the method declares beside the shared tensors, by declared name."""
    return below(EXTRA, message)


def shared_of(message: Mapping[str, T]) -> dict[str, T]:
    """The shared tensors of a message or of its schema."""
    return {name: one for name, one in message.items() if not name.startswith(EXTRA)}


@dataclass(frozen=True)
class Stamp:
    """What site and server must agree on besides the tensors.

    Attributes:
        round: counted from 0.
        config: digest of the job's settings.
        base: digest of the frozen base model.
    """

    round: int
    config: str
    base: str


def schema_of(tensors: Tensors) -> Schema:
    """The schema that exactly these tensors fulfil."""
    return {name: Spec(tuple(t.shape), t.dtype) for name, t in sorted(tensors.items())}


def size_of(schema: Schema) -> int:
    """The bytes of the values of tensors that fulfil a schema."""
    return sum(torch.Size(spec.shape).numel() * spec.dtype.itemsize for spec in schema.values())


def misfits(tensors: Tensors, schema: Schema) -> list[str]:
    """The sorted names of tensors that are missing, not declared, or of another shape or number format."""
    came = schema_of(tensors)
    wanted = {name: replace(spec, most=math.inf) for name, spec in schema.items()}
    return sorted(name for name in came.keys() | wanted.keys() if came.get(name) != wanted.get(name))
