"""The server's checkpoints of a run: a safetensors file and a JSON file after each round. Old ones are thinned."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfedsam import log
from pfedsam.errors import UserFault, unread
from pfedsam.exchange.claim import Claim, claimed
from pfedsam.exchange.server import ServerState, unflat
from pfedsam.files import bytes_now, parsed, write_atomic, write_json
from pfedsam.names import one_name
from pfedsam.tensors import PAYLOAD, Tensors, digest, facts_of, pack, unpack

KEEP, LEAST = 8, 3  # checkpoints of a run, if the server says nothing else, and at least
BEST = "best.safetensors"
LATEST = 10**9  # after every round
KINDS = {"run": str, "done": int, "config": str, "base": str, "results": dict}  # of the facts in the JSON file


@dataclass(frozen=True)
class Checkpoint:
    """A run after `done` finished rounds.

    Attributes:
        run: the run's name. A run is one training from its first round, over one or more jobs.
        done: the number of finished rounds, which is also the number of the next round.
        config, base: digests of the settings and of the frozen base.
        results: results.json so far.
        state: the shared part and the memory of the server's rule.
    """

    run: str
    done: int
    config: str
    base: str
    results: dict[str, Any]
    state: ServerState


class Checkpoints:
    """A study's checkpoints on the server's disk, one folder for each run, outside any job's run folder.

    The JSON is written last and names the tensors' checksum. A pair is valid if both files are whole and match.

    Args:
        root: the folder of all studies' checkpoints.
        study: the study's name.
        keep: the number of a run's checkpoints that are kept.
    """

    def __init__(self, root: Path, study: str, keep: int = KEEP) -> None:
        self.folder, self.keep = root / study / "server", keep
        self._claims: dict[str, Claim] = {}

    def save(self, point: Checkpoint) -> None:
        """Write the pair of a finished round, then delete those that `thinned` drops.

        Raises:
            UserFault: the disk is full or forbids writing, or a later job continues the run.
        """
        self._demand_mine(point.run)
        path = self._path(point.run, point.done)
        facts = {"run": point.run, "done": str(point.done), "config": point.config, "base": point.base}
        tensors = point.state.flat()
        write_atomic(path.with_suffix(".safetensors"), pack(tensors, facts))
        bounds = {"sites": point.state.sites, "usual": dict(point.state.usual)}
        known = {**facts, "done": point.done, "sha256": digest(tensors), "bounds": bounds, "results": point.results}
        write_json(path, known | {"saved": time.time()})
        rounds = self.rounds(point.run)
        for old in set(rounds) - set(thinned(rounds, self.keep)):
            for ending in (".safetensors", ".json"):  # a kill between the two leaves what the next round deletes
                self._path(point.run, old).with_suffix(ending).unlink(missing_ok=True)

    def load(self, run: str) -> Checkpoint | None:
        """The newest valid pair of a run, or None if there is none."""
        return self.newest(run, LATEST)

    def newest(self, run: str, most: int) -> Checkpoint | None:
        """The newest valid pair of a run after at most so many rounds, or None if there is none.

        Raises:
            UserFault: the disk does not give one now. An earlier one would be continued over it.
        """
        for done in reversed([done for done in self.rounds(run) if done <= most]):
            path = self._path(run, done)
            try:
                return _read(path)
            except (FileNotFoundError, ValueError, KeyError, TypeError) as fault:
                log.warning("checkpoint %s is damaged (%s). The one before it is tried", path.name, fault)
            except OSError as fault:
                raise unread(path, fault) from None
        return None

    def rounds(self, run: str) -> list[int]:
        """After how many rounds a run has checkpoints, ascending. All but the last are good.

        A checkpoint is good once the next round has been trained from it. Then there is a later one.
        """
        names = [path.stem.removeprefix("round.") for path in self._of(run).glob("round.*.json")]
        return sorted(int(name) for name in names if name.isdecimal())

    def runs(self) -> frozenset[str]:
        """The names of the study's runs."""
        return frozenset(path.name for path in self.folder.glob("*") if path.is_dir())

    def find(self, run: str, *, trained: bool = False) -> str:
        """The name of a run that has begun. "latest" is the run that was claimed or saved last.

        Args:
            trained: "latest" counts only runs that have finished a round.

        Raises:
            UserFault: the study has no such run.
        """
        name = self._latest(trained) if run == "latest" else run
        if name is None or not self._of(name).is_dir():
            anew = "render without --continue to begin a new run"
            first = "let it finish a round first. The simulator empties its workspace: set PFEDSAM_STORE for both runs"
            raise UserFault(
                expected=f"a run to {'begin with' if trained else 'continue'} in {self.folder}",
                came=f"no folder of run {run}",
                do=f"name one of the runs there, or {first if trained else anew}",
            )
        return name

    def begin(self, run: str) -> None:
        """Make the run's folder and claim it. The run can then be continued, even before its first round is done."""
        self._claims[run] = Claim(self._of(run))
        self._claims[run].take()

    def save_best(self, run: str, tensors: Tensors, facts: dict[str, str]) -> None:
        """Keep the run's best shared part so far. `facts` hold its metric.

        Raises:
            UserFault: as for `save`.
        """
        self._demand_mine(run)
        write_atomic(self._of(run) / BEST, pack(tensors, facts))

    def load_best(self, run: str) -> tuple[Tensors, dict[str, str]] | None:
        """The run's best shared part so far and its facts, or None if there is none or a damaged one.

        Raises:
            UserFault: the disk does not give it now. A worse one would be kept over it.
        """
        held = bytes_now(self._of(run) / BEST)
        try:
            return unpack(held)
        except ValueError:
            return None

    def _demand_mine(self, run: str) -> None:
        if run in self._claims:
            self._claims[run].demand_mine()

    def _of(self, run: str) -> Path:
        """The run's folder. The name comes from a job, so it must not lead out of the study's folder."""
        return self.folder / one_name(run, "run")

    def _path(self, run: str, done: int) -> Path:
        return self._of(run) / f"round.{done:06d}.json"

    def _latest(self, trained: bool) -> str | None:
        """The run that was claimed or saved last. Both say when: a copy of the folder may have changed files' times."""
        when: dict[str, float] = {}
        for run in self.runs():
            done = self.rounds(run)
            if not trained or (done and done[-1]):
                when[run] = max([claimed(self._of(run)), *(_saved(self._path(run, last)) for last in done[-1:])])
        return max(when, key=lambda run: when[run], default=None)


