"""The table a run ends with."""

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from pfedsam.record.measures import DISTANCES_SAY, METRICS, TITLES, measure, unit
from pfedsam.record.results import ROLES, took_part


def final_table(results: dict[str, Any]) -> str:
    """A line a site and branch (before, global, personal): the metrics on the test split, as text."""
    final, part = results["final"], took_part(results)
    title = f"{results['method']}, test split" + (" (synthetic data)" if results["synthetic"] else "")
    table = Table(title=title, caption="\n".join(filter(None, (patients_tested(results), DISTANCES_SAY))))
    for column in ("site", "branch"):
        table.add_column(column)
    for metric in METRICS:
        table.add_column(TITLES[metric], justify="right")
    table.add_column("unit")
    rows = {name if name in part else f"{name} (tested only)": roles for name, roles in sorted(final["sites"].items())}
    for name, roles in (rows | {"mean": final["mean"]}).items():
        table.add_section()
        for role in ROLES:
            row = roles.get(role) or {}
            cells = [measure(row.get(metric), metric) for metric in METRICS]
            table.add_row(name if role == ROLES[0] else "", role, *cells, unit(row))
    text = io.StringIO()
    Console(file=text, width=150).print(table)
    return text.getvalue()


def patients_tested(results: dict[str, Any]) -> str:
    """A sentence: how many patients each site's test split has; empty where no site says."""
    sites = sorted(results["final"]["sites"].items())
    told = [f"{name} {roles['patients']}" for name, roles in sites if roles.get("patients")]
    return f"Test patients: {', '.join(told)}." if told else ""
