"""The table a run ends with."""

import io
from typing import Any

from rich.box import Box
from rich.console import Console
from rich.table import Table

from pfedsam.record.measures import DISTANCES_SAY, METRICS, TITLES, measure, unit
from pfedsam.record.results import ROLES, took_part

WIDTH, LEAST = 100, 70  # columns; in fewer than the least a number would be cut
LINES = Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)  # ASCII: a log file may know no other


def final_table(results: dict[str, Any], width: int = WIDTH) -> str:
    """A line a site and branch (before, global, personal): the metrics on the test split, as text of ASCII lines.

    A site's name that is too long goes on in the next line; a number is never cut.

    Args:
        width: columns that no line exceeds; at least 70 are taken.
    """
    final, part = results["final"], took_part(results)
    title = f"{results['method']}, test split" + (" (synthetic data)" if results["synthetic"] else "")
    table = Table(box=LINES, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("\nsite", overflow="fold")
    table.add_column("\nbranch", no_wrap=True)
    for metric in METRICS:
        above, _, below = TITLES[metric].rpartition(" ")
        table.add_column(f"{above}\n{below}", justify="right", no_wrap=True)
    table.add_column("\nunit", no_wrap=True)
    rows = {name if name in part else f"{name} (tested only)": roles for name, roles in sorted(final["sites"].items())}
    for name, roles in (rows | {"mean": final["mean"]}).items():
        table.add_section()
        for role in ROLES:
            row = roles.get(role) or {}
            cells = [measure(row.get(metric), metric) for metric in METRICS]
            table.add_row(name if role == ROLES[0] else "", role, *cells, unit(row))
    text = io.StringIO()
    console = Console(file=text, width=max(width, LEAST))
    console.print(
        title, table, *filter(None, (patients_tested(results), DISTANCES_SAY)), sep="\n", highlight=False, markup=False
    )
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def patients_tested(results: dict[str, Any]) -> str:
    """A sentence: how many patients each site's test split has; empty where no site says."""
    sites = sorted(results["final"]["sites"].items())
    told = [f"{name} {roles['patients']}" for name, roles in sites if roles.get("patients")]
    return f"Test patients: {', '.join(told)}." if told else ""
