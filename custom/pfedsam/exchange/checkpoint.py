"""The server's checkpoints of a run: a safetensors file and a JSON file after each round. Two rounds are kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam import log
from pfedsam.errors import UserFault
from pfedsam.exchange.claim import Claim
from pfedsam.exchange.server import ServerState, unflat
from pfedsam.files import PAYLOAD, Tensors, digest, facts_of, pack, parsed, unpack, write_atomic, write_json
from pfedsam.names import one_name

KEEP = 2
BEST = "best.safetensors"
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
    """

    def __init__(self, root: Path, study: str) -> None:
        self.folder = root / study / "server"
        self._claims: dict[str, Claim] = {}

    def save(self, point: Checkpoint) -> None:
        """Write the pair of a finished round, then delete all but the newest two.

        Raises:
            UserFault: the disk is full or forbids writing, or a later job continues the run.
        """
        if point.run in self._claims:
            self._claims[point.run].demand_mine()
        path = self._of(point.run) / f"round.{point.done:06d}.json"
        facts = {"run": point.run, "done": str(point.done), "config": point.config, "base": point.base}
        tensors = point.state.flat()
        write_atomic(path.with_suffix(".safetensors"), pack(tensors, facts))
        known = {**facts, "done": point.done, "sha256": digest(tensors), "results": point.results}
        write_json(path, known)
        for old in self._newest_first(point.run)[KEEP:]:
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def load(self, run: str) -> Checkpoint | None:
        """The newest valid pair of a run, or None if there is none."""
        for path in self._newest_first(run):
            try:
                return _read(path)
            except (OSError, ValueError, KeyError, TypeError) as fault:
                log.warning("checkpoint %s is damaged (%s). The one before it is tried", path.name, fault)
        return None

    def find(self, run: str, *, trained: bool = False) -> str:
        """The name of a run that has begun. "latest" is the run that wrote last.

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
        """Keep the run's best shared part so far. `facts` hold its metric."""
        write_atomic(self._of(run) / BEST, pack(tensors, facts))

    def load_best(self, run: str) -> tuple[Tensors, dict[str, str]] | None:
        """The run's best shared part so far and its facts, or None if there is none."""
        path = self._of(run) / BEST
        try:
            return unpack(path.read_bytes())
        except (OSError, ValueError):
            return None

    def _of(self, run: str) -> Path:
        """The run's folder. The name comes from a job, so it must not lead out of the study's folder."""
        return self.folder / one_name(run, "run")

    def _newest_first(self, run: str) -> list[Path]:
        return sorted(self._of(run).glob("round.*.json"), reverse=True)

    def _latest(self, trained: bool) -> str | None:
        runs = {path.parent for path in self.folder.glob("*/round.*.json" if trained else "*/*")}
        return max(runs, key=lambda path: path.stat().st_mtime_ns).name if runs else None


def _read(path: Path) -> Checkpoint:
    known, beside = parsed(path.read_bytes()), path.with_suffix(".safetensors")
    tensors, _ = unpack(beside.read_bytes())
    if facts_of(beside).get(PAYLOAD) != known["sha256"]:
        raise ValueError("tensors and facts are not from the same round")
    fields = {key: known[key] for key in KINDS}
    if wrong := next((key for key, kind in KINDS.items() if type(known[key]) is not kind), None):
        raise ValueError(f"its {wrong} is of another kind")
    return Checkpoint(**fields, state=unflat(tensors))
