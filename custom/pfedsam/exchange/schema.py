"""What a legal message looks like; `study.shared_schema` derives it from the partition."""

from dataclasses import dataclass

import torch

from pfedsam.files import Tensors


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


def schema_of(tensors: Tensors) -> Schema:
    """The schema that exactly these tensors fulfil."""
    return {name: Spec(tuple(t.shape), t.dtype) for name, t in sorted(tensors.items())}
