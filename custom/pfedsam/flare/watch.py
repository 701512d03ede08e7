"""The watcher: brings a run to its last round without a person, whatever dies meanwhile.

FLARE 2.9 ends a job when one of its processes dies, leaves it "RUNNING" for ever when the server
itself dies, and lets nobody join a running job. Nothing is lost then: the server has the run's
checkpoint, each site its private part. The watcher sees the end, waits for the sites, and submits
the job that goes on with the run.
"""

import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam import log
from pfedsam.errors import UserFault
from pfedsam.flare.admin import GONE, Admin
from pfedsam.flare.presence import Patience, Run, Since, inside_job, present_sites, someone_outside, wait_for_sites
from pfedsam.jobs import SETTINGS, loop_of, name_run, named_sites

FINISHED, COMPLETED, ABORTED = "FINISHED", "FINISHED:COMPLETED", "FINISHED:ABORTED"
UNSCHEDULED = "FINISHED:CAN_NOT_SCHEDULE"
STARTED = ("DISPATCHED", "RUNNING", "GONE")  # states of a job that a running server should know
LOST, REJOIN = "LOST", "REJOIN"
ERROR = " - pfedsam - ERROR - "  # how a line of such begins, after its time


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


def watch(
    job: Path,
    admin: Admin,
    *,
    out: Path,
    patience: Patience = Patience(),  # noqa: B008 - frozen
    continues: str = "",
) -> Outcome:
    """Submit `job` and go on with its run until its last round is tested.

    Args:
        job: a rendered job folder.
        admin: the way to the server of the person who submits.
        out: where results are downloaded to.
        continues: go on with this run, and with its job if that still runs, instead of beginning one.

    Raises:
        UserFault: the job was refused, aborted by a person, or makes no more progress.
    """
    if not (job / SETTINGS).is_file():
        raise UserFault(expected=f"a job folder with {SETTINGS}", came=str(job), do="render one: pfedsam render")
    loop, named = loop_of(job), frozenset(named_sites(job))
    name, quorum, total = continues or f"{job.name}-{uuid.uuid4().hex[:8]}", loop["min_clients"], loop["num_rounds"]
    run = Run(name, quorum=int(quorum), total=int(total), named=named, sites=set(named))
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / job.name
        shutil.copytree(job, copy)
        name_run(copy, run.name, must_exist=bool(continues))
        return _bring_to_its_end(run, copy, admin, out=out, patience=patience)


def _bring_to_its_end(run: Run, job: Path, admin: Admin, *, out: Path, patience: Patience) -> Outcome:
    ends: list[str] = []
    while True:
        _begin(admin, run, job, patience)
        ended = _Job(admin, run, patience).follow()
        ends.append(ended)
        folder = None if ended == LOST else admin.fetch(run.job, out)
        results = _results(folder)
        done = len(results.get("rounds", []))
        log.info("job %s of run %s ended: %s, %d of %d rounds", run.job, run.name, ended, done, run.total)
        if ended not in (REJOIN, COMPLETED) and (reason := last_error(folder)):
            log.warning("its log ends with: %s", reason)
        if folder is not None and done >= run.total and _tested(run, results, patience):
            return Outcome(run.name, folder, tuple(ends))
        if ended == ABORTED:
            raise UserFault(
                expected=f"run {run.name} to end by itself",
                came=f"job {run.job} aborted, by a person or for a class that a party does not allow",
                do=f"see the job's log; go on when you like: watch it again with --continue {run.name}",
            )
        _count(run, done, ended, patience)


def _tested(run: Run, results: dict[str, Any], patience: Patience) -> bool:
    """Whether every site of the last round has tested the final model, or has had its chances."""
    tested, trained = set(results["final"]["sites"]), set(results["rounds"][-1]["sites"])
    run.retests += 1
    return bool(tested) and (trained <= tested or run.retests > patience.retests)


