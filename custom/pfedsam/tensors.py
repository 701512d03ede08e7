"""Tensors by name: the files that hold them with facts, their checksums, and what prefixes of names mean."""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pfedsam.errors import UserFault, unread
from pfedsam.files import parsed

Tensors = dict[str, Tensor]
T = TypeVar("T")
PAYLOAD = "payload_sha256"  # the fact that holds the tensors' checksum
SETTINGS = "settings"  # a fact that holds the job's whole configuration, as `Config.text` writes it


def below(prefix: str, named: Mapping[str, T]) -> dict[str, T]:
    """The entries whose names begin with `prefix`, by their names without it."""
    return {name.removeprefix(prefix): one for name, one in named.items() if name.startswith(prefix)}


def under(prefix: str, named: Mapping[str, T]) -> dict[str, T]:
    """All entries, with `prefix` before their names. `below` is the inverse."""
    return {prefix + name: one for name, one in named.items()}


def unprefixed(named: Mapping[str, T]) -> dict[str, T]:
    """The entries without a prefix. A parameter's name has no slash, and every prefix ends with one."""
    return {name: one for name, one in named.items() if "/" not in name}


def not_finite(tensors: Tensors) -> str | None:
    """The first name whose values are not all finite, or None if all are. Of some number formats torch cannot tell,
    such as float8. They count as not finite."""
    return next((name for name in sorted(tensors) if not _finite(tensors[name])), None)


def _finite(tensor: Tensor) -> bool:
    try:
        return bool(torch.isfinite(tensor).all())
    except (NotImplementedError, RuntimeError):  # none of our messages and files has such a format
        return False


def pack(tensors: Tensors, facts: dict[str, str]) -> bytes:
    """The tensors as safetensors bytes, with `facts` and the payload's checksum in the header."""
    body = {k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())}
    return save(body, metadata={**facts, PAYLOAD: digest(body)})


def unpack(data: bytes) -> tuple[Tensors, dict[str, str]]:
    """The tensors and facts in bytes that `pack` made.

    Raises:
        ValueError: the bytes are incomplete or changed.
    """
    try:
        tensors = load(data)
        facts = _facts(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:  # KeyError: a number format torch lacks
        raise ValueError(f"not a complete safetensors file: {error}") from None
    if not intact(facts.pop(PAYLOAD, ""), tensors, io.BytesIO(data)):
        raise ValueError("the checksum does not match the content")
    return tensors, facts


def intact(said: str, tensors: Tensors, file: BinaryIO) -> bool:
    """Whether tensors have the checksum that their file states, in today's form or the older one.

    Args:
        said: the stated checksum.
        file: the file that they were read from, as bytes.
    """
    return said == digest(tensors) or said == _older_digest(file)


def facts_of(path: Path) -> dict[str, str]:
    """The facts in a file's header. The rest is not read. Empty if the file is damaged, missing or unreadable."""
    try:
        return facts_now(path)
    except UserFault:
        return {}


def facts_now(path: Path) -> dict[str, str]:
    """The facts in a file's header. The rest is not read. Empty if the file is damaged or missing.

    Raises:
        UserFault: the disk does not give it now.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(min(size, 10_000_000))
        return _facts(size.to_bytes(8, "little") + header)
    except (FileNotFoundError, ValueError, OverflowError):
        return {}
    except OSError as fault:
        raise unread(path, fault) from None


def _facts(data: bytes) -> dict[str, str]:
    """The facts in the header at the beginning of `data`. ValueError if there is none, or its facts are no texts."""
    header = parsed(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(facts, dict) or not all(isinstance(value, str) for value in facts.values()):
        raise ValueError("a header without facts")
    return facts


def digest(tensors: Tensors) -> str:
    """sha256 over names, dtypes, shapes and values, in order of name. It does not depend on a file layout."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(raw(tensor))
    return found.hexdigest()


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values."""
    values: memoryview = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return values


def _older_digest(file: BinaryIO) -> str:
    """The checksum in the form of older files: sha256 of the file without the facts in its header."""
    file.seek(0)
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    plain = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    plain += b" " * (-len(plain) % 8)
    found = hashlib.sha256(len(plain).to_bytes(8, "little") + plain)
    while piece := file.read(1 << 20):
        found.update(piece)
    return found.hexdigest()


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """sha256 of the tensors' values in their order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(raw(tensor))
    return digest.hexdigest()


def at_rest(tensors: Tensors) -> Tensors:
    """The tensors in a form that can be stored and sent: detached, contiguous, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
