"""pfedsam completion: what a shell needs to complete verbs, options and files."""

import argparse
from pathlib import Path

from pfedsam.cli.console import show

HELP = "print a script that lets bash, zsh or tcsh complete verbs, options and files"
EXAMPLE = "pfedsam completion bash"
SHELLS = ("bash", "zsh", "tcsh")


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("shell", choices=SHELLS, help='bash: eval "$(pfedsam completion bash)" in ~/.bashrc')


def serve(options: argparse.Namespace) -> None:
    """Print the script."""
    import shtab

    from pfedsam.cli import parser

    # `shell` is the name of a shell: no process is started
    show(*shtab.complete(_with_files(parser()), shell=options.shell).split("\n"))  # nosec B604


def _with_files(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser, each of whose paths is completed as a file; of its verbs too."""
    import shtab

    for action in parser._actions:
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        for verb in (action.choices or {}).values() if isinstance(action, argparse._SubParsersAction) else ():
            _with_files(verb)
    return parser
