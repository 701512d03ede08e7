"""The codec: the number format of shared tensors in a message, and the feedback of rounding errors.

What a method sends beside them is sent unchanged.

Integers are quantised symmetrically in blocks, x = scale * q. On the wire such a tensor is one row
of bytes: the blocks' scales (bfloat16), then the integers, two to a byte for int4. It is plain
PyTorch and runs on a CPU. FLARE's own 8- and 4-bit quantisers need a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedsam.config import Number
from pfedsam.exchange.schema import EXTRA, Schema, Spec, schema_of, shared_of
from pfedsam.tensors import Tensors

LEAST = float(torch.finfo(torch.bfloat16).tiny)  # the least scale but 0: below it, numbers lose their digits
BLOCK = 64  # values a scale, 3 % on top of int8; our choice, as in FLARE's 4-bit quantiser


@dataclass(frozen=True)
class _Codec:
    """How one tensor becomes a wire tensor and back, and the spec of the wire tensor."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor, Spec], Tensor]
    spec: Callable[[Spec], Spec]


def encode(tensors: Tensors, number: Number) -> Tensors:
    """The wire tensors, by the same names."""
    return {name: _codec(name, number).encode(tensor) for name, tensor in tensors.items()}


def decode(wire: Tensors, schema: Schema, number: Number) -> Tensors:
    """The tensors of `schema`, from what `encode` returned.

    Args:
        wire: fulfils `wire_schema(schema, number)`.
    """
    return {name: _codec(name, number).decode(tensor, schema[name]) for name, tensor in wire.items()}


def wire_schema(schema: Schema, number: Number) -> Schema:
    """The schema of what `encode` returns for tensors that fulfil `schema`."""
    return {name: _codec(name, number).spec(spec) for name, spec in schema.items()}


def scales_fault(wire: Tensors, schema: Schema, number: Number) -> str | None:
    """Why the scales in wire tensors are none that `encode` writes, or None if they are, or if there are none.

    Args:
        wire: fulfils `wire_schema(schema, number)`.
    """
    if number not in ("int8", "int4"):
        return None
    for name in sorted(shared_of(schema)):
        scale = _split(wire[name], schema[name])[0].float()
        if not bool(((scale == 0) | ((scale >= LEAST) & torch.isfinite(scale))).all()):
            return f"expected scales of 0 or from {LEAST:.3g} on at {name}, came others"
    return None


def _codec(name: str, number: Number) -> _Codec:
    return CODECS["fp32" if name.startswith(EXTRA) else number]


def with_feedback(update: Tensors, owed: Tensors, number: Number) -> tuple[Tensors, Tensors]:
    """The wire tensors of `update` plus `owed`, and this message's own rounding error.

    Error feedback (Seide et al. 2014, Karimireddy et al. 2019): the rounding error of one message
    is added to the next, so that no part of an update is lost for good.

    Args:
        owed: the rounding error that the last message returned. Empty for the first message.
    """
    if number == "fp32":
        return encode(update, number), {}
    due = {name: tensor + owed[name] if name in owed else tensor for name, tensor in update.items()}
    wire = encode(due, number)
    came = decode(wire, schema_of(due), number)
    return wire, {name: due[name] - came[name] for name in due}


def quantise(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Scales (blocks,) bfloat16 and integers (blocks, BLOCK) int8 within -most..most.

    Scales are bfloat16 because updates can be smaller than float16's least number. They are rounded
    up, so that no block's largest value is cut. A block of zeros has scale 0. These are our choices.
    """
    flat = x.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = _rounded_up(blocks.abs().amax(1) / most)
    scale = torch.where(scale.float() < LEAST, 0.0, scale)
    integers = torch.nan_to_num(blocks / scale.float()[:, None], 0.0, most, -most).round().clamp(-most, most)
    return scale, integers.to(torch.int8)


def _rounded_up(x: Tensor) -> Tensor:
    """The smallest bfloat16 numbers that are not below `x`. `x` must be 0 or more."""
    nearest = x.bfloat16()
    above: Tensor = (nearest.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where(nearest.float() < x, above, nearest)


def dequantise(scale: Tensor, integers: Tensor, spec: Spec) -> Tensor:
    """The tensor that `quantise` got, rounded, in the shape and type of `spec`."""
    values = integers.to(spec.dtype) * scale.to(spec.dtype)[:, None]
    return values.flatten()[: _numel(spec)].view(spec.shape)


def _encode_int8(x: Tensor) -> Tensor:
    scale, integers = quantise(x, 127)
    return torch.cat([scale.view(torch.uint8), integers.flatten()[: x.numel()].view(torch.uint8)])


def _decode_int8(wire: Tensor, spec: Spec) -> Tensor:
    scale, body = _split(wire, spec)
    return dequantise(scale, _blocks(body.view(torch.int8)), spec)


def _encode_int4(x: Tensor) -> Tensor:
    scale, integers = quantise(x, 7)
    nibbles = (integers.flatten()[: x.numel() + x.numel() % 2] + 8).view(torch.uint8)
    return torch.cat([scale.view(torch.uint8), nibbles[0::2] | nibbles[1::2] << 4])


def _decode_int4(wire: Tensor, spec: Spec) -> Tensor:
    scale, body = _split(wire, spec)
    nibbles = torch.stack([body & 15, body >> 4], dim=1).flatten().view(torch.int8) - 8
    return dequantise(scale, _blocks(nibbles), spec)


def _split(wire: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    size = 2 * _count(spec)
    return wire[:size].clone().view(torch.bfloat16), wire[size:]


def _blocks(integers: Tensor) -> Tensor:
    return torch.nn.functional.pad(integers, (0, -len(integers) % BLOCK)).view(-1, BLOCK)


def _numel(spec: Spec) -> int:
    return torch.Size(spec.shape).numel()


def _count(spec: Spec) -> int:
    return -(-_numel(spec) // BLOCK)


CODECS: dict[Number, _Codec] = {
    "fp32": _Codec(lambda x: x, lambda wire, _: wire, lambda spec: spec),
    "bf16": _Codec(
        lambda x: x.bfloat16(), lambda wire, spec: wire.to(spec.dtype), lambda spec: Spec(spec.shape, torch.bfloat16)
    ),
    "int8": _Codec(_encode_int8, _decode_int8, lambda spec: Spec((2 * _count(spec) + _numel(spec),), torch.uint8)),
    "int4": _Codec(
        _encode_int4, _decode_int4, lambda spec: Spec((2 * _count(spec) + -(-_numel(spec) // 2),), torch.uint8)
    ),
}
