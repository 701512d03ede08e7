"""The watcher: brings a run to its last round without a person, whatever dies meanwhile.

FLARE 2.9 ends a job when one of its processes dies. It leaves the job "RUNNING" for ever when the
server itself dies, and lets nobody join a running job. Nothing is lost: the server has the run's
checkpoint, and each site has its private part. The watcher sees the end, waits for the sites, and
submits the job that continues the run.
"""

import math
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from pfedsam import log
from pfedsam.errors import Diverged, UserFault
from pfedsam.flare.admin import GONE, Unfetched, told
from pfedsam.flare.ends import (
    ABORTED,
    COMPLETED,
    DIVERGED,
    FINISHED,
    LOST,
    REJOIN,
    Cause,
    cause_of,
    refusals,
    sites_in,
    trace_of,
)
from pfedsam.flare.presence import (
    Lookout,
    Patience,
    Run,
    current_round,
    inside_job,
    note_end,
    present_sites,
    someone_outside,
    wait_for_sites,
)
from pfedsam.jobs import deploy_to, name_run, read_job
from pfedsam.layout import SETTINGS
from pfedsam.names import back_name, job_name

FETCHES = 3  # tries to fetch a job's results from a server that answers. Our choice
STARTED = ("DISPATCHED", "RUNNING", "GONE")  # states of a job that a running server should know


@dataclass(frozen=True)
class Outcome:
    """A run that reached its end.

    Attributes:
        run: the run's name.
        folder: the downloaded results of the job that tested at the most sites, of several the last one.
        ends: how each of its jobs ended, in order: FLARE's status, LOST or REJOIN.
    """

    run: str
    folder: Path
    ends: tuple[str, ...]


def watch(job: Path, look: Lookout, *, out: Path, continues: str = "") -> Outcome:
    """The outcome of `job`'s run, after submitting jobs until the last round is tested.

    Args:
        job: a rendered job folder.
        look: holds the submitting person's connection to the server.
        out: the folder for downloaded results.
        continues: continue this run, and follow its job if that still runs, instead of beginning a run.

    Raises:
        UserFault: the job was refused, a person aborted it, or it makes no more progress. It says why, and what to do.
    """
    if not (job / SETTINGS).is_file():
        raise UserFault(expected=f"a job folder with {SETTINGS}", came=str(job), do="render one: pfedsam render")
    facts, folder = read_job(job), job_name(job.resolve().name)
    name, named = continues or f"{folder}-{uuid.uuid4().hex[:8]}", frozenset(facts.sites)
    run = Run(name, quorum=facts.quorum, total=facts.rounds, named=named, sites=set(named), begun=bool(continues))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".watch.") as place:  # a system may clean /tmp before a run ends
        copy = Path(place) / folder
        shutil.copytree(job, copy)
        name_run(copy, run.name, must_exist=bool(continues))
        try:
            return _bring_to_its_end(run, copy, look, out=out)
        except Diverged:
            raise
        except UserFault as fault:
            raise _with_a_way_on(fault, run) from None


def _with_a_way_on(fault: UserFault, run: Run) -> UserFault:
    """The fault, which also names the run if a job was submitted: to watch the job alone would begin another run."""
    if not run.submitted:
        return fault
    unsure = "" if run.begun else ", or without it if the server does not have that run"
    do = f"{fault.do}; then watch it again with --continue {run.name}{unsure}"
    return UserFault(expected=fault.expected, came=tuple(fault.came.split("\n")), do=do)


