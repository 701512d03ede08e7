"""pfedsam render: write FLARE's job folder from a settings file."""

import argparse
from pathlib import Path

from pfedsam.cli import console

HELP = "write FLARE's job folder with its code, for the simulator, the console and nvflare job submit"
EXAMPLE = "pfedsam render polyp /tmp/job --set method=ditto --set seed=1"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    console.of_a_job(parser)
    add = parser.add_argument
    add("out", type=Path, help="the folder to write; it must not exist")
    add("--continue", dest="continues", default="", metavar="RUN", help="continue a run: its name, or latest")
    add("--begin", default="", metavar="STUDY/RUN", help="start from the shared tensors of a finished run")
    add("--no-code", action="store_true", help="leave the code out, for sites that have it installed")
    add("--sites", help="the sites' names, separated by commas; default: all that connect")


def serve(options: argparse.Namespace) -> None:
    """Write the job."""
    from pfedsam.flare.recipe import render

    render(
        options.job,
        options.out,
        changes=options.set,
        rounds=options.rounds,
        code=not options.no_code,
        sites=[name.strip() for name in options.sites.split(",")] if options.sites else None,
        run=options.continues or None,
        continues=bool(options.continues) or None,
        begin=options.begin or None,
    )
    for line in told(options):
        console.show(line)


def told(options: argparse.Namespace) -> list[str]:
    """What was written, for whom, and what can be done with it."""
    from pfedsam.jobs import read_job

    named = ", ".join(read_job(options.job, []).sites)
    whom = options.sites or "all sites that connect"
    left = f" The job's own sites, {named}, are for simulate and doctor: name yours with --sites." if named else ""
    here = [] if options.no_code else [f"On this machine: nvflare simulator {options.out} -w WORKSPACE"]
    return [
        f"wrote {options.out}, {'without code' if options.no_code else 'with the code of pfedsam'}, for {whom}."
        + left * (not options.sites),
        *here,
        f"In a deployment: pfedsam watch {options.out} --kit KIT",
    ]
