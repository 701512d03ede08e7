"""Files that a crash cannot tear: written beside, synced, renamed, with the last generation kept."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from pfedsam.exchange.schema import Tensors


def write_atomic(path: Path, data: bytes) -> None:
    """`path` holds `data` or what it held before, never a part; survives a power cut once this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def pack(tensors: Tensors, facts: dict[str, str]) -> bytes:
    """safetensors bytes with `facts` and the payload's checksum in the header."""
    body = {k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())}
    return save(body, metadata={**facts, "payload_sha256": digest(body)})


def unpack(data: bytes) -> tuple[Tensors, dict[str, str]]:
    """Tensors and facts out of `pack`'s bytes.

    Raises:
        ValueError: the bytes are torn or altered.
    """
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"not a whole safetensors file: {error}") from None
    facts: dict[str, str] = header.get("__metadata__", {})
    if facts.pop("payload_sha256", None) != digest(tensors):
        raise ValueError("the checksum does not fit the content")
    return tensors, facts


def digest(tensors: Tensors) -> str:
    """sha256 over names, shapes, dtypes and values, in order of name."""
    return hashlib.sha256(save(dict(sorted(tensors.items())))).hexdigest()