def _saved(path: Path) -> float:
    """When a checkpoint was saved, in seconds since 1970: as it says itself, else by its file."""
    try:
        return float(parsed(path.read_bytes())["saved"])
    except (OSError, ValueError, KeyError, TypeError):  # damaged, or of an older version
        return path.stat().st_mtime


def thinned(rounds: list[int], keep: int) -> list[int]:
    """Of `rounds`, ascending, those to keep: the first, the last two, and others that are rarer the older they are.

    The last two are the newest checkpoint and the last good one. Of the others the one goes whose absence leaves the
    smallest gap, measured by its age.

    Args:
        keep: how many, at least `LEAST`.
    """
    kept = list(rounds)
    while len(kept) > max(keep, LEAST):
        newest = kept[-1]
        gaps = {n: (kept[n + 1] - kept[n - 1]) / (newest - kept[n - 1]) for n in range(1, len(kept) - 2)}
        del kept[min(gaps, key=lambda n: gaps[n])]
    return kept


def _read(path: Path) -> Checkpoint:
    known, beside = parsed(path.read_bytes()), path.with_suffix(".safetensors")
    tensors, _ = unpack(beside.read_bytes())
    if facts_of(beside).get(PAYLOAD) != known["sha256"]:
        raise ValueError("tensors and facts are not from the same round")
    fields = {key: known[key] for key in KINDS}
    if wrong := next((key for key, kind in KINDS.items() if type(known[key]) is not kind), None):
        raise ValueError(f"its {wrong} is of another kind")
    bounds: dict[str, Any] = {"sites": 0, "usual": {}} | dict(known.get("bounds", {}))  # an older version wrote none
    return Checkpoint(**fields, state=replace(unflat(tensors), **bounds))
