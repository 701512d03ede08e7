"""results.json: its keys, and the means in it. docs/results.md describes each key."""

import hashlib
import platform
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

import pfedsam
from pfedsam.record.measures import DISTANCES, HIGHER_IS_BETTER, METRICS, MIXED, unit_of

UNKNOWN = "a run that the server does not know"  # in the place of a run's name, which has no spaces
ROLES = ("before", "global", "personal")


def _code() -> str:
    found = hashlib.sha256()
    here = Path(pfedsam.__file__).parent
    for path in sorted(here.rglob("*.py")):
        found.update(f"{path.relative_to(here).as_posix()}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


CODE = _code()  # taken when modules are loaded, because files may change while a process runs


def start(config: dict[str, Any], digest: str, base: str, begun: dict[str, Any] | None = None) -> dict[str, Any]:
    """The record of a run before its first round. `begun` is the other run whose model it begins with."""
    return {
        "schema": 1,
        "method": config["method"]["name"],
        "synthetic": config["data"]["source"] == "synthetic",
        "config": config,
        "config_hash": digest,
        "base_hash": base,
        "begun_with": begun or {},
        "versions": versions(),
        "rounds": [],
        "final": {"sites": {}, "mean": {}, "worst": {}},
    }


def versions(earlier: dict[str, str] | None = None) -> dict[str, str]:
    """The versions of this package, torch and Python. "code" is a digest of the package's modules.

    Args:
        earlier: the versions of a run's earlier part. If they differ, both are named, the earlier first.
    """
    now = {
        "pfedsam": pfedsam.__version__,
        "code": CODE,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return {key: joined((earlier or {}).get(key, ""), value) for key, value in now.items()}


def joined(earlier: str, now: str) -> str:
    """The earlier versions and the present one, in order, each once, joined by commas."""
    return ", ".join(dict.fromkeys([*filter(None, earlier.split(", ")), now]))


def replanned(results: dict[str, Any]) -> str:
    """What a change of the planned rounds did to the run's schedule. Empty if it did nothing."""
    planned, train = results.get("planned", {}), results["config"].get("train", {})
    if not planned.get("earlier") or train.get("schedule") == "constant":
        return ""
    numbers = ", then ".join(map(str, [*planned["earlier"], planned["rounds"]]))
    return f"Planned for {numbers} rounds: the learning rates do not follow one schedule over all rounds."


def sites_of(rounds: list[dict[str, Any]]) -> list[str]:
    """The sorted names of the sites that trained in one of a record's rounds."""
    return sorted({site for entry in rounds for site in entry["sites"]})


def took_part(results: dict[str, Any]) -> list[str]:
    """The sites that trained. In a record without any, all sites that were tested."""
    return sites_of(results["rounds"]) or sorted(results["final"]["sites"])


def as_known(report: dict[str, Any], runs: Collection[str]) -> dict[str, Any]:
    """A site's report for the record. The run of its private part is named only if the server knows one of that name.

    Else a site could write any text into the record. An honest site may name a run whose checkpoints are deleted, so
    such a report is not refused.

    Args:
        runs: the names of the runs that the server knows.
    """
    private = report["private"]
    unknown = private and private["run"] not in runs
    return report | {"private": private | {"run": UNKNOWN}} if unknown else report


def private_begun(results: dict[str, Any], reports: dict[str, Any]) -> dict[str, Any]:
    """`begun_with` and the private part of each site in its first round: a run and its round. {}: as drawn.

    Args:
        reports: those of the sites in a finished round.
    """
    known = results["begun_with"].get("private", {})
    new = {site: report["private"] for site, report in reports.items() if site not in known}
    return {**results["begun_with"], "private": {**new, **known}}


def finish(results: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The record with the mean and the worst site of each role and metric on the test split. Only sites that took part
    count."""
    final, part = results["final"], took_part(results)
    sites = {name: roles for name, roles in final["sites"].items() if name in part}
    means = {role: _over_sites(sites, role, worst=False) for role in ROLES}
    worst = {role: _over_sites(sites, role, worst=True) for role in ROLES}
    return {**results, "seconds": seconds, "final": {**final, "mean": means, "worst": worst}}


def _over_sites(sites: dict[str, Any], role: str, *, worst: bool) -> dict[str, Any]:
    """A role's means, or worst values, over sites. Millimetres and pixels cannot be compared: if sites' units differ,
    distances are None."""
    rows = [site[role] for site in sites.values() if site.get(role)]
    unit = unit_of(rows)
    found: dict[str, Any] = {"unit": unit}
    for metric in METRICS:
        values = [row[metric] for row in rows if row.get(metric) is not None]
        pick = (min if HIGHER_IS_BETTER[metric] else max) if worst else (lambda v: sum(v) / len(v))
        found[metric] = pick(values) if values and not (unit == MIXED and metric in DISTANCES) else None
    return found
