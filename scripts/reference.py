"""Writes docs/settings.md and docs/cli.md from the code: `make reference`. A test compares both with the code.

The texts are the code's own. A setting's meaning is the comment beside or above it, the string below it, or its entry
under "Attributes:" in its class's docstring. An option's meaning is its help.
"""

import argparse
import ast
import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import textwrap
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pfedsam import cli, methods
from pfedsam.bounds import KEY, Bounds
from pfedsam.config import Config
from pfedsam.jobs import Job
from pfedsam.methods.base import NoSettings
from pfedsam.settings import OF_METHOD, USUAL

DOCS = Path(__file__).parent.parent / "docs"
MADE = "<!-- Written by scripts/reference.py (make reference). Change the text in the code, then run it again. -->"
WIDTH = 110
PLAIN = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", NoneType: "`null`", Any: "value"}

SETTINGS = """
# Settings of a job

A job is one JSON file, such as `jobs/polyp.json`. Its settings are in the object `settings`.
The other keys of the file say who takes part and for how long.

- In the file a dot is an object inside an object: `{"train": {"lr": 0.001}}` is `train.lr`.
- A verb that reads a job takes `--set train.lr=0.001` to change a setting for one call.
- The value after `=` is JSON. What is no JSON is plain text.
- A setting that you leave out has its default. An unknown name, a wrong type or a number out of bounds is an error.
- Some settings depend on each other. An impossible pair is an error that names both.
- All sites and the server must have the same settings. Each message carries their digest.

Where a site keeps its data, weights and store is no setting of the job: [data.md](data.md) lists those.
"""

JOB = """
These keys are beside `settings` in the file. `--set` does not change them.
Some verbs replace a few of them by options, such as `--rounds`: [cli.md](cli.md).
"""

METHOD = """
`method` is a name, or an object with the name and the method's own settings: `{"name": "pfedsam", "temperature": 2}`.
With `--set`, write `method=fedavg` or `method.temperature=2`.
"""

CLI = """
# Command line

`pfedsam` does what FLARE's own command `nvflare` does not do. `pfedsam VERB --help` shows what this page shows.

Options that change a setting of the job (`--set`) take the names in [settings.md](settings.md).
"""


def main() -> None:
    """Write both pages."""
    for name in [name for name in os.environ if name.startswith("PFEDSAM_")]:
        del os.environ[name]  # some options take their defaults from there
    for name, text in pages().items():
        (DOCS / name).write_text(text)


def pages() -> dict[str, str]:
    """Both pages' texts, by file name."""
    return {"settings.md": settings_page(), "cli.md": cli_page()}


def settings_page() -> str:
    """All settings of a job, each method's own too."""
    hints = get_type_hints(Config)
    parts = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    own = [f for f in dataclasses.fields(Config) if f.name not in (*OF_METHOD, *parts)]
    text = [MADE, SETTINGS, "## The job's own keys", JOB, table_of(Job, "", dataclasses.fields(Job))]
    text += ["## Settings of every method", "These have no dot in their names.", table_of(Config, "", own)]
    for name, kind in parts.items():
        text += [f"### {name}", first_sentence(kind), table_of(kind, f"{name}.", dataclasses.fields(kind))]
    return joined([*text, "## Methods", METHOD, table(("`method.name`", "what it is"), method_rows()), *own_settings()])


def method_rows() -> Iterator[tuple[str, str]]:
    """Each method that pfedsam brings."""
    for name in sorted(methods.OURS):
        default = " (default)" if name == USUAL else ""
        yield f"`{name}`{default}", first_sentence(importlib.import_module(f"pfedsam.methods.{name}"))


def own_settings() -> Iterator[str]:
    """A heading and a table for each class of methods' own settings."""
    named: dict[type, list[str]] = {}
    for name in sorted(methods.OURS):
        named.setdefault(methods.get(name).settings, []).append(name)
    for kind, names in named.items():
        if kind is not NoSettings:
            title = ", ".join(f"`{name}`" for name in names)
            yield from (f"### Own settings of {title}", first_sentence(kind))
            yield table_of(kind, "method.", dataclasses.fields(kind))
    yield f"No other settings: {', '.join(f'`{name}`' for name in named.get(NoSettings, []))}."


def table_of(kind: Any, above: str, fields: Iterable["dataclasses.Field[Any]"]) -> str:
    """A row a field of a dataclass: name, type, default, bounds, meaning."""
    hints, told = get_type_hints(kind), dict[str, str]()
    for one in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        told |= meanings(one)
    rows = [
        (
            f"`{above}{f.name}`",
            spell(hints[f.name]),
            default_of(f),
            within(f.metadata.get(KEY)),
            as_json(told.get(f.name, "")),
        )
        for f in fields
    ]
    return table(("name", "type", "default", "bounds", "meaning, and why"), rows)


def as_json(meaning: str) -> str:
    """A meaning with JSON's words for Python's, as a job's file wants them."""
    words = {"None": "`null`", "True": "`true`", "False": "`false`"}
    return re.sub(r"\b(None|True|False)\b", lambda found: words[found[0]], meaning)


def default_of(field: "dataclasses.Field[Any]") -> str:
    """A field's default as JSON."""
    made = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    return "none" if value is dataclasses.MISSING else f"`{json.dumps(value, default=dataclasses.asdict)}`"


