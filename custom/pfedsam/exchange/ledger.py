"""The ledger: one line for every message that left or reached a site."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pfedsam.files import Tensors, digest


class Ledger:
    """An append-only JSON-lines file at the site.

    A line holds time, direction, task, round, tensor names, payload bytes (4 per float32 value)
    and the payload's sha256, which an auditor can compute again from the tensors.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock

    def note(
        self, direction: Literal["out", "in"], tensors: Tensors, *, task: str, round_: int, facts: dict[str, Any]
    ) -> int:
        """Append the line of one message; returns its payload bytes.

        Args:
            facts: what else the message says, e.g. sample count and metrics; written as it is.
        """
        size = payload_bytes(tensors)
        line = {
            "time": self._clock(),
            "direction": direction,
            "task": task,
            "round": round_,
            "bytes": size,
            "sha256": digest(tensors),
            "tensors": sorted(tensors),
            "facts": facts,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return size

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines, oldest first."""
        if self.path.exists():
            yield from map(json.loads, self.path.read_text().splitlines())


def payload_bytes(tensors: Tensors) -> int:
    """Bytes of the values themselves."""
    return sum(t.numel() * t.element_size() for t in tensors.values())
