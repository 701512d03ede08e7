"""The run that the watcher brings to its end, its patience, and who is there: sites come and go."""

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
    """How long the watcher waits for what; seconds, all our choice.

    Attributes:
        poll: between two looks.
        sites: for the sites of the run to come back before the next job is submitted without them.
        settle: that no further site appears before the first job is submitted, where the job does not name its sites.
        outside: that a site may be connected and not in the job before it is taken in again.
        boundary: for the round in progress to end before that, where none has ended in this job yet;
            else twice the longest round.
        lost: that a server which has restarted may not know the job before it counts as lost.
        attempts: jobs in a row without a new finished round before the watcher gives up.
        rejoins: times that a site is taken in again; one that cannot run the job must not stop it for ever.
        retests: times that the final test is done again for a site that was lost in it.
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
    """The time that the watcher goes by, in seconds; a test hands in one that does not wait."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Lookout:
    """What the watcher looks with: its way to the server, its patience, its clock."""

    admin: Admin
    patience: Patience = Patience()  # frozen
    clock: Clock = Clock()  # frozen

    def wait(self) -> None:
        """Until the next look."""
        self.clock.sleep(self.patience.poll)


@dataclass
class Run:
    """What the watcher knows of the run it brings to its end."""

    name: str
    job: str = ""
    server: Any = None  # when the server that took the job was started
    rounds: int = 0
    begun: bool = False  # whether the server has rounds of it to go on from
    quorum: int = 1
    total: int = 0
    named: frozenset[str] = frozenset()  # the sites that the job names; none: it is for all
    fruitless: list[Cause] = field(default_factory=list)  # why its jobs since the last new round have ended
    retests: int = 0
    sites: set[str] = field(default_factory=set)
    rejoined: Counter[str] = field(default_factory=Counter)


def present_sites(admin: Admin, run: Run) -> dict[str, set[str]]:
    """The sites that answer now and may take part in the run, and the jobs that run at each."""
    return {site: jobs for site, jobs in admin.present().items() if not run.named or site in run.named}


def wait_for_sites(look: Lookout, run: Run) -> None:
    """Wait until a quorum is connected, and, until patience ends, all the sites that the run has had or names.

    Where it knows of none, until no further one appears: after a restart sites come back one by one.
    """
    patience, clock = look.patience, look.clock
    began = told = changed = clock.now()
    before: set[str] = set()
    while True:
        here, now = set(present_sites(look.admin, run)), clock.now()
        before, changed = here, changed if here == before else now
        settled = run.sites <= here and (run.sites or now - changed > patience.settle)
        if len(here) >= run.quorum and (settled or now - began > patience.sites):
            if run.sites - here:
                log.warning("going on without %s", ", ".join(sorted(run.sites - here)))
            return
        if now - told > patience.sites:
            told = now
            log.warning("waiting for %d sites, connected: %s", run.quorum, ", ".join(sorted(here)) or "none")
        look.wait()


def inside_job(present: dict[str, set[str]], run: Run) -> set[str]:
    """Of the sites that answer, those at which the run's job runs."""
    return {site for site, jobs in present.items() if run.job in jobs}


def someone_outside(present: dict[str, set[str]], run: Run, outside: dict[str, float], look: Lookout) -> bool:
    """Whether a connected site has been out of the job for long: it came late, or came back.

    Args:
        outside: since when each site has been so, look after look; changed in place.
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
        log.info("site %s is there and not in job %s; it is taken in after this round", site, run.job)
    return bool(late)
