"""Masks: an update as integers modulo 2^32, and the random words that hide it and vanish in the sum of all sites.

A site multiplies its update by its share of the round's samples, rounds it to a common step, and adds masks (Bonawitz
et al. 2017). The shares of all sites add up to 1, and no update is longer than `norm`. So the sum of all sites is at
most `norm` in each value, and cannot overflow. The sum is exact: only each site's rounding is lost.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from pfedsam.exchange.change import norm as norm_of
from pfedsam.exchange.schema import Schema, Spec
from pfedsam.tensors import Tensors

Words = NDArray[np.uint32]
ROOM = 2**30  # the largest sum, in steps; the rest up to 2^31 is room for the sites' rounding
SIGMAS = 6.0  # how far from a half the share of a random message's words may be


def steps_of(norm: float) -> float:
    """The number of steps in 1: the largest power of two with which a sum of `norm` is at most `ROOM`."""
    return 2.0 ** math.floor(math.log2(ROOM / norm))


def masked_schema(schema: Schema) -> Schema:
    """The schema of a masked update: the same names and shapes, in words of 32 bits."""
    return {name: Spec(spec.shape, torch.int32) for name, spec in schema.items()}


def bounded(update: Tensors, norm: float) -> tuple[Tensors, float]:
    """The update, no longer than `norm`, and the length that it had. A longer one is shortened as a whole."""
    length = norm_of(tensor.double() for tensor in update.values())
    if length <= norm:
        return update, length
    return {name: tensor * (norm / length) for name, tensor in update.items()}, length


def fixed(update: Tensors, share: float, *, norm: float) -> Words:
    """A site's part of the sum in steps, all tensors in one row by the order of their names.

    Args:
        update: no longer than `norm`.
        share: of the round's samples, at most 1.
    """
    each = share * steps_of(norm)
    rows = [(update[name].double().flatten() * each).round().to(torch.int32).numpy() for name in sorted(update)]
    return np.concatenate([np.empty(0, np.int32), *rows]).view(np.uint32)


def mean_of(total: Words, share: float, *, norm: float, schema: Schema) -> Tensors:
    """The mean update of the sites in a sum.

    Args:
        total: the sum of what `fixed` returned, without masks.
        share: the sum of the sites' shares.
        schema: of an update.
    """
    values = torch.from_numpy(total.view(np.int32).astype(np.float64)) / (share * steps_of(norm))
    return _cut(values, schema)


def pack_words(words: Words, schema: Schema) -> Tensors:
    """A row of words as tensors that fulfil `masked_schema(schema)`."""
    return _cut(torch.from_numpy(words.view(np.int32)), masked_schema(schema))


def words_of(tensors: Tensors) -> Words:
    """The row of words that `pack_words` got."""
    rows = [tensors[name].flatten().numpy() for name in sorted(tensors)]
    return np.concatenate([np.empty(0, np.int32), *rows]).view(np.uint32)


def stream(seed: bytes, count: int) -> Words:
    """`count` random words, the same ones for the same seed of 32 bytes: ChaCha20's key stream."""
    cipher = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(4 * count)), np.dtype("<u4"))


def mix(words: Words, *, add: Iterable[bytes] = (), take: Iterable[bytes] = ()) -> Words:
    """The words with the streams of some seeds added and those of others taken away, modulo 2^32."""
    found = words.copy()
    for seed in add:
        found += stream(seed, len(words))
    for seed in take:
        found -= stream(seed, len(words))
    return found


def total_of(rows: Iterable[Words]) -> Words:
    """The sum of rows of words, modulo 2^32. There must be one row at least."""
    first, *rest = rows
    found = first.copy()
    for row in rest:
        found += row
    return found


def unmasked_fault(tensors: Tensors) -> str | None:
    """Why a message is not hidden, or None if its words look random.

    An update is small beside the modulus. So without a mask the two highest bits of a word are alike, as its sign. In
    random words they are alike in half of them.
    """
    words = words_of(tensors)
    alike = float(((words >> 31) == (words >> 30 & 1)).mean()) if len(words) else 0.5
    bound = SIGMAS / 2 / math.sqrt(max(len(words), 1))
    return None if abs(alike - 0.5) <= bound else f"expected words that look random, came {alike:.0%} small ones"


def _cut(row: torch.Tensor, schema: Schema) -> Tensors:
    """A row as tensors of a schema, in the order of their names."""
    sizes = {name: math.prod(schema[name].shape) for name in sorted(schema)}
    parts = torch.split(row, list(sizes.values()))
    return {
        name: part.reshape(schema[name].shape).to(schema[name].dtype).contiguous()
        for name, part in zip(sizes, parts, strict=True)
    }
