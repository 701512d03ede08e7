"""pfedsam forget: delete what this site has of a study, or of one of its runs. Only this verb deletes it."""

import argparse
import shutil
from pathlib import Path

from pfedsam.cli.console import show
from pfedsam.errors import UserFault, reason
from pfedsam.names import one_name, site_name

HELP = "delete what a site has of a study, or of one of its runs, from its store"
EXAMPLE = "pfedsam forget liver --site hospital-a --store /srv/pfedsam_store --yes"
STAYS = (
    "Not deleted by this verb: the ledger, the privacy budget, backups, and the run folders of this site's jobs, which"
    " keep its model (private.safetensors), the scores of its cases (cases.json) and pictures of patients"
    " (pictures.safetensors). Delete those yourself."
)
SHOWN = 5  # sites that a message names
RUNNING = "A job that is still running writes its run anew: stop it first."


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("study", help="the study's name")
    parser.add_argument("--site", required=True, help="the site's name")
    parser.add_argument("--store", type=Path, required=True, help="the site's store (setting store)")
    parser.add_argument("--run", default="", help="only this run; default: all runs of the study")
    parser.add_argument("--yes", action="store_true", help="delete; without it the files are only listed")


def serve(options: argparse.Namespace) -> int:
    """List the files, and delete them if told to. The ledger stays: it says what left this site."""
    from pfedsam.exchange.store import SiteStore

    study, site = one_name(options.study, "study"), site_name(options.site)
    folder = options.store / study / site
    if not folder.is_dir():
        raise UserFault(
            expected=f"a folder of site {site} in {options.store / study}",
            came=_there(options.store),
            do="correct STUDY, --site or --store",
        )
    found = SiteStore(options.store, study, site).files_of(options.run) if options.run else everything(folder)
    if not found:
        raise UserFault(expected=f"files of run {options.run} in {folder}", came="none", do="correct the run's name")
    for path in found:
        if options.yes:
            _delete(path)
        show(f"{'deleted' if options.yes else 'would delete'} {path}")
    show(" ".join([*["Nothing is deleted yet: add --yes."] * (not options.yes), *[RUNNING] * bool(options.run), STAYS]))
    return 0


def _there(store: Path) -> str:
    """The studies and sites of a store, as STUDY/SITE."""
    found = sorted(str(path.relative_to(store)) for path in store.glob("*/*") if path.is_dir())
    return ", ".join(found[:SHOWN]) + " and more" * (len(found) > SHOWN) if found else "none"


def everything(folder: Path) -> list[Path]:
    """All in a site's folder of a study, but the ledger. A job's claim is first: without it the job saves no more."""
    from pfedsam.exchange.claim import OWNER
    from pfedsam.exchange.ledger import LEDGER

    found = sorted(folder.iterdir(), key=lambda path: (path.name != OWNER, path))
    return [path for path in found if not path.name.startswith(LEDGER)]  # a rotated one has an ending


def _delete(path: Path) -> None:
    """Delete a file, a folder, or a link. What a link leads to stays.

    Raises:
        UserFault: the disk forbids it.
    """
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise UserFault(
            expected=f"to delete {path}",
            came=reason(error),
            do="give yourself permission to write in its folder, then run the same command again",
        ) from None
