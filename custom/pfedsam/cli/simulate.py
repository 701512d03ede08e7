"""pfedsam simulate: run a whole federation in this process, without FLARE."""

import argparse
from pathlib import Path

from pfedsam.bounds import parse_count
from pfedsam.cli import console

HELP = "run a job's federation in one process, bit-equal to FLARE's simulator"
EXAMPLE = "pfedsam simulate pfedsam --rounds 2 --sites 2 --set method=ditto --set study=demo_ditto"
STOPPED = "; run the same command again to continue"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    console.of_a_job(parser)
    add = parser.add_argument
    add("--out", type=Path, help="the run's folder; default: runs/JOB_alone. An interrupted run continues there")
    add("--sites", default="", metavar="N|NAMES", help="how many sites, or their names by comma; default: the job's")


def serve(options: argparse.Namespace) -> int:
    """Run the rounds that are left and the final test, then print the table."""
    from pfedsam.api import simulate
    from pfedsam.jobs import read_job

    job = read_job(options.job, options.set, rounds=options.rounds)
    with console.counted("rounds", job.rounds) as show:
        done = simulate(
            job, sites=_named(options.sites), out=options.out, on_round=lambda entry: show(entry["round"] + 1)
        )
    console.show(*done.table().split("\n"), f"results: {done.folder}", f"as a page: pfedsam report {done.folder}")
    return 0


def _named(text: str) -> int | list[str] | None:
    """The number of sites that is asked for, or their names; None: the job's own."""
    if text.strip().isdecimal():
        return parse_count(text, "sites")
    return [name.strip() for name in text.split(",")] if text else None
