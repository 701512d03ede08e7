"""Masks that `pfedsam predict` wrote, by the record that it leaves in its folder."""

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from pfedsam.errors import UserFault
from pfedsam.files import lines_of
from pfedsam.layout import PREDICTED
from pfedsam.names import in_ascii


def note(masks: Iterable[Path]) -> list[str]:
    """A note on masks that a model drew: scores against them say nothing of the patients. None: no note."""
    found = [mask for mask in masks if drawn_by_model(mask)]
    if not found:
        return []
    return [
        f"{len(found)} mask(s) were written by pfedsam predict (such as {found[0].name}). Take them only if a person"
        " has corrected them. A model that is tested on its own masks looks better than it is."
    ]


def drawn_by_model(mask: Path) -> bool:
    """Whether the record in the mask's folder, or in one above it, names the mask."""
    mask = Path(os.path.abspath(mask))
    return any((files := _named(up / PREDICTED)) and in_ascii(mask.relative_to(up)) in files for up in mask.parents)


@lru_cache(maxsize=1024)
def _named(record: Path) -> frozenset[str]:
    """The files that a record names; none where it cannot be read."""
    found: set[str] = set()
    with suppress(UserFault):
        for line in lines_of(record):
            with suppress(TypeError, KeyError):
                found |= set(map(str, line["files"]))
    return frozenset(found)
