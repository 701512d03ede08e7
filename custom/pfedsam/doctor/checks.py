"""What must hold before a run: versions, weights, data, free memory and disk."""

import platform
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pfedsam.config import Config
from pfedsam.data import datalist
from pfedsam.data.datalist import NAMES, SPLITS
from pfedsam.errors import UserFault
from pfedsam.model import weights

SOURCE = Path(__file__).parent.parent.parent.parent  # the checkout, where the package is not installed
MARGIN = 1.15  # an estimate may be 15 % short


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, whether it is as it must be, what was found, what to do if not."""

    name: str
    ok: bool
    found: str
    do: str = ""


def versions() -> list[Check]:
    """Python, FLARE, torch and the rest against what pfedsam requires."""
    python, wanted = requirements()
    ok = platform.python_version() in SpecifierSet(python)
    found = [Check("Python", ok, platform.python_version(), f"install Python {python}")]
    misfits = [text for need in wanted if (text := _misfit(need))]
    named = ", ".join(f"{name} {_version(name)}" for name in ("nvflare", "torch"))
    do = "pip install " + " ".join(f"'{need}'" for need in wanted if _misfit(need))
    return [*found, Check("packages", not misfits, "; ".join(misfits) or f"{named} and {len(wanted) - 2} others", do)]


def requirements() -> tuple[str, list[Requirement]]:
    """What pfedsam needs of Python and of packages, from its metadata, or from its checkout's files."""
    try:
        about = metadata.metadata("pfedsam")
        lines = [line for line in metadata.requires("pfedsam") or [] if "extra ==" not in line]
        return about["Requires-Python"], [Requirement(line) for line in lines]
    except metadata.PackageNotFoundError:
        return _of_checkout()


def weight_file(config: Config, folder: Path | None) -> Check:
    """Whether the backbone's file is there and is the known one, by its sha256."""
    if not config.model.pretrained:
        return Check("weights", True, "none needed: the job starts from random ones")
    try:
        return Check("weights", True, f"{weights.locate(config.model.backbone, folder).name}, sha256 as known")
    except UserFault as fault:
        return Check("weights", False, "missing or not the known file", str(fault))


def data(config: Config, folder: Path | None, site: str) -> Check:
    """Whether the site's datalist can be read, with its counts."""
    if config.data.source == "synthetic":
        counts = config.data
        return Check("data", True, f"synthetic: {counts.train} training, {counts.val} validation, {counts.test} test")
    if folder is None:
        return Check("data", False, "no folder named", "name it with --data or in PFEDSAM_DATA")
    try:
        splits = datalist.read(datalist.find(folder, site), None if config.data.pool else site)
    except UserFault as fault:
        return Check("data", False, "cannot be read", str(fault))
    rows = ", ".join(f"{len(rows)} {split}" for split, rows in splits.items())
    patients = len({row.group for rows in splits.values() for row in rows})
    return Check("data", True, f"site {site}: {rows} files of {patients} groups")


def site_of(config: Config, folder: Path | None, among: tuple[str, ...] = ()) -> str:
    """The site that a folder of data is for; of several (or of those `among` them), the one with most training rows."""
    if config.data.source == "synthetic" or folder is None:
        return "site-1"
    sizes = {site: size for site, size in _sites(folder) if site in among or not among}
    return max(sizes, key=lambda site: sizes[site], default="site-1")


def room(name: str, need: int, free: int) -> Check:
    """Whether so many bytes are free, with a margin."""
    found = f"needs {gigabytes(need)}, free {gigabytes(free)}"
    lack = gigabytes(int(need * MARGIN) - free)
    do = f"free {lack} more, or make the job smaller (train.batch_size, model.image_size)"
    return Check(name, free >= need * MARGIN, found, do)


def gigabytes(size: float) -> str:
    """A size in words."""
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e9 else f"{size / 1e6:.1f} MB"


def _sites(folder: Path) -> Iterator[tuple[str, int]]:
    """Every site that a datalist below the folder is for, with its training rows."""
    lists = [path for place in (folder, *sorted(folder.glob("*/"))) for n in NAMES if (path := place / n).is_file()]
    for path in lists:
        try:
            rows = [row for row in datalist.raw_rows(path) if row.get("split") == SPLITS[0]]
        except UserFault:
            continue
        names = [str(row.get("site", path.parent.name if path.parent != folder else "site-1")) for row in rows]
        yield from ((name, names.count(name)) for name in dict.fromkeys(names))


def _misfit(need: Requirement) -> str:
    if need.marker is not None and not need.marker.evaluate():
        return ""
    version = _version(need.name)
    return "" if version != "missing" and need.specifier.contains(version, True) else f"{need.name} {version}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _of_checkout() -> tuple[str, list[Requirement]]:
    lines = (line.split("#")[0].strip() for line in (SOURCE / "requirements.txt").read_text().splitlines())
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    return project["requires-python"], [Requirement(line) for line in lines if line]
