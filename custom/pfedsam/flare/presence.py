"""What the watcher knows of its run, how long it waits, and which sites are connected: sites come and go."""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pfedsam import log
from pfedsam.flare.admin import Admin
from pfedsam.flare.ends import Cause


@dataclass(frozen=True)
class Patience:
    """How long the watcher waits, in seconds, and how often it tries. All values are our choice.

    Attributes:
        poll: between two looks at the server.
        sites: for the run's sites to come back. After that the next job is submitted without them.
        settle: without a new site, before the first job is submitted. It counts if the job does not name its sites.
        outside: that a site may be connected but not in the job, before it is taken in again.
        boundary: for the round in progress to end before a site is taken in, if no round has ended in this job yet.
            Otherwise it is twice the longest round.
        lost: that a restarted server may not know the job, before the job counts as lost.
        attempts: jobs in a row without a new finished round, before the watcher gives up.
        rejoins: times that a site is taken in again. A site that cannot run the job must not stop it for ever.
        retests: times that the final test is repeated for a site that was lost in it.
    """

    poll: float = 2.0
    sites: float = 90.0
    settle: float = 10.0
    outside: float = 20.0
    boundary: float = 900.0
    lost: float = 15.0
    attempts: int = 5
    rejoins: int = 5
    retests: int = 2


@dataclass(frozen=True)
class Clock:
    """The watcher's clock, in seconds. A test can pass one that does not wait."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Lookout:
    """The watcher's tools: its connection to the server, its patience, its clock."""

    admin: Admin
    patience: Patience = Patience()  # frozen
    clock: Clock = Clock()  # frozen

    def wait(self, failed: int = 0) -> None:
        """Wait until the next look. The more tries in a row have failed, the longer: at most 32 times as long."""
        self.clock.sleep(self.patience.poll * 2 ** min(failed, 5))


@dataclass
class Run:
    """What the watcher knows of the run that it brings to its end."""

    name: str
    job: str = ""
    server: Any = None  # when the server that took the job was started
    rounds: int = 0
    begun: bool = False  # whether the server is known to have it, to go on from
    submitted: bool = False  # whether a job of it was
    quorum: int = 1
    total: int = 0
    named: frozenset[str] = frozenset()  # the sites that the job names; none: it is for all
    fruitless: list[Cause] = field(default_factory=list)  # why its jobs since the last new round have ended
    retests: int = 0
    bad: int = 0  # after how many rounds its model was bad when it last went back
    ended_by: str = ""  # the site that ended the last job, if there was no new round in it
    left_out: Counter[str] = field(default_factory=Counter)  # how often each site was left out
    out: set[str] = field(default_factory=set)  # the sites that the next job leaves out
    sites: set[str] = field(default_factory=set)
    rejoined: Counter[str] = field(default_factory=Counter)


def present_sites(admin: Admin, run: Run) -> dict[str, set[str]]:
    """The sites that answer now and may take part in the run, each with the jobs that run there."""
    may = {site: jobs for site, jobs in admin.present().items() if not run.named or site in run.named}
    return {site: jobs for site, jobs in may.items() if site not in run.out}


def note_end(look: Lookout, run: Run, site: str, *, progress: bool) -> None:
    """Leave a site out of the next job if it has ended two in a row without a new round, and enough others are there.

    The jobs that it ended then count no longer as tries: the next one is without it.

    Args:
        site: the one that ended the job, or empty.
        progress: whether the job finished a round. The sites that were left out come back then, if not too often.
    """
    others = set(present_sites(look.admin, run)) - {site}
    if progress:
        run.out = {one for one in run.out if run.left_out[one] > look.patience.rejoins}
    elif site and site == run.ended_by and len(others) >= run.quorum:
        run.out.add(site)
        run.left_out[site] += 1
        run.sites.discard(site)
        run.fruitless = []
        log.warning("site %s has ended two jobs in a row. The run goes on without it", site)
    run.ended_by = "" if progress else site


def wait_for_sites(look: Lookout, run: Run) -> None:
    """Wait until a quorum is connected. Until patience ends, also wait for all sites that the run has had or names.

    If it knows of none, wait until no new site appears: after a restart sites come back one by one.
    """
    patience, clock = look.patience, look.clock
    began = told = changed = clock.now()
    before, silent = set[str](), ""
    while True:
        here, now = set(present_sites(look.admin, run)), clock.now()
        before, changed = here, changed if here == before else now
        settled = run.sites <= here and (run.sites or now - changed > patience.settle)
        if len(here) >= run.quorum and (settled or now - began > patience.sites):
            if run.sites - here:
                log.warning("continuing without %s", ", ".join(sorted(run.sites - here)))
            return
        if now - told > patience.sites or look.admin.silent not in ("", silent):
            told, silent = now, look.admin.silent
            absent = f"waiting for {run.quorum} sites, connected: {', '.join(sorted(here)) or 'none'}"
            log.warning("%s", f"the server does not answer ({silent}). Trying again" if silent else absent)
        look.wait()


def inside_job(present: dict[str, set[str]], run: Run) -> set[str]:
    """The answering sites at which the run's job runs."""
    return {site for site, jobs in present.items() if run.job in jobs}


def someone_outside(present: dict[str, set[str]], run: Run, outside: dict[str, float], look: Lookout) -> bool:
    """Whether a connected site has been outside the job for long: it came late, or came back.

    Args:
        outside: the time since which each site has been outside. Changed in place.
    """
    inside, patience, now = inside_job(present, run), look.patience, look.clock.now()
    if not inside:
        return False
    for site in present:
        outside[site] = math.inf if site in inside else min(now, outside.get(site, now))
    late = [site for site in present if now - outside[site] > patience.outside]
    late = [site for site in late if run.rejoined[site] < patience.rejoins]
    run.rejoined.update(late)
    for site in late:
        log.info("site %s is connected but not in job %s. It is taken in after this round", site, run.job)
    return bool(late)


def current_round(admin: Admin, job: str) -> int | None:
    """The round in progress. FLARE reports it under the workflow's name, which is nested in other groups."""
    groups = [admin.ask("show_stats", job, "server")]
    for group in groups:  # grows as it is gone through
        if isinstance(group, dict):
            if group.get("current_round") is not None:
                return int(group["current_round"])
            groups += group.values()
    return None
