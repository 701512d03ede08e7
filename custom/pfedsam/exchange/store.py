"""The site store: a site's private part on its own disk, by study, outside any job's run folder."""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam import log
from pfedsam.errors import UserFault
from pfedsam.exchange.files import facts_of, pack, unpack, write_atomic, write_json
from pfedsam.exchange.schema import Tensors

KEEP = 3  # one to redo the round in flight, one more should the server fall back a round, and the newest


@dataclass(frozen=True)
class Moment:
    """A point in training: a round of a run. A run is one training from its first round, however many jobs it takes."""

    run: str
    round: int


class SiteStore:
    """Private tensors of one site in one study: the last generations, each whole or skipped when read.

    A generation is a file `private.NUMBER.safetensors`, the highest number the newest. A new job of
    the study goes on from the newest. A run that does a round again (its server or this site died
    in it) goes on from what the site had before that round, so that the round comes out the same.

    Args:
        root: the store's folder on the site's disk.
        study: the study's name.
        site: the site's name.
    """

    def __init__(self, root: Path, study: str, site: str) -> None:
        self.folder = root / study / site
        self._owner = ""

    def claim(self) -> None:
        """Make this process the only one that may save: one that FLARE left behind must not overwrite later work."""
        self._owner = uuid.uuid4().hex
        write_atomic(self.folder / "owner", self._owner.encode())

    def save(self, tensors: Tensors, facts: dict[str, str], at: Moment | None = None) -> None:
        """Write a new generation, then drop those it replaces: the same round done before, and the oldest.

        Raises:
            UserFault: the disk is full or forbids writing, or another process has claimed the store.
        """
        self._check_owner()
        when = {"run": at.run, "round": str(at.round)} if at else {}
        files = self._files()
        number = _number(files[0]) + 1 if files else 1
        write_atomic(self.folder / f"private.{number:06d}.safetensors", pack(tensors, {**facts, **when}))
        again = [path for path in files if _is_of(path, at)]
        for path in [*again, *[f for f in files if f not in again][KEEP - 1 :]]:
            path.unlink(missing_ok=True)

    def load(self, before: Moment | None = None) -> tuple[Tensors, dict[str, str]] | None:
        """The newest whole generation with its facts; None if the site has none yet.

        Args:
            before: leave out what this run has trained in this round or later.
        """
        for path in self._files():
            if _is_of(path, before):
                continue
            try:
                return unpack(path.read_bytes())
            except ValueError as fault:
                log.warning("site store: %s is damaged (%s); trying the generation before", path.name, fault)
        return None

    def remember(self, name: str, run: str, value: Any) -> None:
        """Keep a small fact of a run beside the tensors."""
        write_json(self.folder / f"{name}.json", {"run": run, "value": value})

    def remembered(self, name: str, run: str) -> Any:
        """What was kept of this run under `name`; None if nothing whole was."""
        try:
            kept = json.loads((self.folder / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None
        return kept["value"] if kept.get("run") == run else None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("private.*.safetensors"), key=_number, reverse=True)

    def _check_owner(self) -> None:
        path = self.folder / "owner"
        if self._owner and path.exists() and path.read_text() != self._owner:
            raise UserFault(
                expected=f"one job at a time in {self.folder}",
                came="a later job that took the store over",
                do="nothing if this job was left behind by a crash; else run one job of a study after the other",
            )


def _number(path: Path) -> int:
    number = path.name.split(".")[1]
    return int(number) if number.isdigit() else 0


def _is_of(path: Path, at: Moment | None) -> bool:
    """Whether the file holds what this run trained in this round or later."""
    facts = facts_of(path) if at else {}
    return at is not None and facts.get("run") == at.run and int(facts.get("round", -1)) >= at.round
