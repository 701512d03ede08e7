"""The report as one HTML page that needs nothing else."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from pfedsam.prepare.thumbnail import COLOURS

ASSETS = Path(__file__).parent.parent / "assets"


def page(report: dict[str, Any], pictures: Sequence[tuple[str, bytes]]) -> str:
    """The page; `pictures` are JPEG with what is written below each."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    shown = [(text, base64.b64encode(data).decode()) for text, data in pictures]
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in COLOURS]
    left = by_reason(report["dropped"])
    return environment.get_template("prepare.html").render(r=report, left=left, pictures=shown, colours=colours)


def by_reason(dropped: Sequence[dict[str, str]]) -> list[tuple[str, str, list[str]]]:
    """Why, what to do, and the files that both hold for: a row a reason, each file named."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in dropped:
        groups.setdefault((one["why"], one["do"]), []).append(one["file"])
    return [(why, do, files) for (why, do), files in groups.items()]
