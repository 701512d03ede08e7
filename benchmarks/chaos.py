"""Random kills of a federation's processes: what is lost, what is repeated, and is the model the same bit for bit?

    python benchmarks/chaos.py --kills 6 [--each 3] [--lanes 1] [--rule RULE] [--sites 2] [--privacy] [--keep]

Each run is a short job on provisioned hospitals with a few kills -9 at random moments. The watcher alone brings
the run to its end. Its shared and private tensors are then compared with those of an undisturbed run. With --privacy
each run has noise of its own. Then a round that was trained again must have sent the same bytes, and each site must
have paid for each round once.
"""

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import psutil
import torch
from machine import Table, keepable, publish
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "poc"))

from federation import Federation  # noqa: E402

from pfedsam.config import Rule  # noqa: E402
from pfedsam.exchange.privacy import Budget  # noqa: E402
from pfedsam.flare.presence import Patience  # noqa: E402

ROUNDS = 4
SITES = 2  # of the three hospitals, if the rule needs no more: the kills matter, not the number of sites
TINY = ["train.max_steps=6", "train.epochs=3", "data.train=8", "data.val=2", "data.test=2", "model.image_size=64"]
JOB, PARENT = ("worker_process", "runner_process"), ("client_train", "server_train")
WHAT = {"job": JOB, "parent": PARENT, "both": JOB + PARENT}
HIDDEN = ["privacy.unit=patient", "privacy.noise=4", "privacy.epsilon=50", "model.experts=0"]
HIDES = "Each run has noise of its own. Bit-equal means: a repeated round sent the same bytes, and was paid once."
PATIENCE = Patience(poll=1.0, sites=60.0, outside=10.0, lost=8.0, attempts=30, rejoins=30)
Tensors = dict[str, torch.Tensor]
Disturb = Callable[[str, threading.Event], None]  # disturbs a study until the event says that its run is over


@dataclass(frozen=True)
class Row:
    """One run, the kills in it, and its result."""

    kills: tuple[str, ...]
    moments: tuple[str, ...]
    ends: tuple[str, ...]
    redone: int
    lost: int
    equal: bool
    seconds: float


def run_once(
    federation: Federation,
    study: str,
    disturb: Disturb | None = None,
    sites: int = SITES,
    changes: Sequence[str] = (),
) -> tuple[list[str], float]:
    """How a disturbed run's jobs ended, and the seconds from its first job to its end.

    Each round needs all sites, so that runs can be compared bit for bit. A round without one of them is repeated.
    """
    settings = [*TINY, *changes, f"study={study}"]
    job = federation.render(ROOT / "jobs/pfedsam", *settings, rounds=ROUNDS, min_sites=sites, timeout=60)
    began, over = time.monotonic(), threading.Event()
    thread = threading.Thread(target=disturb or (lambda *_: None), args=(study, over))
    thread.start()
    try:
        outcome = federation.watch(job, PATIENCE)
        return list(outcome.ends), time.monotonic() - began
    finally:
        over.set()
        thread.join()


class Killer:
    """Kills one party's processes at random moments of a run, a few times."""

    def __init__(
        self, federation: Federation, chance: random.Random, *, times: int, within: float, sites: int = SITES
    ) -> None:
        self.federation, self._chance, self._times, self._within = federation, chance, times, within
        self.parties = federation.parties[: 1 + sites]
        self.kills: list[str] = []
        self.moments: list[str] = []

    def __call__(self, study: str, over: threading.Event) -> None:
        """Kill, and after each kill do the work of the machine's service manager."""
        for _ in range(self._times):
            self._once(study, over)
            time.sleep(8)
            self.federation.start(*self.parties, wait=90)

    def _once(self, study: str, over: threading.Event) -> None:
        who = self._chance.choice(["server", "site"])
        party = self.parties[0] if who == "server" else self._chance.choice(self.parties[1:])
        what, writing = self._chance.choice(list(WHAT)), self._chance.random() < 0.25
        delay = self._chance.uniform(0, self._within)
        until(lambda: over.is_set() or bool(self._targets(party, "job")), 60)
        until(over.is_set, delay)
        if writing:
            until(lambda: over.is_set() or being_written(self.federation, study), 15, every=0.0005)
        done, targets = rounds_done(self.federation, study), self._targets(party, what)
        if over.is_set() or not targets:
            return
        for process in targets:
            process.kill()
        self.kills.append(f"{who} {what}")
        self.moments.append(f"{'writing, ' if writing else ''}after {done}")

    def _targets(self, party: str, what: str) -> list[psutil.Process]:
        return [p for word in WHAT[what] for p in self.federation.processes(party, word)]


