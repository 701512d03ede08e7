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
    """A point in training: a round of a run. A run is one training from its first round, over one or more jobs."""

    run: str
    round: int


class SiteStore:
    """Private tensors of one site in one study: the last generations. Damaged or non-finite ones are skipped.

    A generation is a file `private.NUMBER.safetensors`, labelled with run and round. The highest
    number is the newest. A run sees only its own generations, unless a job says to begin with
    another run's. If a round is repeated because its server or this site died in it, the site
    continues from what it had before that round. So the round gives the same result.

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
        """Write a new generation, then delete those it replaces.

        These are an earlier attempt at the same round, the oldest of this run, and all but the newest
        of older runs. The run before this one keeps as many as this one.

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
        """The newest whole generation with its facts, or None if there is none.

        Args:
            before: take only what this run trained before this round. None: any generation of any run.
            begin: the run to take if this one has trained nothing yet. "latest": the one that trained last.
        """
        for path in self._files() if before is None else self._candidates(before, begin):
            try:
                return _sound(path)
            except ValueError as fault:
                log.warning("site store: %s is damaged (%s). The generation before it is tried", path.name, fault)
        return None

    def _candidates(self, before: Moment, begin: str) -> list[Path]:
        """This run's files from before the round, newest first, then those of the run to begin with."""
        runs = {path: facts_of(path).get("run") for path in self._files()}
        own = [path for path, run in runs.items() if run == before.run and not _is_of(path, before)]
        others = [path for path, run in runs.items() if run != before.run and begin in (run, "latest")]
        return [*own, *others]

    def forget(self, run: str) -> None:
        """Delete what an earlier run of this name left, because a new run begins with the name."""
        for path in self._files():
            if facts_of(path).get("run") == run:
                path.unlink(missing_ok=True)

    def remember(self, name: str, run: str, value: Any) -> None:
        """Keep a small fact of a run beside the tensors."""
        write_json(self._note(name, run), value)

    def remembered(self, name: str, run: str) -> Any:
        """The fact of this run that was kept as `name`, or None if there is none or it is damaged."""
        path = self._note(name, run)
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            return None

    def _note(self, name: str, run: str) -> Path:
        """The file of a run's fact. The run's name comes in a message, so it is checked."""
        return self.folder / f"{name}.{one_name(run, 'run')}.json"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("private.*.safetensors"), key=_number, reverse=True)


def _sound(path: Path) -> tuple[Tensors, dict[str, str]]:
    """A generation's tensors and facts. ValueError if it is damaged or holds NaN, which later rounds would keep."""
    tensors, facts = unpack(path.read_bytes())
    if name := not_finite(tensors):
        raise ValueError(f"NaN or infinite values at {name}")
    return tensors, facts


def _too_old(files: list[Path], run: str | None) -> list[Path]:
    """The files, of `files` newest first, that are not kept. Kept are some of this run and of the run before it, and
    one of each other run."""
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
    """Whether the file holds what this run trained in this round or a later one."""
    facts = facts_of(path) if at else {}
    return at is not None and facts.get("run") == at.run and int(facts.get("round", -1)) >= at.round
