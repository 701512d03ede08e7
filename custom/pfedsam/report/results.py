"""results.json: its shape, and the means in it. docs/results.md describes each key."""

import hashlib
import platform
from pathlib import Path
from typing import Any

import torch

import pfedsam
from pfedsam.train.metrics import METRICS

ROLES = ("before", "global", "personal")
HIGHER_IS_BETTER = {"dice": True, "iou": True, "hd95": False, "assd": False}


def start(config: dict[str, Any], digest: str, base: str) -> dict[str, Any]:
    """The record of a run that has done no round yet."""
    return {
        "schema": 1,
        "method": config["method"],
        "synthetic": config["data"]["source"] == "synthetic",
        "config": config,
        "config_hash": digest,
        "base_hash": base,
        "versions": versions(),
        "rounds": [],
        "final": {"sites": {}, "mean": {}, "worst": {}},
    }


def versions() -> dict[str, str]:
    """Of this package, torch and Python; "code": a digest of its modules, as several may share a version."""
    found = hashlib.sha256()
    here = Path(pfedsam.__file__).parent
    for path in sorted(here.rglob("*.py")):
        found.update(f"{path.relative_to(here).as_posix()}\0".encode() + path.read_bytes())
    return {
        "pfedsam": pfedsam.__version__,
        "code": found.hexdigest()[:12],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def finish(results: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The record with mean and worst site of each role and metric, on the test split."""
    final = results["final"]
    means = {role: _over_sites(final["sites"], role, worst=False) for role in ROLES}
    worst = {role: _over_sites(final["sites"], role, worst=True) for role in ROLES}
    return {**results, "seconds": seconds, "final": {**final, "mean": means, "worst": worst}}


def _over_sites(sites: dict[str, Any], role: str, *, worst: bool) -> dict[str, float | None]:
    row: dict[str, float | None] = {}
    for metric in METRICS:
        values = [s[role][metric] for s in sites.values() if s.get(role) and s[role][metric] is not None]
        pick = (min if HIGHER_IS_BETTER[metric] else max) if worst else (lambda v: sum(v) / len(v))
        row[metric] = pick(values) if values else None
    return row
