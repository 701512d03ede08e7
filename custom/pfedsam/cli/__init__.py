"""The command line: what FLARE's own `nvflare` does not do. Each verb is one module, imported when the parser is built.

A verb's module has HELP (one line), EXAMPLE (a command that works), `arguments(parser)` and `serve(options)`. If it can
go on after Ctrl-C, its STOPPED says how.
Exit codes: 0 success; 1 a check or a file failed; 2 the input is wrong; 130 stopped by Ctrl-C.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from pfedsam import __version__
from pfedsam.cli.console import show
from pfedsam.errors import UserFault, reason
from pfedsam.quiet import quiet
from pfedsam.umask import private_files

VERBS: tuple[str, ...] = ("doctor", "prepare", "simulate", "render", "watch", "report")
VERBS += ("export", "verify", "predict", "convert", "back", "forget", "budget", "synthetic", "project", "completion")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    options = argparse.Namespace(stopped="")
    try:
        quiet()
        options = parser().parse_args(arguments)
        private_files()
        code = int(options.serve(options) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of the output, such as `head`, has stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own last flush
        return 1
    except KeyboardInterrupt:
        show(f"pfedsam: stopped{options.stopped}", error=True)
        return 130
    except UserFault as fault:
        return _refused(fault)
    except OSError as error:  # a library's, or of a place that no module has named
        return _refused(_of_the_system(error))


def _refused(fault: UserFault) -> int:
    show(*f"pfedsam: {fault}".split("\n"), error=True)  # the line breaks are its own
    return 2


def _of_the_system(error: OSError) -> UserFault:
    """What the operating system refused, as a fault that names the file or folder."""
    return UserFault(
        expected=f"to read or write {error.filename or 'a file'}",
        came=reason(error),
        do="correct its path or its permissions, or free space on its disk",
    )


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs, each with an example."""
    command = argparse.ArgumentParser(
        prog="pfedsam", description="Federated fine-tuning of Segment Anything: what nvflare does not do."
    )
    command.add_argument("--version", action="version", version=f"pfedsam {__version__}")
    verbs = command.add_subparsers(required=True, metavar="VERB")
    for name in VERBS:
        module = import_module(f"pfedsam.cli.{name}")
        verb = verbs.add_parser(name, help=module.HELP, description=module.HELP, epilog=f"example: {module.EXAMPLE}")
        module.arguments(verb)
        verb.set_defaults(serve=module.serve, stopped=getattr(module, "STOPPED", ""))
    return command
