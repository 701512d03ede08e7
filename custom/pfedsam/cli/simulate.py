"""pfedsam simulate: run a whole federation in this process, without FLARE."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pfedsam.bounds import parse_count
from pfedsam.cli import console
from pfedsam.errors import UserFault

if TYPE_CHECKING:
    from pfedsam.jobs import Job
    from pfedsam.site import Places

HELP = "run a job's federation in one process, with the same results as FLARE's simulator, bit for bit"
EXAMPLE = "pfedsam simulate pfedsam --rounds 2 --sites 2 --set method=ditto --set study=demo_ditto"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    console.of_a_job(parser)
    add = parser.add_argument
    add("--out", type=Path, help="the run's folder; default: runs/JOB_alone. An interrupted run continues there")
    add("--sites", default="", metavar="N|NAMES", help="how many sites, or their names by comma; default: the job's")


def serve(options: argparse.Namespace) -> int:
    """Run the rounds that are left and the final test, then print the table."""
    import torch

    from pfedsam.federation import Plan, federate
    from pfedsam.jobs import read_job
    from pfedsam.record.table import final_table

    sites = _named(options.sites, read_job(options.job).sites)
    job = read_job(options.job, options.set, rounds=options.rounds, sites=sites)
    if named := [f"{fact} {value}" for fact in ("run", "begin") if (value := getattr(job, fact))]:
        do = "render the job for FLARE's simulator: its server has that run in its store"
        raise UserFault(expected="a job that starts a new run", came=", ".join(named), do=do)
    out = options.out or Path("runs") / f"{job.name}_alone"  # FLARE's simulator deletes the folder that it runs in
    if threads := os.environ.get("PFEDSAM_THREADS"):
        torch.set_num_threads(parse_count(threads, "threads in PFEDSAM_THREADS"))
    plan = Plan(job.config, {site: _places(site, job, out) for site in job.sites}, job.rounds, out)
    try:
        with console.counted("rounds", job.rounds) as show:
            results = federate(plan, lambda entry: show(entry["round"] + 1))
    except KeyboardInterrupt:
        raise SystemExit(f"\nstopped; run the same command again to continue in {out}") from None
    print(f"{final_table(results)}\nresults: {out}\nas a page: pfedsam report {out}")
    return 0


def _named(text: str, own: tuple[str, ...]) -> tuple[str, ...]:
    """The sites of the run: the named ones, or the given number of the job's own sites, else of demo sites."""
    count = parse_count(text, "sites") if text.strip().isdecimal() else 0
    if count and own and count > len(own):
        raise UserFault(expected=f"at most the job's {len(own)} sites", came=text, do="give a smaller number")
    names = tuple(name.strip() for name in text.split(",")) if text and not count else own
    found = names or tuple(f"site-{i + 1}" for i in range(count))
    if not found:
        raise UserFault(expected="sites", came="a job that names none", do="add --sites 4, or --sites NAME,NAME")
    return found[:count] if count else found


def _places(site: str, job: "Job", out: Path) -> "Places":
    """Where a site's files are: its data is where this machine's settings say, and it writes into `out`."""
    from pfedsam.data.synthetic import drawn
    from pfedsam.site import Places

    data, weights = os.environ.get("PFEDSAM_DATA"), os.environ.get("PFEDSAM_WEIGHTS")
    if job.config.data.source == "synthetic":
        data = str(drawn(out / site / "synthetic_data", site, job.config))
    if not data:
        raise UserFault(expected=f"the data folder of site {site}", came="no setting", do="set PFEDSAM_DATA")
    cache = Path(os.environ.get("PFEDSAM_CACHE") or out / "prepared")
    return Places(Path(data), out / "store", Path(weights) if weights else None, cache, out / site / "scratch")
