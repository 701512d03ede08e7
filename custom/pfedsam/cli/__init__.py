"""The command line: what FLARE's own `nvflare` does not do. One module a verb, imported when it is served.

A verb's module has HELP (a line), EXAMPLE (a command that works), `arguments(parser)` and `serve(options)`.
Exit codes: 0 done; 1 done, and the answer is no (a check that failed); 2 the input is at fault.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from pfedsam import __version__
from pfedsam.cli.console import plain
from pfedsam.errors import UserFault
from pfedsam.quiet import quiet

VERBS: tuple[str, ...] = ("doctor", "prepare", "simulate", "render", "watch", "report")
VERBS += ("export", "verify", "predict", "convert", "synthetic", "completion")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    quiet()
    options = parser().parse_args(arguments)
    try:
        code = int(options.serve(options) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output, such as `head`, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own last flush
        return 1
    except UserFault as fault:
        print(plain(f"pfedsam: {fault}"), file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """All verbs, with an example each."""
    command = argparse.ArgumentParser(
        prog="pfedsam", description="Federated fine-tuning of SAM: what nvflare's own verbs do not do."
    )
    command.add_argument("--version", action="version", version=f"pfedsam {__version__}")
    verbs = command.add_subparsers(required=True, metavar="VERB")
    for name in VERBS:
        module = import_module(f"pfedsam.cli.{name}")
        verb = verbs.add_parser(name, help=module.HELP, description=module.HELP, epilog=f"example: {module.EXAMPLE}")
        module.arguments(verb)
        verb.set_defaults(serve=module.serve)
    return command
