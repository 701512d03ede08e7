"""What a legal message looks like: one schema, derived from the partition."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from pfedsam import methods
from pfedsam.config import Config
from pfedsam.files import Tensors
from pfedsam.model import build
from pfedsam.model.partition import Part, tensors_of, wire_name


EXTRA = "extra/"  # before the name of what a method sends beside shared tensors; no parameter's name holds a slash


@dataclass(frozen=True)
class Spec:
    """Shape and number format of one tensor on the wire, and what its values may be in size."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    most: float = math.inf

    def zeros(self) -> Tensor:
        """A tensor of this kind."""
        return torch.zeros(self.shape, dtype=self.dtype)


Schema = dict[str, Spec]
T = TypeVar("T")


def extras_of(message: Mapping[str, T]) -> dict[str, T]:
    """Of a message or its schema what the method declares beside the shared tensors, by the declared name."""
    return {name.removeprefix(EXTRA): one for name, one in message.items() if name.startswith(EXTRA)}


def shared_of(message: Mapping[str, T]) -> dict[str, T]:
    """Of a message or its schema the shared tensors."""
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


@lru_cache(maxsize=4)
def shared_schema(config: Config) -> Schema:
    """The schema of `config`: built on the meta device, without weights, alike on site and server."""
    return schema_of({wire_name(name): tensor for name, tensor in _tensors(config, Part.SHARED).items()})


@lru_cache(maxsize=4)
def up_schema(config: Config) -> Schema:
    """What a site sends after a round: its shared update, and what the method declares beside it."""
    return _with_extras(config, methods.get(config.method).up)


@lru_cache(maxsize=4)
def down_schema(config: Config) -> Schema:
    """What a site is sent: the shared tensors, and what the method declares beside them."""
    return _with_extras(config, methods.get(config.method).down)


def _with_extras(config: Config, declared: Callable[[Schema, Config], Schema]) -> Schema:
    shared = shared_schema(config)
    return shared | {EXTRA + name: spec for name, spec in sorted(declared(shared, config).items())}


@lru_cache(maxsize=4)
def private_schema(config: Config) -> Schema:
    """What a site keeps under `config`, by name in the model; it travels in no message."""
    return schema_of(_tensors(config, Part.PRIVATE))


def _tensors(config: Config, part: Part) -> Tensors:
    method = methods.get(config.method)
    with torch.device("meta"):
        parts = build.backbone(config.model, read=False)
        model = method.model(parts, config)
    return tensors_of(model, method.partition(model, config), part)


def schema_of(tensors: Tensors) -> Schema:
    """The schema that exactly these tensors fulfil."""
    return {name: Spec(tuple(t.shape), t.dtype) for name, t in sorted(tensors.items())}
