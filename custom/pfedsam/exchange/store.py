"""The site store: a site's private part on its own disk, by study, outside any job's run folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam import log
from pfedsam.config import one_name
from pfedsam.exchange.claim import Claim
from pfedsam.files import Tensors, facts_of, not_finite, pack, unpack, write_atomic, write_json

KEEP = 3  # of a run: one to redo the round in flight, one more should the server fall back a round, and the newest
LAST = 10**9  # a round after every other


@dataclass(frozen=True)
class Moment:
    """A point in training: a round of a run. A run is one training from its first round, however many jobs it takes."""

    run: str
    round: int


class SiteStore:
    """Private tensors of one site in one study: the last generations, each whole and finite or skipped when read.

    A generation is a file `private.NUMBER.safetensors`, the highest number the newest, labelled with
    run and round. A new run of the study begins with the newest there is. A run that does a round
    again (its server or this site died in it) goes on from what the site had before that round, so
    that the round comes out the same.

    Args:
        root: the store's folder on the site's disk.
        study: the study's name.
        site: the site's name.
    """

    def __init__(self, root: Path, study: str, site: str) -> None:
        self.folder = root / study / site
        self._claim = Claim(self.folder)

    def claim(self) -> None:
        """Make this process the only one that may save."""
        self._claim.take()

    def save(self, tensors: Tensors, facts: dict[str, str], at: Moment | None = None) -> None:
        """Write a new generation, then drop those it replaces.

        These are the same round done before, the oldest of this run, and what older runs have left
        but for the one before this.

        Raises:
            UserFault: the disk is full or forbids writing, or another process has claimed the store.
        """
        self._claim.check()
        when = {"run": at.run, "round": str(at.round)} if at else {}
        files = self._files()
        number = _number(files[0]) + 1 if files else 1
        again = [path for path in files if _is_of(path, at)]
        write_atomic(self.folder / f"private.{number:06d}.safetensors", pack(tensors, {**facts, **when}))
        for path in [*again, *_too_old([f for f in files if f not in again], when.get("run"))]:
            path.unlink(missing_ok=True)

    def load(self, before: Moment | None = None, *, alone: bool = False) -> tuple[Tensors, dict[str, str]] | None:
        """The newest whole generation with its facts; None if the site has none yet.

        Args:
            before: leave out what this run has trained in this round or later; what it trained
                before comes first, another run's only if there is none of it.
            alone: no other run's in any case.
        """
        files = [path for path in self._files() if not _is_of(path, before)]
        if before is not None:
            others = {path for path in files if facts_of(path).get("run") != before.run}
            files = [path for path in files if not alone or path not in others]
            files.sort(key=lambda path: path in others)  # stable: newest first in each
        for path in files:
            try:
                tensors, facts = _sound(path)
            except ValueError as fault:
                log.warning("site store: %s is damaged (%s); trying the generation before", path.name, fault)
                continue
            if before is not None and before.round > 0 and facts.get("run") != before.run:
                log.warning("site store: nothing of run %s; going on from %s", before.run, path.name)
            return tensors, facts
        return None

    def remember(self, name: str, run: str, value: Any) -> None:
        """Keep a small fact of a run beside the tensors."""
        write_json(self._note(name, run), value)

    def remembered(self, name: str, run: str) -> Any:
        """What was kept of this run under `name`; None if nothing whole was."""
        path = self._note(name, run)
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            return None

    def _note(self, name: str, run: str) -> Path:
        """Where a fact of a run lies; the run's name comes in a message."""
        return self.folder / f"{name}.{one_name(run, 'run')}.json"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("private.*.safetensors"), key=_number, reverse=True)


def _sound(path: Path) -> tuple[Tensors, dict[str, str]]:
    """A generation's tensors and facts; ValueError if it is torn or holds NaN, which no later round would lose."""
    tensors, facts = unpack(path.read_bytes())
    if name := not_finite(tensors):
        raise ValueError(f"NaN or infinite values at {name}")
    return tensors, facts


def _too_old(files: list[Path], run: str | None) -> list[Path]:
    """Of files, newest first, those beyond what is kept: of this run, and of the run before it."""
    runs = [facts_of(path).get("run") for path in files]
    before = next((r for r in runs if r != run), None)
    kept: dict[str | None, int] = {run: KEEP - 1, before: KEEP if before != run else KEEP - 1}
    drop = []
    for path, of in zip(files, runs, strict=True):
        kept[of] = kept.get(of, 0) - 1
        if kept[of] < 0:
            drop.append(path)
    return drop


def _number(path: Path) -> int:
    number = path.name.split(".")[1]
    return int(number) if number.isdigit() else 0


def _is_of(path: Path, at: Moment | None) -> bool:
    """Whether the file holds what this run trained in this round or later."""
    facts = facts_of(path) if at else {}
    return at is not None and facts.get("run") == at.run and int(facts.get("round", -1)) >= at.round
