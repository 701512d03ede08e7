"""Random kills of a federation's processes: what is lost, what is done twice, is the model the same bit for bit.

    python benchmarks/chaos.py --kills 6 [--lanes 1] [--seed 0]

Each run is a short job on three provisioned hospitals and one kill -9 at a random moment; the watcher alone brings
it to its end. Its shared and private tensors are then compared with those of a run that nobody disturbed.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "poc"))

from federation import Federation  # noqa: E402

from pfedsam.flare.watch import Patience  # noqa: E402

ROUNDS = 4
TINY = ["train.max_steps=6", "train.epochs=3", "data.train=6", "data.val=2", "data.test=2", "model.image_size=64"]
JOB, PARENT = ("worker_process", "runner_process"), ("client_train", "server_train")
WHAT = {"job": JOB, "parent": PARENT, "both": JOB + PARENT}
PATIENCE = Patience(poll=1.0, sites=60.0, outside=10.0, lost=8.0)
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Row:
    """One kill and what came of it."""

    who: str
    what: str
    moment: str
    ends: tuple[str, ...]
    redone: int
    lost: int
    equal: bool
    seconds: float


def run_once(
    federation: Federation, study: str, disturb: Callable[[str], None] | None = None
) -> tuple[list[str], float]:
    """A run from its first job to its end, disturbed meanwhile; returns how its jobs ended, and its seconds."""
    job = federation.render(ROOT / "jobs/pfedsam", *TINY, f"study={study}", rounds=ROUNDS)
    every_site_in_every_round(job, len(federation.facts["sites"]))
    began = time.monotonic()
    thread = threading.Thread(target=disturb, args=(study,)) if disturb else None
    if thread:
        thread.start()
    outcome = federation.watch(job, PATIENCE)
    if thread:
        thread.join()
    return list(outcome.ends), time.monotonic() - began


def every_site_in_every_round(job: Path, sites: int) -> None:
    """Set the quorum to all sites, so that runs can be compared bit for bit; a round that lacks one is done again."""
    path = job / "app/config/config_fed_server.json"
    server = json.loads(path.read_text())
    loop = next(w["args"] for w in server["workflows"] if w["id"] == "rounds")
    loop |= {"min_clients": sites, "train_timeout": 60}
    next(c["args"] for c in server["components"] if c["id"] == "aggregator")["min_sites"] = sites
    path.write_text(json.dumps(server))


class Killer:
    """Kills one party's processes once, at a random moment of a run."""

    def __init__(self, federation: Federation, chance: random.Random, longest: float) -> None:
        self.federation = federation
        self.who = chance.choice(["server", "site"])
        self.party = federation.parties[0] if self.who == "server" else chance.choice(federation.parties[1:])
        self.what = chance.choice(list(WHAT))
        self.writing = chance.random() < 0.25
        self.delay = chance.uniform(0, longest)
        self.moment = ""

    def __call__(self, study: str) -> None:
        """Wait for the moment, kill, and afterwards stand in for the machine's service manager."""
        time.sleep(self.delay)
        until(lambda: bool(self._targets()), 30)
        if self.writing:
            until(lambda: any(self.federation.home.rglob(f"{study}/**/.*.tmp")), 15, every=0.0005)
        done = rounds_done(self.federation, study)
        for process in self._targets():
            process.kill()
        self.moment = f"{'writing, ' if self.writing else ''}after {done} rounds"
        time.sleep(12)
        self.federation.start(wait=60)

    def _targets(self) -> list[psutil.Process]:
        return [p for word in WHAT[self.what] for p in self.federation.processes(self.party, word)]


def until(so: Callable[[], bool], longest: float, every: float = 0.2) -> None:
    """Wait until something is so, at most `longest` seconds."""
    end = time.monotonic() + longest
    while time.monotonic() < end and not so():
        time.sleep(every)


def rounds_done(federation: Federation, study: str) -> int:
    """Rounds of the study's run that the server has on its disk."""
    points = federation.kit(federation.parties[0]).glob(f"pfedsam_store/{study}/server/*/round.*.json")
    return max((int(path.name.split(".")[1]) for path in points), default=0)


