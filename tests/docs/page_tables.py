"""What a page's tables list, and JSON values held against them."""

import re
from collections.abc import Iterator
from types import NoneType
from typing import Any

from conftest import ROOT

TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "text": (str,),
    "boolean": (bool,),
    "object": (dict,),
    "scores": (dict,),
    "list": (list,),
    "null": (NoneType,),
}


def page(name: str) -> str:
    """The text of a page in docs/."""
    return (ROOT / "docs" / name).read_text()


def section(name: str, heading: str) -> str:
    """What a page says below a heading, down to the next one."""
    return re.split(r"^#+ ", page(name).partition(f"# {heading}\n")[2], flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of all tables in a text, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = {i for i, row in enumerate(cells) if set("".join(row)) <= set("-: ")}
    return [row for i, row in enumerate(cells) if not rules & {i, i + 1}]


def listed(name: str, heading: str) -> dict[str, str]:
    """The fields that a page lists below a heading, with their types."""
    return {row[0].strip("`"): row[1] for row in rows(section(name, heading))}


def block(name: str, language: str) -> str:
    """A page's only code block in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", page(name), re.DOTALL | re.MULTILINE)
    return str(found)


def fields(value: Any, known: dict[str, str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Each field of a JSON value as a page spells it, with its value; a key of anyone's own is SITE or NAME."""
    if path in known or not isinstance(value, dict | list):
        yield path, value
    elif isinstance(value, list):
        for one in value:
            yield from fields(one, known, f"{path}[]")
    else:
        any_ = next((word for word in ("SITE", "NAME") if any(k.startswith(f"{path}.{word}") for k in known)), None)
        for name, one in value.items():
            yield from fields(one, known, f"{path}.{any_ or name}" if path else name)


def check(values: list[Any], known: dict[str, str]) -> list[tuple[str, Any]]:
    """Hold JSON values against the fields that a page lists: the same names, and values of the types there."""
    found = [pair for value in values for pair in fields(value, known)]
    assert {name for name, _ in found} ^ set(known) == set()
    for name, value in found:
        allowed = [one for word in known[name].split(" or ") for one in TYPES[word]]
        assert type(value) in allowed, (name, value)
    return found
