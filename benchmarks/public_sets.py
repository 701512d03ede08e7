"""Make the benchmark's sites from a downloaded public set, a folder for each site: public_sets.py --help.

The papers say which folder is which site, what mask values mean, and how many cases there are. The exit code is 1 if a
site is missing, or if its number of cases differs from the set's.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from archives import is_archive, unpack
from numpy.typing import NDArray
from PIL import Image

from pfedsam.data.folder import new_folder
from pfedsam.data.readable import readable
from pfedsam.errors import UserFault
from pfedsam.prepare.site import Wish, prepare
from pfedsam.prepare.splits import parse_shares

DISC, CUP = "_ODsegSoftmap.png", "_cupsegSoftmap.png"  # of Drishti-GS1
HALF = 128  # half of the experts who drew a soft map; FedFMS's release cuts at 100 of 255


@dataclass(frozen=True)
class Recipe:
    """One public set.

    Attributes:
        what: a line about it, with its source.
        sites: the name of each site's folder, and its number of cases if that is known for sure.
        table: what mask values mean.
        own: the same for single sites that differ.
    """

    what: str
    sites: dict[str, int | None]
    table: dict[str, int]
    own: dict[str, dict[str, int]] = field(default_factory=dict)


RECIPES = {
    "prostate": Recipe(
        what="T2 prostate MRI of six sites (SAML, used by FedFMS): whole prostate. Counts are the literature's",
        sites={"BIDMC": 12, "HK": 12, "I2CVB": 19, "ISBI": 30, "ISBI_1.5": 30, "UCL": 13},
        table={"1": 1, "2": 1},
    ),
    "fundus": Recipe(
        what="optic disc and cup, four sites (DoFE, FedDG, not FedFMS's): 1 rim, 2 cup. Counts are the literature's",
        sites={"Domain1": 101, "Domain2": 159, "Domain3": 400, "Domain4": 400},
        table={"255": 0, "128": 1, "0": 2},
    ),
    "fedfms-fundus": Recipe(
        what="optic disc and cup, whole pictures, four sets (FedFMS): 1 rim, 2 cup. Counts are the sets' own",
        sites={"REFUGE": None, "ORIGA": 650, "G1020": 1020, "Drishti-GS1": 101},
        table={"1": 1, "2": 2},
        own={"REFUGE": {"255": 0, "128": 1, "0": 2}},
    ),
    "nuclei": Recipe(
        what="nuclei of seven groups (FedFMS), each a folder with pictures in images/ and labels/. Counts are unknown",
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Make each site of the named set, and print what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = "\n".join(f"{name}: {recipe.what}" for name, recipe in RECIPES.items())
    parser.add_argument("set", choices=RECIPES)
    parser.add_argument("sources", type=Path, nargs="+", metavar="ARCHIVE", help="as downloaded, or its folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    parser.add_argument("--split", default="0.7,0.1,0.2", metavar="SHARES", help="shares of train, val and test")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other splits")
    options = parser.parse_args(arguments)
    try:
        wish = Wish(shares=parse_shares(options.split), seed=options.seed)
        answer = cook(options.sources, options.out, RECIPES[options.set], wish)
    except UserFault as fault:
        parser.exit(2, f"{fault}\n")
    for site, report in answer["sites"].items():
        left_out = len(report["dropped"])
        print(f"{site}: {report['cases']} cases, {left_out} left out; see {options.out / site / 'report.html'}")
    print("\n".join(answer["faults"]) or "All sites are there.")
    return 0 if answer["complete"] else 1


def cook(sources: Sequence[Path], out: Path, recipe: Recipe, wish: Wish) -> dict[str, Any]:
    """The sites' reports, after writing each site of a public set to its own folder in `out`.

    `complete` tells whether every site is there with its right number of cases.

    Args:
        sources: the archives as downloaded, or the folder in which they were unpacked.

    Raises:
        UserFault: an archive is unsafe or damaged, no site's folder is found, or none can be prepared.
    """
    with new_folder(out) as folder:
        unpacked = folder / ".unpacked"
        reports = {}
        for site, home in _homes(_folders(sources, unpacked), recipe).items():
            if any(home.rglob(f"*{DISC}")):
                home = combined(home, unpacked / f"{site}-masks")
            wished = replace(wish, site=site, table=recipe.own.get(site, recipe.table))
            reports[site] = _prepared(home, folder / site, wished)
        shutil.rmtree(unpacked, ignore_errors=True)
    faults = [fault for site, count in recipe.sites.items() if (fault := _missing(site, count, reports.get(site)))]
    return {"complete": not faults, "faults": faults, "sites": reports}


def _prepared(home: Path, folder: Path, wish: Wish) -> dict[str, Any]:
    """One site's report. A fault names the site."""
    try:
        return prepare([home], folder, wish)
    except UserFault as fault:
        raise UserFault(expected=f"{fault.expected} at {wish.site}", came=fault.came, do=fault.do) from None


def _folders(sources: Sequence[Path], unpacked: Path) -> list[Path]:
    """The folders to look in: the given ones, and one for the archives that are given or in those folders."""
    packed = [p for s in sources for p in ([s] if s.is_file() else sorted(s.glob("*"))) if is_archive(p)]
    if strange := [s for s in sources if not s.is_dir() and s not in packed]:
        raise UserFault(
            expected=f"an archive (zip or tar) or a folder at {strange[0]}", came="neither", do="download it again"
        )
    for i, archive in enumerate(packed):
        (unpacked / str(i)).mkdir(parents=True)
        unpack(archive, unpacked / str(i))
    return [*(s for s in sources if s.is_dir()), *([unpacked] if packed else [])]


def combined(home: Path, folder: Path) -> Path:
    """Write Drishti-GS1 to `folder` with images/ and masks/. Each picture has soft maps of the disc and of the cup.

    The masks hold 1 for the rim (disc without cup) and 2 for the cup.

    Raises:
        UserFault: a picture or a map is missing or damaged.
    """
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for disc in sorted(home.rglob(f"*{DISC}")):
        name = disc.name.removesuffix(DISC)
        picture = next((p for p in sorted(home.rglob(f"{name}.*")) if p.suffix in (".png", ".jpg")), None)
        cup = disc.with_name(name + CUP)
        if picture is None or not cup.is_file():
            raise UserFault(
                expected=f"the picture and both soft maps of {name}", came="not all", do="download the set again"
            )
        (folder / "images" / picture.name).symlink_to(picture.resolve())
        mask = np.where(_map(cup) >= HALF, 2, _map(disc) >= HALF).astype(np.uint8)
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    return folder


def _map(path: Path) -> NDArray[np.uint8]:
    with readable(path), Image.open(path) as image:
        return np.asarray(image.convert("L"))


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
            do="name the archive as downloaded",
        )
    return homes


def _missing(site: str, count: int | None, report: dict[str, Any] | None) -> str | None:
    if report is None:
        return f"{site}: no folder of that name"
    if count is not None and report["cases"] != count:
        return f"{site}: {report['cases']} cases, but the set has {count}"
    return None


if __name__ == "__main__":
    sys.exit(main())
