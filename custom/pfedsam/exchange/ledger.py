"""The ledger: one line for each message that left or reached a site."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pfedsam.files import append_line, lines_of
from pfedsam.tensors import Tensors, digest

LEDGER = "ledger.jsonl"  # a site's file in its folder of a study


class Ledger:
    """An append-only JSON-lines file at the site.

    A line holds time, direction, task, run, round, tensor names, facts, payload bytes (4 for each
    float32 value) and the payload's sha256. An auditor can compute the sha256 again from the tensors.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock

    def note(
        self,
        direction: Literal["out", "in"],
        tensors: Tensors,
        *,
        task: str,
        round_: int,
        facts: dict[str, Any],
        run: str = "",
    ) -> None:
        """Append the line of one message.

        Args:
            run: the server's name of the message's run. Empty if the server gives none.
            facts: what else the message says, e.g. sample count and metrics. Written unchanged.

        Raises:
            UserFault: the disk is full or forbids writing.
        """
        line = {
            "time": self._clock(),
            "direction": direction,
            "task": task,
            "run": run,
            "round": round_,
            "bytes": payload_bytes(tensors),
            "sha256": digest(tensors),
            "tensors": sorted(tensors),
            "facts": facts,
        }
        append_line(self.path, json.dumps(line))

    def lines(self) -> list[dict[str, Any]]:
        """The complete lines, oldest first. A line that a crash cut short is left out."""
        return lines_of(self.path)


def payload_bytes(tensors: Tensors) -> int:
    """The number of bytes of all values."""
    return sum(t.numel() * t.element_size() for t in tensors.values())
