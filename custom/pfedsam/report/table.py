"""The table a run ends with."""

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from pfedsam.report.results import ROLES, took_part
from pfedsam.train.metrics import METRICS


def final_table(results: dict[str, Any]) -> str:
    """Site x {before, global, personal}: Dice, IoU, HD95, ASSD on the test split, as text."""
    title = f"{results['method']}, test split" + (" (synthetic data)" if results["synthetic"] else "")
    table = Table(title=title, caption="HD95 and ASSD in mm, or pixels where the files know no spacing")
    table.add_column("site")
    for role in ROLES:
        for metric in METRICS:
            table.add_column(f"{role}\n{metric}", justify="right")
    part = took_part(results)
    tested = sorted(results["final"]["sites"].items())
    rows = {name if name in part else f"{name} (tested only)": roles for name, roles in tested}
    for name, roles in (rows | {"mean": results["final"]["mean"]}).items():
        if name == "mean":
            table.add_section()
        table.add_row(name, *(_cell((roles.get(role) or {}).get(m), m) for role in ROLES for m in METRICS))
    text = io.StringIO()
    Console(file=text, width=150).print(table)
    return text.getvalue()


def _cell(value: float | None, metric: str) -> str:
    return "-" if value is None else f"{value:.3f}" if metric in ("dice", "iou") else f"{value:.1f}"
