"""Files that a crash cannot damage: written beside the target, synced, then renamed."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pfedsam.errors import UserFault, unread
from pfedsam.names import beside
from pfedsam.umask import file_mode


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
        new = not path.exists()
        _write_synced(path, data if _ends_whole(path) else b"\n" + data, "ab")
        if new:  # else a power cut may leave no name to the file
            _sync_folder(path.parent)
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


def lines_of(path: Path) -> list[Any]:
    """The values of a file with one JSON text a line (`append_line`), without lines that a crash cut short.

    Raises:
        UserFault: as `bytes_now`. Where the file is missing there are no lines.
    """
    found = []
    for text in bytes_now(path).splitlines():
        with suppress(ValueError):
            found.append(parsed(text))
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


def seed_of(text: str) -> int:
    """A seed of 32 bits, spread evenly over texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def sha256(path: Path) -> str:
    """The sha256 of a file, which is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