def _begin(admin: Admin, run: Run, job: Path, patience: Patience) -> None:
    """Submit the run's next job once enough sites are there; or follow the one that still runs."""
    wait_for_sites(admin, run, patience)
    system = admin.ask("get_system_info")
    run.server = system.server_info.start_time if system else None
    running = {entry.job_id for entry in system.job_info} if system else set()
    left = [number for number in admin.unfinished(run.name) if number in running]
    if left:
        run.job = left[-1]
        log.info("job %s of run %s still runs; following it", run.job, run.name)
        return
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
            log.warning("the server does not answer (%s); trying again", fault or type(fault).__name__)
            time.sleep(patience.poll)


class _Job:
    """One job of a run, followed to its end, look after look."""

    def __init__(self, admin: Admin, run: Run, patience: Patience) -> None:
        self._admin, self._run, self._patience = admin, run, patience
        self._missing = Since()
        self._outside: dict[str, Since] = {}
        self._round: int | None = None
        self._round_began = time.monotonic()
        self._longest: float | None = None
        self._abort_at: float | None = None  # when the job is to be aborted, so that a site can join
        self._abort_after: int | None = None  # or as soon as this round is over

    def follow(self) -> str:
        """Wait for the job's end; returns FLARE's status, or LOST or REJOIN."""
        while True:
            time.sleep(self._patience.poll)
            meta = self._admin.meta(self._run.job)
            status = str(meta.get("status", "")) if meta else ""
            if status.startswith(FINISHED):
                return REJOIN if self._abort_at is not None and status == ABORTED else status
            system = self._admin.ask("get_system_info")
            if not status or system is None:
                continue
            known = any(entry.job_id == self._run.job for entry in system.job_info)
            restarted = status == GONE["status"] or system.server_info.start_time != self._run.server
            if self._missing.seconds(status in STARTED and not known and restarted) > self._patience.lost:
                log.warning("the server has come back without job %s", self._run.job)
                return LOST
            if status == "RUNNING" and known:
                self._look(time.monotonic())

    def _look(self, now: float) -> None:
        """See which round it is and who takes part; abort where a site waits outside and the round is over."""
        self._note_round(_round(self._admin, self._run.job), now)
        present = present_sites(self._admin, self._run)
        inside = inside_job(present, self._run)
        self._run.sites |= inside
        lacking, left = len(inside) < self._run.quorum, (self._round or 0) + 1 < self._run.total
        joinable = self._abort_at is None and (lacking or left)  # in the last round there is nothing to join for
        if joinable and someone_outside(present, self._run, self._outside, self._patience):
            limit = self._patience.boundary if self._longest is None else 2 * self._longest
            self._abort_at, self._abort_after = now if lacking else now + limit, self._round
        if self._abort_at is not None and (now >= self._abort_at or self._round != self._abort_after):
            self._admin.ask("abort_job", self._run.job)

    def _note_round(self, round_: int | None, now: float) -> None:
        if round_ is None or round_ == self._round:
            return
        if self._round is not None:
            self._longest = max(self._longest or 0.0, now - self._round_began)
        self._round, self._round_began = round_, now


def _round(admin: Admin, job: str) -> int | None:
    stats = admin.ask("show_stats", job, "server") or {}
    found = [group["current_round"] for group in _groups(stats) if group.get("current_round") is not None]
    return found[0] if found else None


def _groups(stats: Any) -> Iterator[dict[str, Any]]:
    for value in stats.values() if isinstance(stats, dict) else ():
        if isinstance(value, dict):
            yield value
            yield from _groups(value)


def _count(run: Run, done: int, ended: str, patience: Patience) -> None:
    """Count the jobs that brought no new round; those that FLARE could not start, or that we ended, do not count."""
    run.idle = 0 if done > run.rounds else run.idle + (ended not in (REJOIN, UNSCHEDULED))
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


def last_error(folder: Path | None) -> str:
    """What pfedsam last told as an error in the logs of a job's results; empty if nothing."""
    logs = sorted(folder.rglob("log.txt")) if folder else []
    told = [line for path in logs for line in path.read_text(errors="replace").splitlines() if ERROR in line]
    return told[-1].partition(ERROR)[2] if told else ""
