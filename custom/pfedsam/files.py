"""Files that a crash cannot damage: written beside the target, synced, then renamed."""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pfedsam.errors import UserFault, unread
from pfedsam.names import beside
from pfedsam.umask import file_mode

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


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, which holds the new or the old content, never a part. Then it survives a power cut.

    Raises:
        UserFault: the disk is full or forbids writing. The old content of `path` is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path) as new:
            _write_synced(new, data)
            os.replace(new, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritten(path, data, error) from None


def append_line(path: Path, line: str) -> None:
    """Append `line` to a text file, on the disk once this returns. A line that a crash cut short stays separate.

    Raises:
        UserFault: the disk is full or forbids writing.
    """
    data = line.encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_synced(path, data if _ends_whole(path) else b"\n" + data, "ab")
    except OSError as error:
        raise _unwritten(path, data, error) from None


def _unwritten(path: Path, data: bytes, error: OSError) -> UserFault:
    return UserFault(
        expected=f"to write {len(data)} bytes to {path}",
        came=f"{error.strerror or error}",
        do="free space or correct the folder's rights, then run again. What was there before is untouched",
    )


def _ends_whole(path: Path) -> bool:
    """Whether a text file is absent, is empty or ends with a newline."""
    if not path.exists() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _write_synced(path: Path, data: bytes, mode: str = "wb") -> None:
    with open(path, mode, opener=_opened) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _opened(path: str, flags: int) -> int:
    """An opener whose new files have the mode that PFEDSAM_UMASK allows: a caller's own process may have any umask."""
    return os.open(path, flags, file_mode())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. `parsed` can read it again.

    Raises:
        UserFault: as for `write_atomic`, or `value` holds what cannot be read again. The old content is untouched.
    """
    try:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
        parsed(text)
    except (TypeError, ValueError, RecursionError) as fault:
        do = "report it as a fault of pfedsam. What was there before is untouched"
        raise UserFault(expected=f"values for {path} that JSON can hold", came=str(fault), do=do) from None
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        UserFault: it cannot be read, or it holds something else.
    """
    try:
        found = parsed(path.read_bytes())
    except (OSError, ValueError) as fault:
        raise UserFault(expected=f"a JSON file at {path}", came=str(fault), do="name another file") from None
    if not isinstance(found, dict):
        raise UserFault(expected=f"a JSON object in {path}", came=type(found).__name__, do="name another file")
    return found


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or one so deep that Python cannot read it, or it holds what no file can hold, or an
            object has a key twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
        whole = encodable(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        raise ValueError("JSON with too many brackets inside each other") from None
    if not whole:
        raise ValueError("half of a character (a lone surrogate)")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Python would take the last one of two equal keys."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} twice in one object")
    return found


def encodable(text: str) -> bool:
    """Whether a text can be written to a file: it has no half of a character, as JSON's escapes can make."""
    return text == text.encode(errors="replace").decode()


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


def bytes_now(path: Path) -> bytes:
    """A file's bytes; none if it is missing.

    Raises:
        UserFault: the disk does not give it now. To take it for missing would lose what it holds.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as fault:
        raise unread(path, fault) from None


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


def seed_of(text: str) -> int:
    """A seed of 32 bits, spread evenly over texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
