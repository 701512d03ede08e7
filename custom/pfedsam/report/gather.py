"""Finds what a run left, wherever it ran: results, case scores, pictures, ledgers."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfedsam.errors import UserFault
from pfedsam.report.cases import Cases, read_cases

RESULTS, CASES, PICTURES, LEDGER = "results.json", "cases.json", "overlays.png", "ledger.jsonl"
SKIP = {"synthetic_data", "tb_events", "custom", "prepared", "scratch", "images", "masks"}  # nothing of a run's record
REPORT, STAMP = "pfedsam_report", "pfedsam_stamp"  # what a site's message says of its round, in its ledger


@dataclass(frozen=True)
class Sent:
    """What a ledger says: messages and bytes out and in, values other than tensors, first and last time."""

    out: int
    out_bytes: int
    into: int
    in_bytes: int
    first: float
    last: float


@dataclass(frozen=True)
class Material:
    """All that was found of one run.

    Attributes:
        results: results.json; or, in a site's own folder, what its ledger tells in the same shape.
        own: the site whose own folder it is; empty where the server's results were found.
        cases, pictures, sent: by site, where they lie in reach.
    """

    results: dict[str, Any]
    own: str = ""
    cases: dict[str, Cases] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    sent: dict[str, Sent] = field(default_factory=dict)


def gather(run: Path) -> Material:
    """What lies at `run`: a results.json, or a folder of a run on the server, at a site, or of both.

    Raises:
        UserFault: there is no run, more than one, or its record is damaged.
    """
    if not run.exists():
        raise UserFault(expected="a run's folder or results.json", came=f"no {run}", do="correct the path")
    if run.is_file():
        return Material(read_results(run))
    files = sorted(_files(run))
    ledgers = {path.parent.name: _lines(path) for path in files if path.name == LEDGER}
    found = [path for path in files if path.name == RESULTS]
    if len(found) > 1:
        raise UserFault(
            expected=f"one run in {run}",
            came=f"{len(found)}, e.g. {found[0].relative_to(run)} and {found[1].relative_to(run)}",
            do="name the folder of one of them",
        )
    sites = {_site(path, run): path for path in sorted(files, key=_age) if path.name == CASES}
    results, own = (read_results(found[0]), "") if found else _own(run, files, ledgers, sites)
    names = set(ledgers) | set(sites) if own else set(_sites(results))
    pictures = {name: path.with_name(PICTURES) for name, path in sites.items() if name in names}
    return Material(
        results,
        own,
        cases={name: read_cases(path) for name, path in sites.items() if name in names},
        pictures={name: path.read_bytes() for name, path in pictures.items() if path.is_file()},
        sent={name: _sent(lines) for name, lines in ledgers.items() if lines and name in names},
    )


def read_results(path: Path) -> dict[str, Any]:
    """A results.json of the known schema.

    Raises:
        UserFault: it is damaged or of another schema.
    """
    try:
        found = json.loads(path.read_text())
        whole = found["schema"] == 1 and all(_is_round(entry) for entry in found["rounds"])
        whole = whole and all(isinstance(roles, dict) for roles in found["final"]["sites"].values())
        whole = whole and isinstance(found["method"], str) and isinstance(found["config"], dict)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise _damaged(path, f"{type(fault).__name__}: {fault}") from None
    if not whole:
        raise _damaged(path, "other keys than docs/results.md lists")
    record: dict[str, Any] = found
    return record


def rounds_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a ledger, the messages of its last run that carried an update, one a round, the last done of each."""
    run: dict[int, dict[str, Any]] = {}
    for line in lines:
        if line["direction"] == "out" and REPORT in line["facts"]:
            number = int(line["round"])
            run = {} if number == 0 else {k: v for k, v in run.items() if k < number}
            run[number] = line
    return list(run.values())


def _own(
    run: Path, files: list[Path], ledgers: dict[str, list[dict[str, Any]]], sites: dict[str, Path]
) -> tuple[dict[str, Any], str]:
    """A site's own record, from its ledger, in the shape of results.json; and the site's name."""
    names = sorted(set(ledgers) | set(sites))
    if not names:
        raise UserFault(
            expected=f"a run in {run}: {RESULTS}, or a site's {CASES} or {LEDGER}",
            came="none of them",
            do="name a simulator workspace, a downloaded result, or a site's folder",
        )
    if len(names) > 1:
        raise UserFault(
            expected=f"{RESULTS}, or one site's folder",
            came=f"{len(names)} sites without the server's results",
            do="name one site's folder",
        )
    name = names[0]
    lines = ledgers.get(name, [])
    entries = rounds_of(lines)
    tests = [line["facts"]["metrics"] for line in lines if line["direction"] == "out" and "metrics" in line["facts"]]
    settings = [json.loads(path.read_text()) for path in sorted(files, key=_age) if path.name == "pfedsam.json"]
    stamp = entries[-1]["facts"].get(STAMP, {}) if entries else {}
    config = settings[-1] if settings else {}
    return {
        "schema": 1,
        "method": str(config.get("method", "pfedsam" if config else "unknown method")),
        "synthetic": config.get("data", {}).get("source") == "synthetic",
        "config": config,
        "config_hash": stamp.get("config", ""),
        "base_hash": stamp.get("base", ""),
        "versions": {},
        "rounds": [
            {"round": int(line["round"]), "sites": {name: line["facts"][REPORT]}, "rejected": {}} for line in entries
        ],
        "final": {"sites": {name: tests[-1]} if tests else {}, "mean": {}, "worst": {}},
    }, name


def _files(run: Path) -> Iterator[Path]:
    wanted = {RESULTS, CASES, LEDGER, "pfedsam.json"}
    for folder, inner, names in os.walk(run):
        inner[:] = [name for name in inner if name not in SKIP]
        yield from (Path(folder) / name for name in names if name in wanted)


def _lines(path: Path) -> list[dict[str, Any]]:
    """A ledger's whole lines; the last may be torn."""
    found = []
    for text in path.read_text().splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict) and {"direction", "bytes", "facts", "time"} <= set(line)]


def _sent(lines: list[dict[str, Any]]) -> Sent:
    out, into = ([line["bytes"] for line in lines if line["direction"] == way] for way in ("out", "in"))
    times = [line["time"] for line in lines]
    return Sent(len(out), sum(out), len(into), sum(into), min(times), max(times))


def _site(path: Path, run: Path) -> str:
    """Whose cases.json it is: SITE/cases.json of a run in one process, else SITE/JOB/pfedsam/cases.json."""
    home = path.resolve().parent
    return home.parent.parent.name if home.name == "pfedsam" and home != run.resolve() else home.name


def _sites(results: dict[str, Any]) -> set[str]:
    return {site for entry in results["rounds"] for site in entry["sites"]} | set(results["final"]["sites"])


def _is_round(entry: dict[str, Any]) -> bool:
    return isinstance(entry["round"], int) and all(isinstance(site["val"], dict) for site in entry["sites"].values())


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _damaged(path: Path, came: str) -> UserFault:
    return UserFault(expected=f"a whole {path.name} of schema 1", came=came, do="take the one that the server wrote")
