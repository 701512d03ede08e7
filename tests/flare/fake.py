"""A server, its sites and their jobs, as the watcher sees them, in a time that costs none."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from pfedsam.errors import UserFault
from pfedsam.flare.admin import GONE, Unfetched
from pfedsam.flare.ends import ABORTED, COMPLETED
from pfedsam.flare.presence import Clock

FOR_EVER = 1e9


def unfetched(cause: Exception) -> Unfetched:
    """The fault of `Admin.fetch` for that cause."""
    fault = Unfetched(expected="the results", came=str(cause), do="free space")
    fault.__cause__ = cause
    return fault


class Time:
    """Seconds that pass while the watcher sleeps, and no others."""

    def __init__(self) -> None:
        self.now = 0.0
        self.clock = Clock(lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 10_000, "the watcher waits for ever"


@dataclass
class Plan:
    """How a job goes: from which round, how long, who is in it, how it ends by itself."""

    ends: str = COMPLETED
    lasts: float = 20.0
    done: int = 2  # finished rounds of the run when it ends by itself
    first: int = 0
    every: float = 10.0  # seconds a round
    inside: tuple[str, ...] = ("a", "b")
    leaves: dict[str, float] = field(default_factory=dict)  # after how many seconds a site is out of the job
    untested: tuple[str, ...] = ()
    log: str = ""
    heard: str = ""
    deploy: tuple[str, ...] = ()
    history: tuple[str, ...] = ()


@dataclass
class Job:
    """A job at the fake server."""

    plan: Plan
    run: str
    began: float
    aborted: float = FOR_EVER

    def over(self, now: float) -> bool:
        return now >= min(self.aborted, self.began + self.plan.lasts)

    def round(self, now: float) -> int:
        return self.plan.first + int((now - self.began) // self.plan.every)


class Server:
    """Plays `Admin`: one plan a submitted job, the last one for all that follow.

    Args:
        time: the time that it lives in.
        plans: how its jobs go, or the fault with which it refuses one.
        sites: when each site connects.
        restarts: when it is started anew; what ran then is unknown to it.
        away: from when until when it does not answer.
    """

    def __init__(
        self,
        time: Time,
        *plans: Plan | UserFault,
        sites: dict[str, float] | None = None,
        restarts: tuple[float, ...] = (),
        away: tuple[float, float] = (FOR_EVER, FOR_EVER),
    ) -> None:
        self.time, self.plans, self.away = time, list(plans), away
        self.sites = {"a": 0.0, "b": 0.0} if sites is None else sites
        self.restarts = (0.0, *restarts)
        self.jobs: dict[str, Job] = {}
        self.submitted: list[float] = []  # when
        self.aborts: list[tuple[float, int]] = []  # when, and in which round
        self.fetched: list[str] = []
        self.deployed: list[object] = []  # for whom each job is

    @property
    def silent(self) -> str:
        return "cannot connect to server" if self.away[0] <= self.time.now < self.away[1] else ""

    @property
    def started(self) -> float:
        return max(at for at in self.restarts if at <= self.time.now)

    def knows(self, job: Job) -> bool:
        return job.began >= self.started and not job.over(self.time.now)

    def present(self) -> dict[str, set[str]]:
        here = [] if self.silent else [site for site, at in self.sites.items() if at <= self.time.now]
        return {site: {name for name, job in self.jobs.items() if self.inside(site, job)} or {""} for site in here}

    def inside(self, site: str, job: Job) -> bool:
        left = job.plan.leaves.get(site, FOR_EVER)
        return site in job.plan.inside and self.knows(job) and self.time.now < job.began + left

    def submit(self, folder: Path, token: str) -> str:
        if self.silent:
            raise ConnectionError(self.silent)
        plan = self.plans.pop(0) if len(self.plans) > 1 else self.plans[0]
        if isinstance(plan, UserFault):
            raise plan
        name = f"job-{len(self.jobs) + 1}"
        meta = json.loads((folder / "meta.json").read_text())
        self.deployed.append(meta["deploy_map"])
        self.jobs[name] = Job(plan, meta["name"], self.time.now)
        self.submitted.append(self.time.now)
        return name

    def meta(self, name: str) -> dict | None:
        if self.silent:
            return None
        if name not in self.jobs:
            return GONE
        job = self.jobs[name]
        status = "RUNNING"  # of a job that a restart has cut off, for ever
        if job.over(self.time.now) and job.began >= self.started:
            status = ABORTED if job.aborted < FOR_EVER else job.plan.ends
        return {
            "status": status,
            "job_deploy_detail": ["server: OK", *job.plan.deploy],
            "schedule_history": list(job.plan.history),
        }

    def ask(self, question: str, *arguments: str) -> object:
        if self.silent:
            return None
        if question == "get_system_info":
            known = [SimpleNamespace(job_id=name) for name, job in self.jobs.items() if self.knows(job)]
            return SimpleNamespace(server_info=SimpleNamespace(start_time=self.started), job_info=known)
        job = self.jobs[arguments[0]]
        if question == "show_stats":
            return {"workflow": {"current_round": job.round(self.time.now)}}
        assert question == "abort_job"
        if job.aborted == FOR_EVER:
            job.aborted = self.time.now
            self.aborts.append((self.time.now, job.round(self.time.now)))
        return None

    def unfinished(self, run: str) -> list[str]:
        return [name for name, job in self.jobs.items() if job.run == run]

    def heard(self, name: str) -> tuple[str, ...]:
        return tuple(self.jobs[name].plan.heard.splitlines())

    def fetch(self, name: str, out: Path) -> Path:
        if self.silent:
            raise unfetched(ConnectionError(self.silent))
        job, folder = self.jobs[name], out / name / "workspace"
        folder.mkdir(parents=True, exist_ok=True)
        done = job.round(job.aborted) if job.aborted < FOR_EVER else job.plan.done
        tested = [site for site in job.plan.inside if site not in job.plan.untested]
        rounds = [{"round": number, "sites": dict.fromkeys(job.plan.inside)} for number in range(done)]
        results = {"rounds": rounds, "final": {"sites": dict.fromkeys(tested)}}
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "log.txt").write_text(job.plan.log)
        self.fetched.append(name)
        return out / name