def _bring_to_its_end(run: Run, job: Path, look: Lookout, *, out: Path) -> Outcome:
    ends, best = list[str](), (0, Path())
    while True:
        _begin(look, run, job)
        followed = _Job(look, run)
        ended = followed.follow()
        ends.append(ended)
        folder = None if ended == LOST else _fetch(look, run.job, ended, out)
        trained, tested = sites_in(folder) if folder else ([], set[str]())
        done = len(trained) if folder else followed.done
        log.info("job %s of run %s ended: %s, %d of %d rounds", run.job, run.name, ended, done, run.total)
        if folder and done >= run.total:
            best = max((len(tested), folder), best, key=lambda one: one[0])
            run.retests += 1
            if tested and (trained[-1] <= tested or run.retests > look.patience.retests):
                return Outcome(run.name, best[1], tuple(ends))
        cause = None  # where we ended it ourselves
        if ended != REJOIN:
            meta = look.admin.meta(run.job) or {}
            cause = cause_of(trace_of(ended, meta, folder, look.admin.heard(run.job)))
        note_end(look, run, cause.site if cause else "", progress=done > run.rounds)
        if cause is not None and cause.kind == DIVERGED:
            _go_back(run, job, done, cause)
        else:
            _count(run, done, cause, look.patience)


def _go_back(run: Run, job: Path, bad: int, cause: Cause) -> None:
    """Let the next job go on from the last good model, under a new name. Once for each bad model.

    Args:
        bad: after how many rounds the model was bad.

    Raises:
        Diverged: there is no model before it, or the run has gone back and has come no further.
    """
    if bad <= run.bad:
        went = "The run went back once, and it was the same" if bad else "There is no model before it"
        raise Diverged(
            expected=f"run {run.name} to train on from its model after {bad} rounds",
            came=f"{cause.what}. {went}",
            do="compare the sites in results.json, and lower train.lr if no site stands out. Then at the server:"
            f" pfedsam back {run.name} ROUND, or with --without SITE if a site is to blame",
        )
    new = back_name(run.name)
    log.warning("%s. Run %s goes back by one round, and goes on as run %s", cause.what, run.name, new)
    name_run(job, new, must_exist=True, back=f"{run.name}/{bad - 1}")
    run.name, run.rounds, run.bad, run.begun, run.fruitless = new, bad - 1, bad, True, []


def _fetch(look: Lookout, job: str, ended: str, out: Path) -> Path | None:
    """The folder of an ended job's results. None if they cannot be had, and the run can go on without them.

    Raises:
        Unfetched: the job completed. Another job would only repeat its last test.
    """
    tries = 0
    while True:
        try:
            return look.admin.fetch(job, out)
        except Unfetched as fault:
            tries += not fault.away
            if tries >= FETCHES and ended == COMPLETED:
                raise
            log.warning("the results of job %s did not come (%s)", job, fault.came)
            if tries >= FETCHES:
                return None
            look.wait(tries or FETCHES)


def _begin(look: Lookout, run: Run, job: Path) -> None:
    """Submit the run's next job once enough sites are connected, or follow the job that still runs."""
    wait_for_sites(look, run)
    system = look.admin.ask("get_system_info")
    run.server = system.server_info.start_time if system else None
    running = {entry.job_id for entry in system.job_info} if system else set()
    left = [number for number in look.admin.unfinished(run.name) if number in running]
    if left:
        run.job, run.submitted = left[-1], True
        log.info("job %s of run %s still runs. Following it", run.job, run.name)
        return
    if run.left_out:
        deploy_to(job, sorted(present_sites(look.admin, run) if run.out else run.named))
    token, run.job, failed = uuid.uuid4().hex, "", 0
    while not run.job:  # until the server answers; a refusal goes through
        try:
            run.job = look.admin.submit(job, token)
        except UserFault:
            raise
        except Exception as fault:
            log.warning("the job could not be submitted (%s). Trying again", told(fault))
            failed += 1
            look.wait(failed)
    run.submitted = True
    log.info("submitted job %s of run %s", run.job, run.name)


