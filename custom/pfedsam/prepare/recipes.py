"""The public sets of the papers: which folder is which site, what mask values mean, how many cases there are."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pfedsam.data.folder import whole
from pfedsam.errors import UserFault
from pfedsam.prepare.archives import is_archive, unpack
from pfedsam.prepare.site import Watch, Wish, prepare
from pfedsam.prepare.softmaps import combined, has_softmaps


@dataclass(frozen=True)
class Recipe:
    """One public set.

    Attributes:
        what: a line on it, with its source.
        sites: name of the site's folder, and its number of cases where it is known for sure.
        table: what mask values mean.
        own: the same of a site where it differs.
    """

    what: str
    sites: dict[str, int | None]
    table: dict[str, int]
    own: dict[str, dict[str, int]] = field(default_factory=dict)


RECIPES = {
    "prostate": Recipe(
        what="T2 prostate MRI of six sites (SAML; used by FedFMS): whole prostate; counts by the literature",
        sites={"BIDMC": 12, "HK": 12, "I2CVB": 19, "ISBI": 30, "ISBI_1.5": 30, "UCL": 13},
        table={"1": 1, "2": 1},
    ),
    "fundus": Recipe(
        what="optic disc and cup, four sites (DoFE, FedDG; not FedFMS's): 1 rim, 2 cup; counts by the literature",
        sites={"Domain1": 101, "Domain2": 159, "Domain3": 400, "Domain4": 400},
        table={"255": 0, "128": 1, "0": 2},
    ),
    "fedfms-fundus": Recipe(
        what="optic disc and cup, whole pictures, four sets (FedFMS): 1 rim, 2 cup; counts as the sets state them",
        sites={"REFUGE": None, "ORIGA": 650, "G1020": 1020, "Drishti-GS1": 101},
        table={"1": 1, "2": 2},
        own={"REFUGE": {"255": 0, "128": 1, "0": 2}},
    ),
    "nuclei": Recipe(
        what="nuclei of seven groups (FedFMS), a folder each with images/ and labels/ as pictures; counts not known",
        sites=dict.fromkeys(
            (
                "PanNuke2Adrenal_gland",
                "PanNuke2Esophagus",
                "PanNuke3Bile-duct",
                "PanNuke3Uterus",
                "MoNuSAC2020",
                "TNBC",
                "MoNuSAC2018",
            )
        ),
        table={"*": 1},
    ),
}


def named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserFault: there is none.
    """
    if name not in RECIPES:
        every = "; ".join(f"{n}: {r.what}" for n, r in RECIPES.items())
        raise UserFault(expected=f"a recipe ({every})", came=name, do="name one of them")
    return RECIPES[name]


def cook(
    sources: Sequence[Path], out: Path, recipe: Recipe, wish: Wish, watch: Watch = lambda things, what: things
) -> dict[str, Any]:
    """Each site of a public set as a folder of its own in `out`; the report holds the sites' reports.

    `complete` tells whether every site is there with the number of cases that it should have.

    Args:
        sources: the archives as downloaded, or the folder in which they were unpacked.

    Raises:
        UserFault: an archive is unsafe or damaged, no site's folder is found, or none can be prepared.
    """
    with whole(out) as folder:
        unpacked = folder / ".unpacked"
        homes = _homes(_folders(sources, unpacked, watch), recipe)
        reports = {}
        for site, home in homes.items():
            if has_softmaps(home):
                home = combined(home, unpacked / f"{site}-masks")
            wished = replace(wish, site=site, table=recipe.own.get(site, recipe.table))
            reports[site] = prepare_into(home, folder / site, wished, watch)
        shutil.rmtree(unpacked, ignore_errors=True)
    faults = [fault for site, count in recipe.sites.items() if (fault := _missing(site, count, reports.get(site)))]
    return {"complete": not faults, "faults": faults, "sites": reports}


def prepare_into(home: Path, folder: Path, wish: Wish, watch: Watch) -> dict[str, Any]:
    """One site's report; a fault names the site."""
    try:
        return prepare([home], folder, wish, watch)
    except UserFault as fault:
        raise UserFault(expected=f"{fault.expected} at {wish.site}", came=fault.came, do=fault.do) from None


def _folders(sources: Sequence[Path], unpacked: Path, watch: Watch) -> list[Path]:
    """The folders to look in: those given, and one for the archives, given or lying in them."""
    packed = [p for s in sources for p in ([s] if s.is_file() else sorted(s.glob("*"))) if is_archive(p)]
    if strange := [s for s in sources if not s.is_dir() and s not in packed]:
        raise UserFault(
            expected=f"an archive (zip or tar) or a folder at {strange[0]}", came="neither", do="download it again"
        )
    for i, archive in enumerate(watch(packed, "archives")):
        (unpacked / str(i)).mkdir(parents=True)
        unpack(archive, unpacked / str(i))
    return [*(s for s in sources if s.is_dir()), *([unpacked] if packed else [])]


def _homes(folders: Sequence[Path], recipe: Recipe) -> dict[str, Path]:
    """The uppermost folder of each site's name."""
    found: dict[str, list[Path]] = {site: [] for site in recipe.sites}
    for root in folders:
        for path in (root, *sorted((p for p in root.rglob("*") if p.is_dir()), key=lambda p: len(p.parts))):
            site = path.name.removesuffix("_files")
            if site in found:
                found[site].append(path)
    homes = {site: paths[0] for site, paths in found.items() if paths}
    if not homes:
        raise UserFault(
            expected="folders named " + ", ".join(recipe.sites),
            came="none of them",
            do="give the archive as downloaded",
        )
    return homes


def _missing(site: str, count: int | None, report: dict[str, Any] | None) -> str | None:
    if report is None:
        return f"{site}: no folder of that name"
    if count is not None and report["cases"] != count:
        return f"{site}: {report['cases']} cases, where the set has {count}"
    return None
