"""The server's memory of a run: after each round one safetensors and one JSON, two generations."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam import log, methods
from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.exchange.claim import Claim
from pfedsam.exchange.schema import schema_of
from pfedsam.files import PAYLOAD, Tensors, digest, facts_of, pack, unpack, write_atomic, write_json
from pfedsam.names import one_name
from pfedsam.settings import from_record

KEEP = 2
BEST = "best.safetensors"
ROUTING = ("experts", "experts_in", "top_k", "gate_multiplied", "gate_noise", "route", "interpolation")
UNREAD = {f"model.{name}" for name in ROUTING}  # by the shared part of a model that was trained


@dataclass(frozen=True)
class Checkpoint:
    """A run after `done` finished rounds.

    Attributes:
        run: the run's name: one training from its first round, however many jobs it takes.
        done: finished rounds; the next one has this number.
        config, base: digests of the settings and of the frozen base.
        results: results.json so far.
        tensors: the shared part.
    """

    run: str
    done: int
    config: str
    base: str
    results: dict[str, Any]
    tensors: Tensors


class Checkpoints:
    """A study's checkpoints on the server's disk, a folder a run, outside any job's run folder.

    The JSON is written last and names the tensors' checksum: a pair counts if both are whole and fit.
    """

    def __init__(self, root: Path, study: str) -> None:
        self.folder = root / study / "server"
        self._claims: dict[str, Claim] = {}

    def save(self, point: Checkpoint) -> None:
        """Write the pair of a finished round, then drop all but the newest two.

        Raises:
            UserFault: the disk is full or forbids writing, or a later job goes on with the run.
        """
        if point.run in self._claims:
            self._claims[point.run].check()
        path = self._of(point.run) / f"round.{point.done:06d}.json"
        facts = {"run": point.run, "done": str(point.done), "config": point.config, "base": point.base}
        write_atomic(path.with_suffix(".safetensors"), pack(point.tensors, facts))
        known = {**facts, "done": point.done, "sha256": digest(point.tensors), "results": point.results}
        write_json(path, known)
        for old in self._newest_first(point.run)[KEEP:]:
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def load(self, run: str) -> Checkpoint | None:
        """The newest whole pair of a run; None if there is none."""
        for path in self._newest_first(run):
            try:
                return _read(path)
            except (OSError, ValueError, KeyError, TypeError) as fault:
                log.warning("checkpoint %s is damaged (%s); trying the one before", path.name, fault)
        return None

    def find(self, run: str, *, trained: bool = False) -> str:
        """The name of a run that has begun; "latest" is the one that wrote last.

        Args:
            trained: "latest" is the last of those that have finished a round.

        Raises:
            UserFault: the study has no such run.
        """
        name = self._latest(trained) if run == "latest" else run
        if name is None or not self._of(name).is_dir():
            anew = "render without --continue to begin anew"
            first = "let it finish a round first; the simulator empties its workspace: set PFEDSAM_STORE for both runs"
            raise UserFault(
                expected=f"a run to {'begin from' if trained else 'continue'} in {self.folder}",
                came=f"no folder of run {run}",
                do=f"name one of the runs there, or {first if trained else anew}",
            )
        return name

    def begin(self, run: str) -> None:
        """Make the run's folder and claim it; it can then be continued before its first round is done."""
        self._claims[run] = Claim(self._of(run))
        self._claims[run].take()

    def save_best(self, run: str, tensors: Tensors, facts: dict[str, str]) -> None:
        """Keep the run's best shared part so far; its metric stands in `facts`."""
        write_atomic(self._of(run) / BEST, pack(tensors, facts))

    def load_best(self, run: str) -> tuple[Tensors, dict[str, str]] | None:
        """The run's best shared part so far."""
        path = self._of(run) / BEST
        try:
            return unpack(path.read_bytes())
        except (OSError, ValueError):
            return None

    def _of(self, run: str) -> Path:
        """The run's folder; its name comes from a job, so it may not lead elsewhere."""
        return self.folder / one_name(run, "run")

    def _newest_first(self, run: str) -> list[Path]:
        return sorted(self._of(run).glob("round.*.json"), reverse=True)

    def _latest(self, trained: bool) -> str | None:
        runs = {path.parent for path in self.folder.glob("*/round.*.json" if trained else "*/*")}
        return max(runs, key=lambda path: path.stat().st_mtime_ns).name if runs else None


def first_tensors(root: Path, begin: str, fresh: Tensors, base: str, config: Config) -> tuple[Tensors, dict[str, Any]]:
    """What a new run begins with: its own first tensors, or the last shared tensors of another run.

    Args:
        root: the folder of all studies' checkpoints.
        begin: "STUDY/RUN" or "STUDY/latest"; empty: no other run.
        fresh, base, config: the new run's own first tensors, its base and its settings.

    Returns:
        The tensors, and what they are for results.json: `run`, its finished `rounds`, `sha256`; empty if fresh.

    Raises:
        UserFault: there is no such run, it trained another model, or the method needs one and none is named.
    """
    if not begin:
        if methods.get(config.method).joins:
            do = "render with --begin STUDY/RUN, the run of the federation that it joins"
            raise UserFault(expected=f"a trained model that {config.method} begins with", came="none", do=do)
        return fresh, {}
    study, _, name = begin.partition("/")
    point = _trained(Checkpoints(root, one_name(study, "study")), name)
    run, do = f"{study}/{point.run}", "take the settings of that run's job for the model, and its data.scale"
    same_settings(config, point.results["config"], f"run {run}, whose model this begins with", do, _tells)
    if point.base != base or schema_of(point.tensors) != schema_of(fresh):
        came = "another base" if point.base != base else "other shared tensors"
        raise UserFault(expected=f"the model of run {run} to be this job's", came=came, do=do)
    return point.tensors, {"run": run, "rounds": point.done, "sha256": digest(point.tensors)}


def _trained(checkpoints: Checkpoints, name: str) -> Checkpoint:
    point = checkpoints.load(checkpoints.find(name, trained=True))
    if point is None:
        raise UserFault(expected=f"a finished round of run {name}", came="none", do="name a run that has trained")
    return point


def same_settings(
    config: Config, began: dict[str, Any], run: str, do: str, held: Callable[[str], bool] = lambda _: True
) -> None:
    """Hold a job's settings against those that a run began with; what an older version did not know has its default.

    Args:
        run: what began, and `do`: what a user can do about it; for the message.
        held: whether a setting, by its dotted name, has to be the same.

    Raises:
        UserFault: they differ.
    """
    others = {name: value for name, value in config.unlike(from_record(began)).items() if held(name)}
    if others:
        came = "others (there: " + ", ".join(f"{name} {value}" for name, value in others.items()) + ")"
        raise UserFault(expected=f"the settings of {run}", came=came, do=do)


def _tells(name: str) -> bool:
    """Whether a setting says what a trained shared part means: with another one the same tensors are another model."""
    return name in ("data.scale", "data.plane", "data.classes") or (name.startswith("model.") and name not in UNREAD)


def _read(path: Path) -> Checkpoint:
    known, beside = json.loads(path.read_text()), path.with_suffix(".safetensors")
    tensors, _ = unpack(beside.read_bytes())
    if facts_of(beside).get(PAYLOAD) != known["sha256"]:
        raise ValueError("tensors and facts are not of one round")
    fields = {key: known[key] for key in ("run", "done", "config", "base", "results")}
    return Checkpoint(**fields, tensors=tensors)