class _Job:
    """One job of a run, followed to its end."""

    def __init__(self, look: Lookout, run: Run) -> None:
        self._look, self._admin, self._run = look, look.admin, run
        self._missing = math.inf  # since when the server, restarted, has not known the job
        self._outside: dict[str, float] = {}
        self._round: int | None = None
        self._round_began = look.clock.now()
        self._longest: float | None = None
        self._abort_at: float | None = None  # when the job is to be aborted, so that a site can join
        self._abort_after: int | None = None  # or as soon as this round is over
        self._refused: dict[str, str] = {}  # the sites that did not take this job, and why

    @property
    def done(self) -> int:
        """The finished rounds of the run, as far as the server's statistics told of them."""
        return self._round or 0

    def follow(self) -> str:
        """The job's end, after waiting for it: FLARE's status, or LOST or REJOIN."""
        while True:
            self._look.wait()
            meta = self._admin.meta(self._run.job)
            status = str(meta.get("status", "")) if meta else ""
            if status.startswith(FINISHED):
                self._run.begun |= status == COMPLETED
                return REJOIN if self._abort_at is not None and status == ABORTED else status
            system = self._admin.ask("get_system_info")
            if not status or system is None:
                continue
            known = any(entry.job_id == self._run.job for entry in system.job_info)
            restarted = status == GONE["status"] or system.server_info.start_time != self._run.server
            now = self._look.clock.now()
            lost = status in STARTED and not known and restarted
            self._missing = min(self._missing, now) if lost else math.inf
            if now - self._missing > self._look.patience.lost:
                log.warning("the server has come back without job %s", self._run.job)
                return LOST
            if status == "RUNNING" and known:
                self._note_refusals(refusals(meta or {}))
                self._see(now)

    def _see(self, now: float) -> None:
        """Note the round and who takes part. Abort the job if a site waits outside and the round is over."""
        self._note_round(current_round(self._admin, self._run.job), now)
        present = {s: jobs for s, jobs in present_sites(self._admin, self._run).items() if s not in self._refused}
        inside = inside_job(present, self._run)
        self._run.sites |= inside
        lacking, left = len(inside) < self._run.quorum, (self._round or 0) + 1 < self._run.total
        joinable = self._abort_at is None and (lacking or left)  # in the last round there is nothing to join for
        if joinable and someone_outside(present, self._run, self._outside, self._look):
            limit = self._look.patience.boundary if self._longest is None else 2 * self._longest
            self._abort_at, self._abort_after = now if lacking else now + limit, self._round
        if self._abort_at is not None and self._abort_after is None:  # no round was known when it was planned
            self._abort_after = self._round
        if self._abort_at is not None and (now >= self._abort_at or self._round != self._abort_after):
            self._admin.ask("abort_job", self._run.job)

    def _note_refusals(self, refused: dict[str, str]) -> None:
        """Log once which sites refused the job. The watcher does not wait for them."""
        for site in sorted(set(refused) - set(self._refused)):
            log.warning("site %s did not take job %s: %s. It runs without it", site, self._run.job, refused[site])
        self._refused = refused

    def _note_round(self, round_: int | None, now: float) -> None:
        if round_ is None or round_ == self._round:
            return
        self._run.begun = True
        if self._round is not None:
            self._longest = max(self._longest or 0.0, now - self._round_began)
        self._round, self._round_began = round_, now


def _count(run: Run, done: int, cause: Cause | None, patience: Patience) -> None:
    """Log why a job ended, and count the jobs without a new round. Jobs that waited for sites, or that we ended, do not
    count.

    Raises:
        UserFault: there were too many, or the next would end the same way.
    """
    if done > run.rounds:
        run.rounds, run.fruitless, run.begun = done, [], True
    elif cause is not None and cause.counts:
        run.fruitless.append(cause)
    if cause is None:
        return
    alike = sum(one.kind == cause.kind for one in run.fruitless)
    lasting = cause.kind == "aborted" or (cause.tries is not None and alike >= cause.tries)
    if lasting or len(run.fruitless) >= patience.attempts:
        went = "" if lasting else f", the last of {patience.attempts} jobs without a new round"
        raise UserFault(
            expected=f"run {run.name} to make progress",
            came=f"the end of job {run.job}{went}: {cause.what}",
            do=cause.do,
        )
    log.warning("why it ended: %s. To mend it: %s", cause.what, cause.do)
