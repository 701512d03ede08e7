"""results.json: its shape, and the means in it. docs/results.md describes each key."""

import hashlib
import math
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import pfedsam
from pfedsam.exchange.guard import facts_fault
from pfedsam.record.measures import DISTANCES, HIGHER_IS_BETTER, METRICS, MIXED, OVERLAP, UNITS

ROLES = ("before", "global", "personal")


def _code() -> str:
    found = hashlib.sha256()
    here = Path(pfedsam.__file__).parent
    for path in sorted(here.rglob("*.py")):
        found.update(f"{path.relative_to(here).as_posix()}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


CODE = _code()  # as modules are loaded: files may change while a process runs


def start(config: dict[str, Any], digest: str, base: str, begun: dict[str, Any] | None = None) -> dict[str, Any]:
    """The record of a run that has done no round yet; `begun`: the other run whose model it began with."""
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
    """Of this package, torch and Python; "code": a digest of its modules, as several may share a version.

    Args:
        earlier: what the first part of a run had; where that was another, it stands first, then a comma.
    """
    now = {
        "pfedsam": pfedsam.__version__,
        "code": CODE,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return {key: joined((earlier or {}).get(key, ""), value) for key, value in now.items()}


def joined(earlier: str, now: str) -> str:
    """What a run had, in order, each once; "" where it had nothing yet."""
    return ", ".join(dict.fromkeys([*filter(None, earlier.split(", ")), now]))


def replanned(results: dict[str, Any]) -> str:
    """What a change of the planned rounds did to the run's schedule; empty where nothing."""
    planned, train = results.get("planned", {}), results["config"].get("train", {})
    if not planned.get("earlier") or train.get("schedule") == "constant":
        return ""
    numbers = ", then ".join(map(str, [*planned["earlier"], planned["rounds"]]))
    return f"Planned for {numbers} rounds: the rates follow no one schedule over all rounds."


def sites_of(rounds: list[dict[str, Any]]) -> list[str]:
    """The sites with a round of their own among a record's rounds, by name."""
    return sorted({site for entry in rounds for site in entry["sites"]})


def took_part(results: dict[str, Any]) -> list[str]:
    """The sites with a round of their own; in a record without any, all that were tested."""
    return sites_of(results["rounds"]) or sorted(results["final"]["sites"])


def private_begun(results: dict[str, Any], reports: dict[str, Any]) -> dict[str, Any]:
    """`begun_with` with the private part that each site had in its first round: a run and its round; {}: as drawn.

    Args:
        reports: of the sites of a finished round.
    """
    known = results["begun_with"].get("private", {})
    new = {site: report["private"] for site, report in reports.items() if site not in known}
    return {**results["begun_with"], "private": {**new, **known}}


def finish(results: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The record with mean and worst of the sites that took part, of each role and metric, on the test split."""
    final, part = results["final"], took_part(results)
    sites = {name: roles for name, roles in final["sites"].items() if name in part}
    means = {role: _over_sites(sites, role, worst=False) for role in ROLES}
    worst = {role: _over_sites(sites, role, worst=True) for role in ROLES}
    return {**results, "seconds": seconds, "final": {**final, "mean": means, "worst": worst}}


def report_fault(report: Any) -> str | None:
    """Why what a site says of its round cannot stand in the record; None if it can."""
    if fault := facts_fault(report):
        return fault
    told = _object(report)
    val, losses = _object(told.get("val")), told.get("losses")
    rows = {f"val {role}": val.get(role) for role in ROLES[1:]}
    faults = [_metrics_fault(name, row) for name, row in (rows | {"before": told.get("before")}).items()]
    faults += [
        f"expected a number as {key}, came {str(told.get(key))[:40]}"
        for key in ("samples", "bytes_sent", "bytes_received", "scoring_seconds")
        if not _is_number(told.get(key), 0)
    ]
    if not isinstance(losses, dict) or not all(map(_is_number, [*losses.values(), told.get("seconds")])):
        faults.append(
            f"expected numbers as losses and seconds, came {str(losses)[:80]} and {str(told.get('seconds'))[:20]}"
        )
    if not _is_begun(told.get("private")):
        faults.append(f"expected a run and a round as private, or nothing, came {str(told.get('private'))[:80]}")
    return next(filter(None, faults), None)


def _is_begun(told: Any) -> bool:
    """Whether this says what a private part is: of a run and its round, or as drawn."""
    return told == {} or (isinstance(told, dict) and told.keys() == {"run", "round"} and _is_number(told["round"], -1))


def tested_fault(tested: Any) -> str | None:
    """Why what a site says of its final test cannot stand in the record; None if it can."""
    told = _object(tested)
    val = _object(told.get("val"))
    rows = {f"{where}{role}": of.get(role) for where, of in (("", told), ("val ", val)) for role in ROLES[1:]}
    faults = [_metrics_fault(name, row) for name, row in rows.items()]
    if told.get("before") is not None:  # a site that never trained has none
        faults.append(_metrics_fault("before", told["before"]))
    if not _is_number(told.get("patients", 0), 0):
        faults.append(f"expected a number of patients, came {str(told['patients'])[:40]}")
    return facts_fault(tested) or next(filter(None, faults), None)


def _metrics_fault(name: str, row: Any) -> str | None:
    """Why these are not the metrics of a branch: each a number in its bounds, or nothing where no case was scored.

    Distances may be left out: they are measured on the test split alone.
    """
    told = _object(row)
    fault = _numbers_fault(name, {metric: told.get(metric, "nothing") for metric in OVERLAP} | told)
    if fault is None and told.get("unit") not in (None, *UNITS, MIXED):
        fault = f"expected mm or px as unit of {name}, came {str(told['unit'])[:40]}"
    apart = [_numbers_fault(f"{name} in {unit}", of) for unit, of in _object(told.get("by_unit")).items()]
    return next(filter(None, [fault, *apart]), None)


def _numbers_fault(name: str, row: Any) -> str | None:
    for metric in METRICS:
        value = _object(row).get(metric)
        most = 1.0 if HIGHER_IS_BETTER[metric] else math.inf
        if value is not None and not _is_number(value, 0, most):
            return f"expected {metric} of {name} from 0 to {most:g}, came {str(value)[:40]}"
    return None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and least <= value <= most


def unit_of(rows: Iterable[dict[str, Any]]) -> str | None:
    """The unit that rows of distances have in common: "mixed" where there are several, None where it is not known."""
    units = {row.get("unit") for row in rows} - {None}
    return units.pop() if len(units) == 1 else MIXED if units else None


def _over_sites(sites: dict[str, Any], role: str, *, worst: bool) -> dict[str, Any]:
    """Millimetres and pixels have no mean, and none of them is the worst: where sites differ, distances are None."""
    rows = [site[role] for site in sites.values() if site.get(role)]
    unit = unit_of(rows)
    found: dict[str, Any] = {"unit": unit}
    for metric in METRICS:
        values = [row[metric] for row in rows if row.get(metric) is not None]
        pick = (min if HIGHER_IS_BETTER[metric] else max) if worst else (lambda v: sum(v) / len(v))
        found[metric] = pick(values) if values and not (unit == MIXED and metric in DISTANCES) else None
    return found
