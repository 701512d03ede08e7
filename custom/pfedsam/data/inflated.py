"""A gzip file that is read from anywhere without starting over each time."""

import io
import sys
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

STEP = 2 * 2**20  # inflated bytes between two states; each takes some 40 kB of memory
CHUNK = 2**16  # bytes of the file at a time


def _fresh() -> Any:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)  # with gzip's header and checksum


@dataclass
class _State:
    """How far the file is inflated: bytes that came out, bytes that went in, and zlib's own state."""

    out: int = 0
    taken: int = 0
    inflate: Any = field(default_factory=_fresh)

    def copy(self) -> "_State":
        return replace(self, inflate=self.inflate.copy())

    def feed(self, data: bytes) -> bytes:
        """What the next bytes of the file inflate to; they may end a gzip stream, pad with zeros, begin another."""
        self.taken += len(data)
        out = b""
        while data:
            if self.inflate.eof:
                data = data.lstrip(b"\0")
                self.inflate = _fresh() if data else self.inflate
            out += self.inflate.decompress(data)
            data = self.inflate.unused_data if self.inflate.eof and data else b""
        self.out += len(out)
        return out


class Inflated(io.RawIOBase):
    """The inflated bytes of `path`, for nibabel to seek and read in.

    The states of the decompression are kept, one every `STEP`, and a read goes on from the one before its place:
    a slice of a volume costs the inflating of some MiB, not of all that lies before it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._states = [_State()]
        self._place = 0

    def seek(self, place: int, whence: int = 0, /) -> int:
        """Go to `place` from the start, or by it (`whence` 1)."""
        self._place = place + (self._place if whence == 1 else 0)
        return self._place

    def tell(self) -> int:
        """The place of the next read."""
        return self._place

    def read(self, size: int = -1, /) -> bytes:
        """The next `size` bytes, fewer at the end of the file; below 0: all."""
        state = self._states[bisect_right(self._states, self._place, key=lambda one: one.out) - 1].copy()
        parts, end = [], self._place + size if size >= 0 else sys.maxsize
        with self._path.open("rb") as file:
            file.seek(state.taken)
            while state.out < end and (data := file.read(CHUNK)):
                start = state.out
                piece = state.feed(data)
                parts.append(piece[max(0, self._place - start) : max(0, end - start)])
                if state.out >= self._states[-1].out + STEP:
                    self._states.append(state.copy())
        found = b"".join(parts)
        self._place += len(found)
        return found
