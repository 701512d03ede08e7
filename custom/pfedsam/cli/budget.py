"""pfedsam budget: what this site's jobs have spent of its patients' privacy."""

import argparse
from pathlib import Path

from pfedsam.cli.console import show
from pfedsam.errors import UserFault
from pfedsam.names import site_name

HELP = "say what a site's jobs have spent of its privacy budget"
EXAMPLE = "pfedsam budget --site hospital-a --store /srv/pfedsam_store"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--site", required=True, help="the site's name")
    parser.add_argument("--store", type=Path, required=True, help="the site's store (setting store)")
    parser.add_argument("--delta", type=float, default=1e-5, help="the delta of the printed epsilon; default: 1e-5")


def serve(options: argparse.Namespace) -> int:
    """Print the epsilon that is spent, and the mechanisms that spent it."""
    from pfedsam.config import PrivacyConfig
    from pfedsam.exchange.privacy import Budget, epsilon

    if not 0 < options.delta < 1:
        raise UserFault(
            expected="--delta between 0 and 1", came=f"{options.delta:g}", do="give a small one, such as 1e-5"
        )
    if not options.store.is_dir():
        came = "a file" if options.store.exists() else "nothing"
        do = "name the folder of the site's setting store (PFEDSAM_STORE)"
        raise UserFault(expected=f"the site's store, a folder, at {options.store}", came=came, do=do)
    budget = Budget(options.store, site_name(options.site))
    spent = budget.spent()
    if spent is None:
        show(f"Nothing is spent: there is no file {budget.path}.")
        return 0
    for one in spent.mechanisms:
        show(f"{one.steps} steps with noise {one.noise:g}, each with a patient by chance {one.rate:.3g}")
    total = epsilon(spent.mechanisms, PrivacyConfig(unit="patient", delta=options.delta))
    show(f"epsilon {total:.3g} at delta {options.delta:g}, in {len(spent.rounds)} rounds of all studies")
    return 0
