"""The watcher: brings a run to its last round without a person, whatever dies meanwhile.

FLARE 2.9 ends a job when one of its processes dies, leaves it "RUNNING" for ever when the server
itself dies, and lets nobody join a running job. Nothing is lost then: the server has the run's
checkpoint, each site its private part. The watcher sees the end, waits for the sites, and submits
the job that goes on with the run.
"""

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfedsam import log
from pfedsam.errors import UserFault
from pfedsam.flare.admin import Admin
from pfedsam.jobs import SERVER, SETTINGS, render

FINISHED, ABORTED = "FINISHED", "FINISHED:ABORTED"
LOST, REJOIN = "LOST", "REJOIN"


@dataclass(frozen=True)
class Patience:
    """How long the watcher waits for what; seconds, all our choice.

    Attributes:
        poll: between two looks.
        sites: for the sites of the run to come back before the next job is submitted.
        outside: that a site may be connected and not in the job before it is taken in again.
        boundary: for the round in progress to end before that.
        lost: that the server may not know a job that should run before it counts as lost.
        attempts: jobs in a row without a new finished round before the watcher gives up.
        rejoins: times that a site is taken in again; one that cannot run the job must not stop it for ever.
        retests: times that the final test is done again for a site that was lost in it.
    """

    poll: float = 2.0
    sites: float = 90.0
    outside: float = 20.0
    boundary: float = 300.0
    lost: float = 15.0
    attempts: int = 5
    rejoins: int = 10
    retests: int = 2


@dataclass(frozen=True)
class Outcome:
    """A run that reached its end.

    Attributes:
        run: its name.
        folder: the downloaded results of its last job.
        ends: how each of its jobs ended, in order: FLARE's status, LOST or REJOIN.
    """

    run: str
    folder: Path
    ends: tuple[str, ...]


@dataclass
class _Run:
    """What the watcher knows of the run it brings to its end."""

    name: str
    job: str = ""
    rounds: int = 0
    quorum: int = 1
    retests: int = 0
    idle: int = 0
    sites: set[str] = field(default_factory=set)
    rejoined: dict[str, int] = field(default_factory=dict)


def watch(
    job: Path,
    admin: Admin,
    *,
    out: Path,
    patience: Patience = Patience(),
    continues: str = "",
) -> Outcome:
    """Submit `job` and go on with its run until its last round is tested.

    Args:
        job: a rendered job folder.
        admin: the way to the server of the person who submits.
        out: where results are downloaded to.
        continues: go on with this run instead of beginning one.

    Raises:
        UserFault: the job was refused, aborted by a person, or makes no more progress.
    """
    loop = _loop_of(job)
    run = _Run(continues or f"{job.name}-{uuid.uuid4().hex[:8]}", quorum=int(loop["min_clients"]))
    with tempfile.TemporaryDirectory() as place:
        named = Path(place) / job.name
        code = (job / "app/custom/pfedsam").is_dir()
        render(job, named, run=run.name, continues=bool(continues), code=code)
        return _bring_to_its_end(run, named, admin, out=out, patience=patience, total=int(loop["num_rounds"]))


def _bring_to_its_end(run: _Run, job: Path, admin: Admin, *, out: Path, patience: Patience, total: int) -> Outcome:
    ends: list[str] = []
    while True:
        _wait_for_sites(admin, run.sites, patience)
        _submit(admin, run, job, patience)
        ended = _follow(admin, run, patience)
        ends.append(ended)
        folder = None if ended == LOST else admin.fetch(run.job, out)
        results = _results(folder)
        done = len(results.get("rounds", []))
        log.info("job %s of run %s ended: %s, %d of %d rounds", run.job, run.name, ended, done, total)
        if folder is not None and done >= total and _tested(run, results, patience):
            return Outcome(run.name, folder, tuple(ends))
        if ended == ABORTED:
            raise UserFault(
                expected=f"run {run.name} to end by itself",
                came="an abort by a person",
                do=f"go on when you like: watch it again with --continue {run.name}",
            )
        _count(run, done, ended, patience)


def _tested(run: _Run, results: dict[str, Any], patience: Patience) -> bool:
    """Whether every site of the last round has tested the final model, or has had its chances."""
    tested, trained = set(results["final"]["sites"]), set(results["rounds"][-1]["sites"])
    run.retests += 1
    return bool(tested) and (trained <= tested or run.retests > patience.retests)


def _submit(admin: Admin, run: _Run, job: Path, patience: Patience) -> None:
    token = uuid.uuid4().hex
    run.job = _until_answered(lambda: admin.submit(job, token), patience)
    log.info("submitted job %s of run %s", run.job, run.name)


def _until_answered(ask: Callable[[], str], patience: Patience) -> str:
    """What `ask` returns once the server answers; a refusal goes through."""
    while True:
        try:
            return ask()
        except UserFault:
            raise
        except Exception as fault:
            log.warning("the server does not answer (%s); trying again", type(fault).__name__)
            time.sleep(patience.poll)


