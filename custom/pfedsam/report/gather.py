"""Finds the files of a run, wherever it ran: results, case scores, pictures, ledgers."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfedsam.errors import UserFault
from pfedsam.exchange.ledger import Ledger
from pfedsam.exchange.schema import REPORT, STAMP
from pfedsam.files import read_json
from pfedsam.layout import CASES, PICTURES, PRIVACY, RESULTS, SETTINGS, site_of
from pfedsam.record.cases import Cases, read_cases
from pfedsam.record.results import sites_of
from pfedsam.settings import chosen_method, from_record

LEDGER = "ledger.jsonl"
SHOWN = (PICTURES, "overlays.png")  # beside cases.json; older versions wrote the second
SKIP = {"synthetic_data", "tb_events", "custom", "prepared", "scratch", "images", "masks"}  # not part of a run's record


@dataclass(frozen=True)
class Material:
    """Everything that was found of one run.

    Attributes:
        results: results.json; in a site's own folder, its ledger's facts in the same form.
        own: the site that owns the folder; empty if the server's results were found.
        cases, pictures: by site, as far as they were found.
        sent: by site, the totals of its ledger: see `_sent`.
    """

    results: dict[str, Any]
    own: str = ""
    cases: dict[str, Cases] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)
    sent: dict[str, dict[str, float]] = field(default_factory=dict)


def gather(run: Path) -> Material:
    """What is at `run`: a results.json, or the folder of a run on the server, at a site, or of both.

    Raises:
        UserFault: there is no run, more than one, or its record is damaged.
    """
    if not run.exists():
        raise UserFault(expected="a run's folder or results.json", came=f"no {run}", do="correct the path")
    if run.is_file():
        return Material(read_results(run))
    files = sorted({*_files(run), *_files(_store(run))})
    found = [path for path in files if path.name == RESULTS]
    if len(found) > 1:
        raise UserFault(
            expected=f"one run in {run}",
            came=f"{len(found)}, e.g. {found[0].relative_to(run)} and {found[1].relative_to(run)}",
            do="name the folder of one of them",
        )
    record = read_results(found[0]) if found else {}
    ledgers = _ledgers(files, record.get("run", ""))
    tested = _tested(files, run, record.get("run", "") or _run_of(ledgers))
    results, own = (record, "") if found else _own(run, files, ledgers, set(tested))
    names = set(ledgers) | set(tested) if own else {*sites_of(results["rounds"]), *results["final"]["sites"]}
    return Material(
        results,
        own,
        cases={name: cases for name, (_, cases) in tested.items() if name in names},
        pictures={name: shown for name, (path, _) in tested.items() if name in names and (shown := _shown(path))},
        sent={name: _sent(lines) for name, lines in ledgers.items() if name in names},
    )


def _ledgers(files: list[Path], run: str) -> dict[str, list[dict[str, Any]]]:
    """By site, the lines of `run`, or of the last run in any study's ledger."""
    found: dict[str, list[dict[str, Any]]] = {}
    for folder in sorted({path.parent for path in files if path.name.startswith(LEDGER)}):
        lines = _lines(folder)
        last = run or next((line["run"] for line in reversed(lines) if line.get("run")), "")
        lines = [line for line in lines if line.get("run", last) in ("", last)]
        name, known = folder.name, found.get(folder.name)
        if lines and (not known or lines[-1]["time"] > known[-1]["time"]):
            found[name] = lines
    return found


def _run_of(ledgers: dict[str, list[dict[str, Any]]]) -> str:
    """The run in the ledgers; empty if they contain several runs or none."""
    runs = {line["run"] for lines in ledgers.values() for line in lines if line.get("run")}
    return runs.pop() if len(runs) == 1 else ""


def _tested(files: list[Path], folder: Path, run: str) -> dict[str, tuple[Path, Cases]]:
    """By site, the newest cases.json of `run`, or of a file that does not state its run."""
    found: dict[str, tuple[Path, Cases]] = {}
    for path in sorted((path for path in files if path.name == CASES), key=_age, reverse=True):
        if (site := site_of(path.resolve().parent, folder)) not in found:
            cases = read_cases(path)
            if not run or cases.run in ("", run):
                found[site] = path, cases
    return dict(sorted(found.items()))


def _shown(cases: Path) -> Path | None:
    """The file beside a cases.json from which pictures are drawn; None if there is none."""
    return next((path for name in SHOWN if (path := cases.with_name(name)).is_file()), None)