def within(bounds: Bounds | None) -> str:
    """Where a number may lie."""
    if bounds is None:
        return ""
    low, high = (f"{end:,}".replace(",", " ") for end in (bounds.least, bounds.most))
    if bounds.above or bounds.below:
        return f"{'above' if bounds.above else 'from'} {low}, {'below' if bounds.below else 'at most'} {high}"
    return f"{low} to {high}"


def spell(hint: Any) -> str:
    """A type in words."""
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(spell, inner))
    if get_origin(hint) is dict:
        return f"object: a {spell(inner[1])} for each name"
    if get_origin(hint) in (list, tuple):
        return f"list of {spell(inner[0])}s"
    return PLAIN.get(hint, "object")


def meanings(kind: type) -> dict[str, str]:
    """What the source of a dataclass says of each field."""
    source = textwrap.dedent(inspect.getsource(kind))
    (made,) = ast.parse(source).body
    assert isinstance(made, ast.ClassDef)
    beside = dict(comments(source))
    lines, told = source.splitlines(), attributes(kind.__doc__ or "")
    for node, after in zip(made.body, [*made.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first, last = node.lineno, node.end_lineno or node.lineno
            while lines[first - 2].lstrip().startswith("#"):
                first -= 1
            found = [beside[line] for line in range(first, last + 1) if line in beside]
            text = " ".join([*found, *string_of(after)])
            told |= {node.target.id: text} if text else {}
    return told


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Each comment of a source, with its line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ").rstrip()


def string_of(node: ast.stmt | None) -> list[str]:
    """The text of a string that is a statement of its own, as below an attribute."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return [" ".join(node.value.value.split())]
    return []


def attributes(docstring: str) -> dict[str, str]:
    """The entries under "Attributes:" of a docstring; one may be of several names."""
    entries = re.split(r"^Attributes:\n", inspect.cleandoc(docstring), flags=re.MULTILINE)[1:]
    told: dict[str, str] = {}
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", "".join(entries), re.MULTILINE):
        told |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return told


def cli_page() -> str:
    """Every verb with its options."""
    command = cli.parser()
    (verbs,) = (action for action in command._actions if isinstance(action, argparse._SubParsersAction))
    text = [MADE, CLI, table(("verb", "what it does"), verb_rows(verbs.choices)), "## Exit codes"]
    text += [table(("code", "when"), exit_codes(cli.__doc__ or ""))]
    if rows := list(options(command)):
        text += [
            "## pfedsam",
            "Options of the command itself:",
            table(("option", "what"), [(r[0], r[3]) for r in rows]),
        ]
    for name, verb in verbs.choices.items():
        text += verb_part(name, verb)
    return joined(text)


def verb_rows(verbs: dict[str, argparse.ArgumentParser]) -> Iterator[tuple[str, str]]:
    """A line a verb."""
    for name, verb in verbs.items():
        yield f"[`{name}`](#pfedsam-{name})", verb.description or ""


def verb_part(name: str, verb: argparse.ArgumentParser) -> list[str]:
    """A verb's heading, purpose, example and options."""
    example = importlib.import_module(f"{cli.__name__}.{name}").EXAMPLE
    shown = f"```sh\n{example}\n```"
    rows = table(("argument", "takes", "default", "meaning"), list(options(verb)))
    return [f"## pfedsam {name}", sentence(verb.description or ""), shown, rows]


def options(verb: argparse.ArgumentParser) -> Iterator[tuple[str, str, str, str]]:
    """A row an argument: name, what it takes, default, meaning."""
    for action in verb._actions:
        hidden = isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        if not hidden and action.help != argparse.SUPPRESS:
            name = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.dest}`"
            meaning = (action.help or "") % {**vars(action), "prog": verb.prog}
            yield name, takes(action), usual(action), meaning


def takes(action: argparse.Action) -> str:
    """The value of an argument."""
    if action.choices:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    if action.nargs == 0:
        return ""
    names = action.metavar if isinstance(action.metavar, tuple) else (action.metavar or action.dest.upper(),)
    many = {"*": ", any number", "+": ", one or more"}.get(str(action.nargs), "")
    repeated = ", may be repeated" if isinstance(action, argparse._AppendAction) else ""
    return f"`{' '.join(names)}`{many}{repeated}"


def usual(action: argparse.Action) -> str:
    """The default of an argument, or that it must be given."""
    if action.required:
        return "required"
    told = action.default is not argparse.SUPPRESS and (action.default or type(action.default) in (int, float))
    return f"`{action.default}`" if told else ""


def exit_codes(docstring: str) -> list[tuple[str, str]]:
    """The codes and their meanings, as the docstring of the command line says them."""
    told = docstring.partition("Exit codes:")[2]
    rows = re.findall(r"\b(\d)[ :=]\s*([^;.]+)", told)
    if len(rows) < 3:
        raise SystemExit('expected "Exit codes: 0 ...; 1 ...; 2 ..." in the docstring of pfedsam.cli')
    return [(code, " ".join(text.split())) for code, text in rows]


def first_sentence(thing: object) -> str:
    """The first sentence of the docstring of a class or module."""
    first = re.split(r"(?<=\.)\s+(?=[A-Z])|\n\n", inspect.getdoc(thing) or "")[0]
    return " ".join(first.split())


def sentence(text: str) -> str:
    """A text with a capital and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def joined(parts: Iterable[str]) -> str:
    """A page's paragraphs; those that are too wide are broken."""
    blocks = [part.strip("\n") for part in parts]
    wide = [textwrap.fill(b, WIDTH) if "\n" not in b and b[:1] not in "|#<" else b for b in blocks]
    return "\n\n".join(wide) + "\n"


if __name__ == "__main__":
    main()