def _follow(admin: Admin, run: _Run, patience: Patience) -> str:
    """Wait for the job's end; returns FLARE's status, or LOST or REJOIN."""
    missing = _Since()
    outside: dict[str, _Since] = {}
    while True:
        time.sleep(patience.poll)
        meta = admin.ask("get_job_meta", run.job)
        status = str(meta.get("status", "")) if meta else ""
        if status.startswith(FINISHED):
            return status
        system = admin.ask("get_system_info")
        if system is None:
            continue
        known = any(entry.job_id == run.job for entry in system.job_info)
        if missing.seconds(status == "RUNNING" and not known) > patience.lost:
            log.warning("the server has come back without job %s", run.job)
            return LOST
        present = admin.present() if status == "RUNNING" and known else {}
        if _someone_outside(present, run, outside, patience):
            _abort(admin, run, present, patience)
            return REJOIN


def _someone_outside(present: dict[str, set[str]], run: _Run, outside: dict[str, "_Since"], patience: Patience) -> bool:
    """Whether a connected site has been out of the job for long: it came late, or came back."""
    inside = {site for site, jobs in present.items() if run.job in jobs}
    if not inside:
        return False
    run.sites |= inside
    late = []
    for site in present:
        waited = outside.setdefault(site, _Since()).seconds(site not in inside)
        if waited > patience.outside and run.rejoined.get(site, 0) < patience.rejoins:
            late.append(site)
    for site in late:
        run.rejoined[site] = run.rejoined.get(site, 0) + 1
        log.info("site %s is there and not in job %s; it is taken in after this round", site, run.job)
    return bool(late)


def _abort(admin: Admin, run: _Run, present: dict[str, set[str]], patience: Patience) -> None:
    """Abort as soon as the round has ended, so that little work is done twice; at once if it cannot end well.

    A round that waits for the very site that is outside does not end soon: hence the limit.
    """
    at = _round(admin, run.job) if _inside(present, run) >= run.quorum else None
    end = time.monotonic() + patience.boundary
    while at is not None and _round(admin, run.job) == at and time.monotonic() < end:
        time.sleep(min(patience.poll, 1.0))
    admin.ask("abort_job", run.job)
    while not str((admin.ask("get_job_meta", run.job) or {}).get("status", "")).startswith(FINISHED):
        time.sleep(patience.poll)


def _inside(present: dict[str, set[str]], run: _Run) -> int:
    return sum(run.job in jobs for jobs in present.values())


def _round(admin: Admin, job: str) -> int | None:
    stats = admin.ask("show_stats", job, "server") or {}
    found = [group["current_round"] for group in _groups(stats) if "current_round" in group]
    return found[0] if found else None


def _groups(stats: Any) -> Iterator[dict[str, Any]]:
    for value in stats.values() if isinstance(stats, dict) else ():
        if isinstance(value, dict):
            yield value
            yield from _groups(value)


def _wait_for_sites(admin: Admin, sites: set[str], patience: Patience) -> None:
    """Wait until the server answers and the run's sites are connected, or patience ends; at least one must be."""
    end = time.monotonic() + patience.sites
    while True:
        here = set(admin.present())
        if here and sites <= here:
            return
        if time.monotonic() > end:
            if here:
                log.warning("going on without %s", ", ".join(sorted(sites - here)))
                return
            log.warning("no site, or no server, for %.0f s; still waiting", patience.sites)
            end = time.monotonic() + patience.sites
        time.sleep(patience.poll)


def _count(run: _Run, done: int, ended: str, patience: Patience) -> None:
    run.idle = 0 if done > run.rounds or ended in (LOST, REJOIN) else run.idle + 1
    run.rounds = max(done, run.rounds)
    if run.idle >= patience.attempts:
        raise UserFault(
            expected=f"run {run.name} to make progress",
            came=f"{patience.attempts} jobs without a new round, the last {run.job} ended {ended}",
            do="read the server's and the sites' logs of that job; the run can be continued afterwards",
        )


def _results(folder: Path | None) -> dict[str, Any]:
    found = sorted(folder.rglob("results.json")) if folder else []
    results: dict[str, Any] = json.loads(found[0].read_text()) if found else {}
    return results


def _loop_of(job: Path) -> dict[str, Any]:
    if not (job / SETTINGS).is_file():
        raise UserFault(expected=f"a job folder with {SETTINGS}", came=str(job), do="render one: pfedsam render")
    server = json.loads((job / SERVER).read_text())
    loop: dict[str, Any] = next(w["args"] for w in server["workflows"] if w["id"] == "rounds")
    return loop


class _Since:
    """How long something has been so, look after look."""

    def __init__(self) -> None:
        self._start: float | None = None

    def seconds(self, so: bool) -> float:
        """Seconds since it became so; 0 if it is not."""
        if not so:
            self._start = None
            return 0.0
        self._start = time.monotonic() if self._start is None else self._start
        return time.monotonic() - self._start
