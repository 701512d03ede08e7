"""What a legal message looks like: one schema, derived from the partition."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from pfedsam import methods
from pfedsam.config import Config
from pfedsam.files import Tensors
from pfedsam.model import build
from pfedsam.model.partition import Part, tensors_of, wire_name


@dataclass(frozen=True)
class Spec:
    """Shape and number format of one tensor on the wire."""

    shape: tuple[int, ...]
    dtype: torch.dtype


Schema = dict[str, Spec]


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


def misfits(tensors: Tensors, schema: Schema) -> list[str]:
    """The names, sorted, at which tensors lack something, have too much, or are of another shape or number format."""
    came = schema_of(tensors)
    return sorted(name for name in came.keys() | schema.keys() if came.get(name) != schema.get(name))