def being_written(federation: Federation, study: str) -> bool:
    """Whether the server or a site is writing a file of the study just now."""
    return any(True for folder in stores(federation, study) for _ in folder.glob("**/.*.tmp"))


def stores(federation: Federation, study: str) -> list[Path]:
    """The study's folder at the server and at each site that takes part. Only the server's may not be there yet."""
    server, *sites = [federation.kit(party) / "pfedsam_store" / study for party in federation.parties]
    return [server, *(site for site in sites if site.exists())]


def until(so: Callable[[], bool], longest: float, every: float = 0.2) -> None:
    """Wait until the condition is true, at most `longest` seconds."""
    end = time.monotonic() + longest
    while time.monotonic() < end and not so():
        time.sleep(every)


def rounds_done(federation: Federation, study: str) -> int:
    """The number of rounds of the study's run on the server's disk."""
    points = stores(federation, study)[0].glob("server/*/round.*.json")
    return max((int(path.name.split(".")[1]) for path in points), default=0)


def trained(federation: Federation, study: str) -> dict[str, Tensors]:
    """A run's tensors: the server's last and best shared part, and each site's newest private part."""
    server, *sites = stores(federation, study)
    last, best = max(server.glob("server/*/round.*.safetensors")), next(server.glob("server/*/best.safetensors"))
    private = {folder.parts[-3]: max(folder.glob("*/private.*.safetensors")) for folder in sites}
    return {name: load_file(path) for name, path in {"shared": last, "best": best, **private}.items()}


def same(one: dict[str, Tensors], other: dict[str, Tensors]) -> bool:
    """Whether two runs made the same tensors, bit for bit."""
    return all(
        one[part].keys() == other[part].keys() and all(torch.equal(t, other[part][n]) for n, t in one[part].items())
        for part in one
    )


def times_trained(federation: Federation, study: str) -> list[int]:
    """For each round, how often the site that received it most often got it, from the sites' ledgers."""
    counts = [0] * ROUNDS
    for folder in stores(federation, study)[1:]:
        lines = next(folder.glob("*/ledger.jsonl")).read_text().splitlines()
        came = [line for line in map(json.loads, lines) if line["direction"] == "in" and line["task"] == "train"]
        counts = [max(count, sum(line["round"] == r for line in came)) for r, count in enumerate(counts)]
    return counts


def repeated_alike(federation: Federation, study: str) -> bool:
    """Whether each site sent the same bytes whenever it trained a round again, and paid for each round once."""
    for folder in (next(folder.iterdir()) for folder in stores(federation, study)[1:]):
        lines = map(json.loads, (folder / "ledger.jsonl").read_text().splitlines())
        sent = {
            (line["round"], line["sha256"]) for line in lines if line["direction"] == "out" and line["task"] == "train"
        }
        paid = Budget(folder.parents[1], f"{folder.name}.synthetic").spent()  # of drawn images
        studies = [other for other in folder.parents[1].iterdir() if (other / folder.name / "ledger.jsonl").exists()]
        if len(sent) != ROUNDS or paid is None or len(paid.rounds) != ROUNDS * len(studies):
            return False
    return True


def campaign(
    kills: int,
    chance: random.Random,
    each: int,
    within: float,
    tell: Callable[[Row], None],
    changes: Sequence[str] = (),
    sites: int = SITES,
) -> list[Row]:
    """One federation, one undisturbed run, then runs with `each` kills until there were `kills`."""
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    federation, rows = Federation(home / "federation"), list[Row]()
    federation.prepare("provisioned", byoc=False)
    try:
        federation.start(*federation.parties[: 1 + sites])
        run_once(federation, "steady", sites=sites, changes=changes)
        steady = trained(federation, "steady")
        while (had := sum(len(row.kills) for row in rows)) < kills:
            killer = Killer(federation, chance, times=min(each, kills - had), within=within, sites=sites)
            rows.append(disturbed(federation, f"kill-{len(rows)}", killer, steady, changes))
            tell(rows[-1])
    finally:
        federation.stop()
    shutil.rmtree(home)
    return rows


