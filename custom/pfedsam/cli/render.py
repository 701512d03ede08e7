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
    code = "without code" if options.no_code else "with pfedsam's code"
    console.show(f"wrote {options.out}, {code}. On this machine: nvflare simulator {options.out} -w WORKSPACE")
    console.show(f"In a deployment: pfedsam watch {options.out} --kit KIT")