def trained(federation: Federation, study: str) -> dict[str, Tensors]:
    """What a run has made: the server's last checkpoint and each site's newest private part."""
    stores = {party: federation.kit(party) / "pfedsam_store" / study for party in federation.parties}
    server = max(stores[federation.parties[0]].glob("server/*/round.*.safetensors"))
    private = {site: max((stores[site] / site).glob("private.*.safetensors")) for site in federation.parties[1:]}
    return {"shared": load_file(server), **{site: load_file(path) for site, path in private.items()}}


def same(one: dict[str, Tensors], other: dict[str, Tensors]) -> bool:
    """Whether two runs made the same, bit for bit."""
    return all(
        one[part].keys() == other[part].keys() and all(torch.equal(t, other[part][n]) for n, t in one[part].items())
        for part in one
    )


def times_trained(federation: Federation, study: str) -> list[int]:
    """How often each round was sent to the site that got it most often, from the sites' ledgers."""
    counts = [0] * ROUNDS
    for site in federation.parties[1:]:
        lines = (federation.kit(site) / "pfedsam_store" / study / site / "ledger.jsonl").read_text().splitlines()
        seen = [
            line["round"] for line in map(json.loads, lines) if line["direction"] == "in" and line["task"] == "train"
        ]
        counts = [max(count, seen.count(r)) for r, count in enumerate(counts)]
    return counts


def campaign(lane: int, kills: int, seed: int, tell: Callable[[Row], None]) -> list[Row]:
    """One federation, one undisturbed run, then a run a kill."""
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    federation, chance, rows = Federation(home / "federation"), random.Random(seed * 1000 + lane), []
    federation.prepare("provisioned", byoc=False)
    try:
        federation.start()
        _, longest = run_once(federation, "steady")
        steady = trained(federation, "steady")
        for number in range(kills):
            killer, study = Killer(federation, chance, longest), f"kill-{number}"
            ends, seconds = run_once(federation, study, killer)
            counts = times_trained(federation, study)
            row = Row(
                killer.who,
                killer.what,
                killer.moment,
                tuple(ends),
                redone=sum(counts) - ROUNDS,
                lost=sum(count == 0 for count in counts),
                equal=same(trained(federation, study), steady),
                seconds=seconds - longest,
            )
            rows.append(row)
            tell(row)
            federation.start()
    finally:
        federation.stop()
    shutil.rmtree(home)
    return rows


def line(row: Row) -> str:
    """A kill in one line of the table."""
    ends = ", then ".join(end.removeprefix("FINISHED:") for end in row.ends)
    verdict = "bit-equal" if row.equal else "DIFFERENT"
    cells = [f"{row.who} {row.what}", row.moment, ends, row.redone, row.lost, verdict, f"{row.seconds:+.0f} s"]
    return f"| {' | '.join(map(str, cells))} |"


def totals(rows: list[Row]) -> str:
    """The table by what was killed."""
    head = "| killed -9 | kills | runs that ended | rounds redone, mean (most) | lost | bit-equal | later by, median |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for key in sorted({(row.who, row.what) for row in rows}):
        group = [row for row in rows if (row.who, row.what) == key]
        redone = [row.redone for row in group]
        later = sorted(row.seconds for row in group)[len(group) // 2]
        lines.append(
            f"| {' '.join(key)} | {len(group)} | {len(group)} | {sum(redone) / len(redone):.2f} ({max(redone)}) "
            f"| {sum(row.lost for row in group)} | {sum(row.equal for row in group)} | {later:.0f} s |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the campaign; 1 if a run differed or lost a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--lanes", type=int, default=1, help="federations beside each other")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(handlers=[logging.NullHandler()])
    shares = [len(range(lane, options.kills, options.lanes)) for lane in range(options.lanes)]
    print(
        "| killed -9 | when | jobs ended | redone | lost | model | later by |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    with ThreadPoolExecutor(options.lanes) as pool:
        tasks = [
            pool.submit(campaign, lane, share, options.seed, lambda row: print(line(row), flush=True))
            for lane, share in enumerate(shares)
        ]
        rows = [row for task in tasks for row in task.result()]
    print(f"\n{totals(rows)}")
    return 0 if all(row.equal and not row.lost for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
