"""pfedsam render: FLARE's folder of a job, made from a settings file."""

import argparse
from pathlib import Path

HELP = "write FLARE's folder of a job, with its code, for the simulator, the console and nvflare job submit"
EXAMPLE = "pfedsam render jobs/polyp.json /tmp/job --set method=ditto --set seed=1"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    add = parser.add_argument
    add("job", type=Path, help="a settings file of jobs/, or a job folder")
    add("out", type=Path, help="the folder to write; must not exist")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    add("--rounds", type=int, help="change the number of rounds")
    add("--continue", dest="continues", default="", metavar="RUN", help="go on with a run, by its name or latest")
    add("--begin", default="", metavar="STUDY/RUN", help="start from the shared tensors of a finished run")
    add("--no-code", action="store_true", help="leave the code out: a deployment's sites have it installed")
    add("--sites", help="names of the sites, by comma; default: all that connect")


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
    print(f"wrote {options.out}; submit it with: pfedsam watch {options.out} --kit KIT")
