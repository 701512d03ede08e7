"""The page of failures quotes messages as the program, or FLARE, writes them."""

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from conftest import ROOT

PAGE = (ROOT / "docs/faq.md").read_text()
GAP = re.compile(r"\.{3}|\d+|^expected |(?:^|; )came |\n")  # what differs, and what UserFault adds
BOLD = re.findall(r"\*\*(.+?)\*\*", PAGE, re.DOTALL)
SPANS = [" ".join(span.split()) for bold in BOLD for span in re.findall(r"`([^`]+)`", bold)]
QUOTES = [span for span in SPANS if " " in span and not span.startswith("pfedsam ")]


@cache
def texts(package: str, *, raw: bool) -> list[str]:
    """Each file of a package: its source, or its string literals with a line break for each value that is filled in."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    sources = [path.read_text() for path in sorted(Path(spec.origin).parent.rglob("*.py"))]
    return sources if raw else ["\n".join(_strings(ast.parse(source))) for source in sources]


def _strings(tree: ast.Module) -> list[str]:
    parts = [node.values for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    inside = {id(part) for values in parts for part in values}
    alone = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in inside]
    joined = ["".join(str(v.value) if isinstance(v, ast.Constant) else "\n" for v in values) for values in parts]
    return [*joined, *(node.value for node in alone if isinstance(node.value, str))]


def is_written(quote: str, package: str, *, raw: bool = False) -> bool:
    """Whether one file of the package has all the words of a quote between its gaps."""
    pieces = [piece for piece in GAP.split(quote) if re.search("[a-z]", piece, re.IGNORECASE)]
    return any(all(piece.strip() in text for piece in pieces) for text in texts(package, raw=raw))


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_is_one_that_the_program_or_flare_writes(quote: str) -> None:
    assert is_written(quote, "pfedsam") or is_written(quote, "nvflare", raw=True)


def test_a_message_that_nobody_writes_is_found_out() -> None:
    assert len(QUOTES) > 20
    assert not is_written("expected the mask ... upon the place of its image", "pfedsam")
