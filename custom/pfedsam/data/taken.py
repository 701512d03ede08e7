"""Which datalist is a site's, and which rows of its training split it takes, by the job's settings and its method."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from pfedsam.config import Config
from pfedsam.data import datalist
from pfedsam.data.datalist import Row
from pfedsam.errors import UserFault
from pfedsam.files import seed_of

T = TypeVar("T")


def datalist_of(folder: Path, site: str, config: Config) -> Path:
    """The datalist of `site`, in `folder/site` or else in `folder`.

    Raises:
        UserFault: there is none. Or the job pools all sites, and the datalist has not several.
    """
    path = datalist.find(folder, site)
    if config.data.pool and config.data.source == "site" and len(names := datalist.sites(path)) < 2:
        raise UserFault(
            expected="a datalist of several sites, with a column site, for data.pool",
            came=f"{path}, with {f'rows of {names[0]} alone' if names else 'no such column'}",
            do="write the rows of all sites into one datalist with that column, or leave data.pool out",
        )
    return path


def taken(rows: list[Row], config: Config, site: str, *, unlabelled: bool) -> list[Row]:
    """The training rows that a site takes.

    Args:
        unlabelled: whether the method learns from images without labels. Otherwise they are left out.

    Raises:
        UserFault: none is left.
    """
    some = unmasked(limited(rows, config, site), config, site)
    found = [row for row in some if unlabelled or row.learned]
    if not found:
        raise UserFault(
            expected=f"a training image with a mask at {site} for {config.method}",
            came=f"{len(rows)} without",
            do="choose a method that learns from images alone, such as fedsemidg, or label some",
        )
    return found


def limited(rows: list[Row], config: Config, site: str) -> list[Row]:
    """At most `data.limit` of a site's rows in their order, drawn by the job's seed."""
    return at_most(config.data.limit.get(site, len(rows)), rows, config.seed)


def at_most(count: int, items: list[T], seed: int) -> list[T]:
    """All items, or `count` of them in their order, drawn by the seed."""
    drawn = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    return [items[i] for i in sorted(drawn[:count].tolist())]


def unmasked(rows: list[Row], config: Config, site: str) -> list[Row]:
    """The rows, of which `data.unlabelled` takes a share of the masks away, drawn by the job's seed."""
    count = round(config.data.unlabelled.get(site, 0.0) * len(rows))
    generator = torch.Generator().manual_seed(seed_of(f"{config.seed}/{site}/unlabelled"))
    drawn = set(torch.randperm(len(rows), generator=generator)[:count].tolist())
    return [replace(row, mask="", weak="") if i in drawn else row for i, row in enumerate(rows)]
