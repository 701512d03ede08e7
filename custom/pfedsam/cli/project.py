"""pfedsam project: a project.yml to begin a deployment with."""

import argparse
from pathlib import Path

from pfedsam.cli.console import show

HELP = "write a project.yml to edit, for nvflare provision"
EXAMPLE = "pfedsam project project.yml"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("out", type=Path, metavar="FILE", help="the file to write; must not exist")


def serve(options: argparse.Namespace) -> None:
    """Write the file."""
    from pfedsam.errors import UserFault
    from pfedsam.files import write_atomic
    from pfedsam.shipped import project

    if options.out.exists():
        raise UserFault(expected="a file that does not exist yet", came=str(options.out), do="name another file")
    write_atomic(options.out, project().encode())
    show(f"wrote {options.out}; put in your names and hosts, then: nvflare provision -p {options.out} -w workspace")
