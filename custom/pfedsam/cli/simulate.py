"""pfedsam simulate: a whole federation in this process, without FLARE."""

import argparse
from pathlib import Path

from pfedsam.bounds import parse_count
from pfedsam.cli import console

HELP = "run a job's federation in this one process; the results are those of FLARE's simulator, bit for bit"
EXAMPLE = "pfedsam simulate jobs/pfedsam --rounds 2 --sites 2 --set method=ditto --set study=demo_ditto"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    console.of_a_job(parser)
    add = parser.add_argument
    add("--out", type=Path, help="the run's folder, default runs/JOB_alone; a run that was cut goes on there")
    add("--sites", default="", metavar="N|NAMES", help="so many sites, or these, by comma; default: the job's")


def serve(options: argparse.Namespace) -> int:
    """Run what is left of the rounds, and the final test; show the table."""
    from pfedsam.api import simulate
    from pfedsam.jobs import read_job

    job = read_job(options.job, options.set, rounds=options.rounds)
    try:
        with console.counted("rounds", job.rounds) as show:
            done = simulate(
                job, sites=_named(options.sites), out=options.out, on_round=lambda entry: show(entry["round"] + 1)
            )
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; the same command goes on where it was") from None
    print(f"{done.table()}\nresults: {done.folder}\nas a page: pfedsam report {done.folder}")
    return 0


def _named(text: str) -> int | list[str] | None:
    """How many sites are asked for, or their names; None: the job's own."""
    if text.strip().isdecimal():
        return parse_count(text, "sites")
    return [name.strip() for name in text.split(",")] if text else None