def disturbed(
    federation: Federation, study: str, killer: Killer, steady: dict[str, Tensors], changes: Sequence[str] = ()
) -> Row:
    """A run with kills, compared with the undisturbed one."""
    ends, seconds = run_once(federation, study, killer, len(killer.parties) - 1, changes)
    hidden = any(change.startswith("privacy.") for change in changes)
    counts = times_trained(federation, study)
    return Row(
        tuple(killer.kills),
        tuple(killer.moments),
        tuple(ends),
        redone=sum(counts) - ROUNDS,
        lost=sum(count == 0 for count in counts),
        equal=repeated_alike(federation, study) if hidden else same(trained(federation, study), steady),
        seconds=seconds,
    )


def line(row: Row) -> str:
    """A run's line of the table."""
    kills = "; ".join(f"{kill} {moment}" for kill, moment in zip(row.kills, row.moments, strict=True))
    ends = ", ".join(end.removeprefix("FINISHED:") for end in row.ends)
    cells = [kills, ends, row.redone, row.lost, "bit-equal" if row.equal else "DIFFERENT", f"{row.seconds:.0f} s"]
    return f"| {' | '.join(map(str, cells))} |"


def totals(rows: list[Row]) -> tuple[Table, str]:
    """What was killed how often, and how the runs ended."""
    kills = [kill for row in rows for kill in row.kills]
    columns = {"killed -9": "", "kills": "d", "in runs that ended bit-equal": "d"}
    equal_to = {key: sum(row.kills.count(key) for row in rows if row.equal) for key in sorted(set(kills))}
    table = Table(columns, [[key, kills.count(key), count] for key, count in equal_to.items()])
    writing = sum(moment.startswith("writing") for row in rows for moment in row.moments)
    redone, lost, equal = (sum(getattr(row, name) for row in rows) for name in ("redone", "lost", "equal"))
    return table, (
        f"{len(kills)} kills ({writing} of them while a checkpoint or a private part was being written) in "
        f"{len(rows)} runs of {ROUNDS} rounds. All ended by themselves, {equal} of them bit-equal. "
        f"Rounds lost: {lost}. Rounds done again: {redone}, {redone / max(len(kills), 1):.2f} for each kill."
    )


def main() -> int:
    """Run the campaign. Returns 1 if a run differed or lost a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--each", type=int, default=3, help="kills a run")
    parser.add_argument("--lanes", type=int, default=1, help="federations at a time")
    parser.add_argument("--within", type=float, default=20, help="most seconds from a job's start to its kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rule", default="clipped", choices=get_args(Rule), help="the server's")
    parser.add_argument("--sites", type=int, default=SITES, choices=(2, 3), help="that take part")
    parser.add_argument("--privacy", action="store_true", help="hide the patients")
    options = keepable(parser).parse_args()
    logging.basicConfig(handlers=[logging.NullHandler()])
    changes = [f"server.rule={options.rule}", *(HIDDEN if options.privacy else [])]
    shares = [len(range(lane, options.kills, options.lanes)) for lane in range(options.lanes)]
    rows: list[Row] = []

    def tell(row: Row) -> None:
        sys.stdout = sys.__stdout__  # watcher and killer talk to FLARE at once, and each puts back what it found
        rows.append(row)
        print(line(row), flush=True)

    print("| killed -9, after how many rounds | jobs ended | redone | lost | model | took |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    with ThreadPoolExecutor(options.lanes) as pool:
        tasks = [
            pool.submit(
                campaign,
                share,
                random.Random(options.seed * 1000 + lane),
                options.each,
                options.within,
                tell,
                changes,
                options.sites,
            )
            for lane, share in enumerate(shares)
        ]
    for task in tasks:
        task.result()  # raises what its federation raised
    table, told = totals(rows)
    print()
    how = f", rule {options.rule}" * (options.rule != "clipped") + ", patients hidden" * options.privacy
    notes = [
        told,
        *([HIDES] if options.privacy else []),
        *([f"{options.sites} sites."] if options.sites > SITES else []),
    ]
    publish(f"Random kills of a federation's processes{how}", table, notes=notes, keep=options.keep)
    return 0 if all(row.equal and not row.lost for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
