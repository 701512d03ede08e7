"""The site store: a site's private part on its own disk, by study, outside any job's run folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam import log
from pfedsam.exchange.claim import Claim
from pfedsam.files import Tensors, facts_of, not_finite, pack, unpack, write_atomic, write_json
from pfedsam.names import one_name

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
    run and round. A run sees its own generations alone, unless it is told to begin with another's. A
    run that does a round again (its server or this site died in it) goes on from what the site had
    before that round, so that the round comes out the same.

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

        These are the same round done before, the oldest of this run, and all but the newest of older
        runs; of the run before this one, as many stay as of this.

        Raises:
            UserFault: the disk is full or forbids writing, or another process has claimed the store.
        """
        self._claim.demand_mine()
        when = {"run": at.run, "round": str(at.round)} if at else {}
        files = self._files()
        number = _number(files[0]) + 1 if files else 1
        again = [path for path in files if _is_of(path, at)]
        write_atomic(self.folder / f"private.{number:06d}.safetensors", pack(tensors, {**facts, **when}))
        for path in [*again, *_too_old([f for f in files if f not in again], when.get("run"))]:
            path.unlink(missing_ok=True)

    def load(self, before: Moment | None = None, *, begin: str = "") -> tuple[Tensors, dict[str, str]] | None:
        """The newest whole generation with its facts; None if there is none.

        Args:
            before: what this run has trained before this round, and nothing of another run; None: of any run.
            begin: the run to take where this one has trained nothing yet; "latest": the one that trained last.
        """
        for path in self._files() if before is None else self._candidates(before, begin):
            try:
                return _sound(path)
            except ValueError as fault:
                log.warning("site store: %s is damaged (%s); trying the generation before", path.name, fault)
        return None

    def _candidates(self, before: Moment, begin: str) -> list[Path]:
        """This run's files from before the round, the newest first, then those of the run to begin with."""
        runs = {path: facts_of(path).get("run") for path in self._files()}
        own = [path for path, run in runs.items() if run == before.run and not _is_of(path, before)]
        others = [path for path, run in runs.items() if run != before.run and begin in (run, "latest")]
        return [*own, *others]

    def forget(self, run: str) -> None:
        """Delete what an earlier run of this name has left: another one begins under it."""
        for path in self._files():
            if facts_of(path).get("run") == run:
                path.unlink(missing_ok=True)

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
    """Of files, newest first, those beyond what is kept: of this run, of the run before it, one of each other."""
    runs = [facts_of(path).get("run") for path in files]
    before = next((r for r in runs if r != run), None)
    left = dict.fromkeys(runs, 1) | {before: KEEP} | {run: KEEP - 1}
    drop = []
    for path, of in zip(files, runs, strict=True):
        left[of] -= 1
        if left[of] < 0:
            drop.append(path)
    return drop


def _number(path: Path) -> int:
    number = path.name.split(".")[1]
    return int(number) if number.isdigit() else 0


def _is_of(path: Path, at: Moment | None) -> bool:
    """Whether the file holds what this run trained in this round or later."""
    facts = facts_of(path) if at else {}
    return at is not None and facts.get("run") == at.run and int(facts.get("round", -1)) >= at.round