def read_results(path: Path) -> dict[str, Any]:
    """A results.json with the known schema.

    Raises:
        UserFault: it is damaged or has another schema.
    """
    found = read_json(path)
    try:
        fits = found["schema"] == 1 and isinstance(found["method"], str) and isinstance(found["config"], dict)
        sites = [site for entry in found["rounds"] for site in entry["sites"].values()]
        fits = fits and all(isinstance(entry["round"], int) for entry in found["rounds"])
        fits = fits and all(isinstance(site[key], dict) for site in sites for key in ("val", "losses"))
        fits = fits and all(isinstance(site["samples"], int) for site in sites)
        fits = fits and all(isinstance(roles, dict) for roles in found["final"]["sites"].values())
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        came = "other keys than docs/results.md lists"
        raise UserFault(expected=f"{path} of schema 1", came=came, do="take the one that the server wrote")
    return found


def rounds_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with an update in a ledger's last run: one per round, the last of each."""
    run: dict[int, dict[str, Any]] = {}
    for line in lines:
        if line["direction"] == "out" and REPORT in line["facts"]:
            number = int(line["round"])
            run = {} if number == 0 else {k: v for k, v in run.items() if k < number}
            run[number] = line
    return list(run.values())


def _own(
    run: Path, files: list[Path], ledgers: dict[str, list[dict[str, Any]]], tested: set[str]
) -> tuple[dict[str, Any], str]:
    """A site's own record, from its ledger, in the form of results.json, and the site's name."""
    names = sorted(set(ledgers) | tested)
    if not names:
        raise UserFault(
            expected=f"a run in {run}: {RESULTS}, or a site's {CASES} or {LEDGER}",
            came="none of them",
            do="name a simulator workspace, a downloaded result, or a site's folder",
        )
    if not ledgers:
        raise UserFault(
            expected=f"{RESULTS}, or the {LEDGER} of site {', '.join(names)} in {run}",
            came=f"only its {CASES}",
            do="name its kit, or WORKSPACE/SITE of FLARE's simulator; of pfedsam simulate name the whole folder",
        )
    if len(names) > 1:
        raise UserFault(
            expected=f"{RESULTS}, or one site's folder",
            came=f"{len(names)} sites without the server's results",
            do="name one site's folder",
        )
    ((name, lines),) = ledgers.items()
    entries = rounds_of(lines)
    since = lines[lines.index(entries[-1]) :] if entries else lines
    tests = [line["facts"]["metrics"] for line in since if line["direction"] == "out" and "metrics" in line["facts"]]
    stamp = entries[-1]["facts"].get(STAMP, {}) if entries else {}
    config = _settings(files, stamp.get("config", ""))
    return {
        "schema": 1,
        "method": chosen_method(config)[0] if config else "unknown method",
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


def _settings(files: list[Path], digest: str) -> dict[str, Any]:
    """The settings with that digest, else those that all files share; empty if they differ.

    A site keeps the settings of all its jobs, and an earlier version computed other digests.
    """
    found: list[dict[str, Any]] = []
    for path in sorted(files, key=_age):
        if path.name == SETTINGS.name:
            found.append(read_json(path))
            with suppress(UserFault):  # settings unknown to this version have no digest
                if digest == from_record(found[-1]).digest():
                    return found[-1]
    return found[-1] if found and all(one == found[-1] for one in found) else {}


def _store(kit: Path) -> Path:
    """The site's store, if the kit's own settings put it outside the kit; otherwise the kit."""
    settings = kit / PRIVACY
    scopes = read_json(settings).get("scopes", []) if settings.is_file() else []
    named = [scope.get("properties", {}).get("store") for scope in scopes]
    return next((Path(store) for store in named if store), kit)


def _files(run: Path) -> Iterator[Path]:
    wanted = {RESULTS, CASES, SETTINGS.name}
    for folder, inner, names in os.walk(run):
        inner[:] = [name for name in inner if name not in SKIP]
        yield from (Path(folder) / name for name in names if name in wanted or name.startswith(LEDGER))


def _lines(folder: Path) -> list[dict[str, Any]]:
    """A ledger's complete lines, oldest first, with those of the files that it was rotated into."""
    parts = [[line for line in Ledger(path).lines() if _complete(line)] for path in folder.glob(f"{LEDGER}*")]
    return [line for part in sorted(filter(None, parts), key=lambda part: part[0]["time"]) for line in part]


def _complete(line: object) -> bool:
    return isinstance(line, dict) and {"direction", "bytes", "facts", "time"} <= set(line)


def _sent(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Messages and bytes out and in, and the first and last time."""
    out, into = ([line["bytes"] for line in lines if line["direction"] == way] for way in ("out", "in"))
    times = sorted(line["time"] for line in lines)
    sizes = {"out": len(out), "out_bytes": sum(out), "into": len(into), "in_bytes": sum(into)}
    return {**sizes, "first": times[0], "last": times[-1]}


def _age(path: Path) -> float:
    return path.stat().st_mtime
