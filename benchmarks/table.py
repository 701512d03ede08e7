"""Print the table of real results out of the runs that real.sh made: python benchmarks/table.py OUT DATA_ROOT."""

import csv
import json
import statistics as st
import sys
from pathlib import Path
from typing import Any

from pfedsam.train.metrics import METRICS

ROWS = (
    ("pfedsam", "global", "pFedSAM, global branch"),
    ("pfedsam", "personal", "pFedSAM, personal branch"),
    ("local", "personal", "local only"),
    ("pooled", "personal", "pooled (one site holds all)"),
)


def main() -> None:
    """One Markdown table a task: Dice per site, mean and worst site; spread over seeds where there are several."""
    out, root = map(Path, sys.argv[1:3])
    for task in ("brain_mri", "nuclei"):
        homes = {Path(r["image"]).name: r["site"] for r in csv.DictReader((root / task / "manifest.csv").open())}
        sites = sorted(set(homes.values()))
        print(f"\n### {task}\n\n| | seeds | " + " | ".join(sites) + " | mean Dice | worst | IoU | HD95 | ASSD |")
        print("|---" * (len(sites) + 7) + "|")
        for method, role, label in ROWS:
            runs = [by_site(p, role, homes) for p in sorted(out.glob(f"{task}_{method}_s[0-9]")) if finished(p)]
            if runs:
                print(f"| {label} | {len(runs)} | " + " | ".join(cells(runs, sites)) + " |")


def finished(run: Path) -> bool:
    """Whether the run ended with its final test."""
    path = run / "server/simulate_job/results.json"
    return path.exists() and bool(json.loads(path.read_text())["final"]["mean"])


def by_site(run: Path, role: str, homes: dict[str, str]) -> dict[str, dict[str, float]]:
    """Mean metrics of each hospital's test images, whichever simulated site held them."""
    scores: dict[str, list[Any]] = {}
    for path in run.glob("*/simulate_job/pfedsam/cases.json"):
        record = json.loads(path.read_text())
        for case, score in zip(record["cases"], record["scores"][role], strict=True):
            if score["dice"] is not None:
                scores.setdefault(homes[case], []).append(score)
    return {site: {m: st.mean(s[m] for s in rows) for m in METRICS} for site, rows in scores.items()}


def cells(runs: list[dict[str, dict[str, float]]], sites: list[str]) -> list[str]:
    """The row's cells: Dice per site, mean Dice, worst site's Dice, then the other metrics' means."""
    dice = [spread([run[s]["dice"] for run in runs]) for s in sites]
    mean = spread([st.mean(run[s]["dice"] for s in sites) for run in runs])
    worst = spread([min(run[s]["dice"] for s in sites) for run in runs])
    rest = [spread([st.mean(run[s][m] for s in sites) for run in runs], 1 if m != "iou" else 3) for m in METRICS[1:]]
    return [*dice, mean, worst, *rest]


def spread(values: list[float], digits: int = 3) -> str:
    """Mean, and standard deviation where there is more than one value."""
    tail = f" ± {st.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{st.mean(values):.{digits}f}{tail}"


if __name__ == "__main__":
    main()
