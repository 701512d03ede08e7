"""Checks before a run: versions, weights, data, free memory and disk."""

import datetime
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pfedsam.certificates import RENEW, terms
from pfedsam.config import Config
from pfedsam.data import datalist
from pfedsam.data.datalist import NAMES, SPLITS
from pfedsam.data.owners import require_own
from pfedsam.data.records import raw_rows
from pfedsam.data.taken import datalist_of
from pfedsam.errors import UserFault
from pfedsam.exchange.privacy import budget_of, epsilon, mechanism_of
from pfedsam.model import weights
from pfedsam.train.loop import steps_of

MARGIN = 1.15  # an estimate may be 15 % short


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it passed, what was found, and what to do if it failed."""

    name: str
    ok: bool
    found: str
    do: str = ""


def versions() -> list[Finding]:
    """Whether Python, FLARE, torch and the other packages fit pfedsam's requirements."""
    try:
        python, lines = metadata.metadata("pfedsam")["Requires-Python"], metadata.requires("pfedsam") or []
    except metadata.PackageNotFoundError:
        return [Finding("packages", False, "pfedsam is not installed", "install it with pip")]
    fits = platform.python_version() in SpecifierSet(python)
    wanted = [Requirement(line) for line in lines if "extra ==" not in line]
    lacking = [need for need in wanted if not _fits(need)]
    named = ", ".join(f"{name} {_version(name)}" for name in ("nvflare", "torch"))
    return [
        Finding("Python", fits, platform.python_version(), f"install Python {python}"),
        Finding(
            "packages",
            not lacking,
            "; ".join(f"{need.name} {_version(need.name)}" for need in lacking)
            or f"{named} and {len(wanted) - 2} others",
            "pip install " + " ".join(f"'{need}'" for need in lacking),
        ),
    ]


def certificates(kit: Path | None, at: datetime.datetime) -> list[Finding]:
    """Whether the certificates of a startup kit hold. One that ends soon passes, with what to do."""
    if kit is None:
        return []
    try:
        found = terms(kit, at)
    except UserFault as fault:
        return [Finding("certificates", False, "cannot be read", str(fault))]
    if not found:
        return [Finding("certificates", False, f"none in {kit}", "name the startup kit that you were given")]
    said = [f"{term}: {RENEW}" if term.short else str(term) for term in found]
    return [Finding("certificates", all(term.left >= 0 for term in found), "; ".join(said), RENEW)]


def weight_file(config: Config, folder: Path | None) -> Finding:
    """Whether the backbone's file exists and has the sha256 that is known, or that the job names."""
    if not config.model.pretrained:
        return Finding("weights", True, "none needed: the job starts from random weights")
    try:
        said = "as the job says" if config.model.weights else "as known"
        return Finding("weights", True, f"{weights.locate(config.model, folder).name}, sha256 {said}")
    except UserFault as fault:
        return Finding("weights", False, "missing, or another file than the job needs", str(fault))


def data(config: Config, folder: Path | None, site: str) -> Finding:
    """Whether the site's datalist can be read, with its counts."""
    if config.data.source == "synthetic":
        counts = config.data
        return Finding("data", True, f"synthetic: {counts.train} training, {counts.val} validation, {counts.test} test")
    if folder is None:
        return Finding("data", False, "no folder given", "give it with --data or in PFEDSAM_DATA")
    try:
        splits = datalist.read(datalist_of(folder, site, config), *config.data.rows_of(site))
    except UserFault as fault:
        return Finding("data", False, "cannot be read", str(fault))
    rows = ", ".join(f"{len(rows)} {split}" for split, rows in splits.items())
    patients = len({row.group for rows in splits.values() for row in rows})
    return Finding("data", True, f"site {site}: {rows} files of {patients} groups")


def owners(config: Config, folder: Path | None, sites: tuple[str, ...]) -> list[Finding]:
    """What is wrong with the data of sites that are all in one folder: two have an image in common. Else empty."""
    if config.data.source == "synthetic" or config.data.pool or folder is None:
        return []
    try:
        require_own({site: _images(config, folder, site) for site in sites})
    except UserFault as fault:
        return [Finding("data", False, f"of {', '.join(sites)} is not apart", str(fault))]
    return []


def _images(config: Config, folder: Path, site: str) -> list[Path]:
    """A site's image files. Empty if they cannot be read, which another check says."""
    try:
        path = datalist.find(folder, site)
        splits = datalist.read(path, *config.data.rows_of(site))
    except UserFault:
        return []
    return [path.parent / row.image for rows in splits.values() for row in rows]


def site_of(config: Config, folder: Path | None, among: tuple[str, ...] = ()) -> str:
    """The site of a data folder. Of several, or of those `among` them, it is the one with the most training rows.

    A folder that names no site, or none of those, is taken for the first of them.
    """
    if config.data.source == "synthetic" or folder is None:
        return "site-1"
    sizes = {site: size for site, size in _sites(folder) if site in among or not among}
    return max(sizes, key=lambda site: sizes[site], default=among[0] if among else "site-1")


def room(name: str, need: int, free: int) -> Finding:
    """Whether `need` bytes are free, with a margin."""
    lack = gigabytes(int(need * MARGIN) - free)
    do = f"free {lack} more, or make the job smaller (train.batch_size, model.image_size)"
    return Finding(name, free >= need * MARGIN, f"needs {gigabytes(need)}, free {gigabytes(free)}", do)


def privacy(config: Config, store: Path, site: str, patients: int, slices: int, *, rounds: int) -> Finding:
    """Whether a site's privacy budget pays all rounds of the job.

    Args:
        store: the site store's folder, which holds what earlier jobs spent.
        patients, slices: of the training split.
    """
    budget = budget_of(store, site, config)
    known = budget.spent()
    spent = known.mechanisms if known else ()
    of = "" if known else f" (no file {budget.path})"
    each = mechanism_of(config, patients, steps_of(slices, config.train))
    costs = [epsilon([*spent, replace(each, steps=each.steps * n)], config.privacy) for n in (0, rounds)]
    return Finding(
        "privacy",
        costs[1] <= config.privacy.epsilon,
        f"epsilon {costs[0]:.3g} spent{of}, {costs[1]:.3g} after {rounds} rounds, of {config.privacy.epsilon:g}"
        f" (delta {config.privacy.delta:g}, {patients} training patients)",
        "plan fewer rounds or steps, a smaller train.batch_size, or more privacy.noise",
    )


def gigabytes(size: float) -> str:
    """A size in words."""
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e9 else f"{size / 1e6:.1f} MB"


def _sites(folder: Path) -> Iterator[tuple[str, int]]:
    """Every site in a datalist below the folder, with the number of its training rows."""
    lists = [path for place in (folder, *sorted(folder.glob("*/"))) for n in NAMES if (path := place / n).is_file()]
    for path in lists:
        try:
            rows = [row for row in raw_rows(path) if row.get("split") == SPLITS[0]]
        except UserFault:
            continue
        names = [str(row.get("site", path.parent.name if path.parent != folder else "site-1")) for row in rows]
        yield from ((name, names.count(name)) for name in dict.fromkeys(names))


def _fits(need: Requirement) -> bool:
    if need.marker is not None and not need.marker.evaluate():
        return True
    return _version(need.name) != "missing" and need.specifier.contains(_version(need.name), True)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
