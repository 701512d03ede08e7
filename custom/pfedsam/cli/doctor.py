"""pfedsam doctor: measure what a job needs on this machine."""

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pfedsam.bounds import parse_count
from pfedsam.cli import console
from pfedsam.errors import UserFault, one_line

if TYPE_CHECKING:
    from pfedsam.doctor.checks import Finding
    from pfedsam.doctor.examine import Diagnosis

HELP = "measure what a job needs on this machine, and check that it is there"
EXAMPLE = "pfedsam doctor pfedsam --bandwidth 50"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    console.of_a_job(parser)
    add = parser.add_argument
    data, weights, store = (os.environ.get(f"PFEDSAM_{name}") or None for name in ("DATA", "WEIGHTS", "STORE"))
    add("--data", type=Path, default=data, help="the site's data folder; default: PFEDSAM_DATA")
    add("--weights", type=Path, default=weights, help="the folder of weight files; default: PFEDSAM_WEIGHTS")
    add("--store", type=Path, default=store or ".", help="the site's store; default: PFEDSAM_STORE, else this folder")
    add("--site", default="", help="the site in the datalist; default: the job's site with the most training rows")
    add("--bandwidth", type=float, metavar="MBIT", help="the site's bandwidth in megabits per second, each way")
    add("--threads", type=int, help="torch threads per site; default: all cores, or 1 with --sites")
    add("--sites", type=int, default=1, metavar="N", help="the number of sites simulated at once on this machine")
    add("--kit", type=Path, help="the startup kit, to check how long its certificates hold")
    add("--anyway", action="store_true", help="do the small run even if weights or data are missing")
    add("--json", action="store_true", help="print one JSON object")


def serve(options: argparse.Namespace) -> int:
    """Examine the machine and print the findings. Return 1 if a check failed."""
    from pfedsam.doctor.examine import Here, examine, glance
    from pfedsam.doctor.needs import Setting, on_the_wire
    from pfedsam.jobs import read_job

    for name in ("sites", "threads", "rounds", "bandwidth"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UserFault(expected=f"--{name} above 0", came=str(value), do="give a number above 0")
    job = read_job(options.job, options.set, rounds=options.rounds)
    config = job.config
    own = os.environ.get("PFEDSAM_THREADS") or str(os.cpu_count() or 1 if options.sites == 1 else 1)
    threads = options.threads or parse_count(own, "threads in PFEDSAM_THREADS")
    whole = options.sites > 1 and not options.site and bool(job.sites)
    places = options.data, options.weights, options.store
    here = Here(*places, threads, options.site, sites=tuple(job.sites), all=whole, kit=options.kit)
    seen = glance(config, here)
    if not options.anyway and not all(check.ok for check in seen):
        console.say({"well": False, "checks": [asdict(check) for check in seen]}) if options.json else _verdict(seen)
        return 1
    setting = Setting(job.rounds, options.sites)
    errors = Console(stderr=True)
    with errors.status("examining", spinner="line") as status:
        found = examine(config, here, setting, lambda line: status.update(f"{line} ..."), seen=seen)
    if options.json:
        size = found.wire.up + found.wire.down
        wire = {"wire_seconds_a_round": on_the_wire(size, options.bandwidth)} if options.bandwidth else {}
        console.say({"well": found.well, **asdict(found), **wire})
    else:
        Console(highlight=False).print(_needs(found, options.bandwidth))
        _verdict(found.checks)
    return 0 if found.well else 1


def _verdict(seen: "list[Finding]") -> None:
    out, table = Console(highlight=False), Table("", "", "found", title="Checks")
    for check in seen:
        table.add_row("ok" if check.ok else "NO", check.name, Text(one_line(check.found)))
    out.print(table)
    for check in seen:
        if not check.ok:
            out.print(f"[bold]{check.name}[/bold]: ", end="")
            out.print(one_line(check.do), markup=False)
    failed = sum(not check.ok for check in seen)
    out.print(f"Not ready: {failed} check(s) failed." if failed else "Ready: this machine can run the job.")


def _needs(found: "Diagnosis", bandwidth: float | None) -> Table:
    from pfedsam.doctor.checks import gigabytes

    table = Table(title="What the run needs here", caption=_holds_for(found), show_header=False)
    time, memory, disk, wire = found.seconds, found.memory, found.disk, found.wire
    rounds = found.setting.rounds
    rows = [
        ("start of a site", duration(time.ready)),
        ("one round (training, scoring, exchange)", duration(time.round)),
        (f"the whole run, {rounds} round(s) and the final test", duration(time.run)),
        *([("the same on an otherwise idle machine, about", duration(time.run * found.got))] if _busy(found) else []),
        ("sent by a site per round", gigabytes(wire.up)),
        ("received by a site per round", gigabytes(wire.down)),
        *_line(found, bandwidth),
        ("memory of a site's process", gigabytes(memory.site)),
        ("memory at the very first start", gigabytes(memory.first_start)),
        *([("memory of all simulated processes", gigabytes(memory.all))] if found.setting.sites > 1 else []),
        *([("memory on the GPU", gigabytes(memory.vram))] if memory.vram else []),
        ("disk: prepared base model", gigabytes(disk.base)),
        ("disk: site store with ledger", gigabytes(disk.store)),
        ("disk: the run's own files", gigabytes(disk.run)),
        *([("disk: cache of the frozen front", gigabytes(disk.cache))] if disk.cache else []),
        *([("disk: server's checkpoints and models", gigabytes(disk.server))] if disk.server else []),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def _line(found: "Diagnosis", bandwidth: float | None) -> list[tuple[str, str]]:
    """Rows on the time that messages take. There are none if no bandwidth is given."""
    from pfedsam.doctor.needs import on_the_wire

    if not bandwidth:
        return []
    each = on_the_wire(found.wire.up + found.wire.down, bandwidth)
    run = each * found.setting.rounds + on_the_wire(found.wire.down, bandwidth)
    return [
        (f"added by a network of {bandwidth:g} Mbit/s, per round", duration(each)),
        ("added by that network, the whole run", duration(run)),
    ]


def _holds_for(found: "Diagnosis") -> str:
    slices = ", ".join(f"{found.slices[split]} {split}" for split in ("train", "val", "test"))
    threads = f"{found.threads} thread(s)"
    how = "one site on this machine with" if found.setting.sites == 1 else f"{found.setting.sites} sites, each with"
    slow = f" Other programs are running: the trial got {found.got:.0%} of its processor time." if _busy(found) else ""
    doubt = " The numbers of slices are assumed, because there is no data here." if found.assumed else ""
    return f"Valid for {how} {threads} and {slices} slices, at the machine's present load.{slow}{doubt}"


def _busy(found: "Diagnosis") -> bool:
    """Whether other work slowed the trial. Several threads wait for each other even on an idle machine."""
    return found.threads == 1 and found.got < 0.85


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
