"""The runs that evidence/ keeps, with their sites, patients and labels; and what is known of the code that ran.

Nothing here needs the data: homes and sizes are of the kept runs themselves.
"""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from evidence import EARLIER, HERE, unpack
from suites import NAMES, OWN_LORA, SUITES, Row, Sizes, rows_of
from tables import Found, Home, read, rival

from pfedsam.errors import UserFault

AS_KEPT = (  # the defaults of the runs in evidence/earlier
    *("model.experts=8", "model.experts_rank=0", "model.expert=conv", "model.experts_in=qkv", "model.gate=noisy"),
    "train.lr_private=null",
)
RESULTS = Path(__file__).parent / "results"
MAINS = ("leading", "methods")  # suites whose rows a leaderboard shows
Runs = dict[Row, dict[int, Found]]


def as_kept(row: Row) -> Row:
    """A row with the defaults of the runs in evidence/earlier, which have an earlier form of the L-MoE."""
    words = [change.split("=")[0] for change in row.changes]
    methods = [change.removeprefix("method=") for change in row.changes if change.startswith("method=")]
    ours = not methods or methods[-1] == "newcomer"
    reading = ("method.reading=R3",) if ours and "method.reading" not in words else ()
    return replace(row, changes=(*AS_KEPT, *row.changes, *reading))


@dataclass(frozen=True)
class Kept:
    """A task's kept runs.

    Attributes:
        name: of its page: the task's; for runs of earlier defaults another one, where there are today's too.
        main: the suite that its leaderboard begins with: `leading` if pFedSAM ran as the jobs have it, else `methods`.
        runs: by row's name and seed.
        homes: of each test case.
        rows: of all suites, by name.
        configs: of each row with runs, as results.json has it.
        sizes: training images of each site.
        images: for training, validation and test, of each site.
        joined: names of rows whose runs are earlier ones, in their order.
        past: all runs have the defaults of evidence/earlier.
    """

    task: str
    name: str
    main: str
    runs: dict[str, dict[int, Found]]
    homes: dict[str, Home]
    rows: dict[str, Row]
    configs: dict[str, dict[str, Any]]
    sizes: Sizes
    images: dict[str, tuple[int, int, int]]
    joined: tuple[str, ...] = ()
    past: bool = False

    def of(self, *names: str) -> Runs:
        """The runs of these rows, in this order; a row without runs is left out."""
        return {self.rows[name]: self.runs[name] for name in names if name in self.runs}

    def suite(self, name: str) -> Runs:
        """The runs of a suite; of the main one, those of the other main one and the rival too."""
        suites = dict.fromkeys((name, *MAINS) if name == self.main else (name,))
        rows = [row for suite in suites for row in rows_of(suite, self.task, self.sizes) if row.name in self.runs]
        found = {row: self.runs[row.name] for row in _labelled(rows)}
        told = {row: {seed: with_device(run) for seed, run in runs.items()} for row, runs in found.items()}
        return found | (rival(told, self.homes) if name == self.main else {})

    def seeds(self) -> list[int]:
        """The seeds of the first row, pFedSAM."""
        return list(next(iter(self.suite(self.main).values())))


@cache
def kept() -> dict[str, Kept]:
    """Every task's kept runs, by the name of their page. Those of today's defaults come first.

    Raises:
        UserFault: a run's case scores are not those that it told of.
    """
    with tempfile.TemporaryDirectory() as name:
        unpack(now := Path(name) / "now")
        unpack(past := Path(name) / EARLIER, HERE / EARLIER)
        before = {folder.name: replace(_task(folder), past=True) for folder in sorted(past.iterdir())}
        folders = sorted(now.iterdir()) if now.exists() else []
        today = {folder.name: _task(folder) for folder in folders}
    named = {f"{name}_{EARLIER}" if name in today else name: task for name, task in before.items()}
    found = {name: with_earlier(task, before.get(name)) for name, task in today.items()}
    return found | {name: replace(task, name=name) for name, task in named.items()}


def earlier(task: str) -> Kept:
    """A task's kept runs of earlier defaults."""
    return next(one for one in kept().values() if one.task == task and one.past)


def with_earlier(task: Kept, before: Kept | None) -> Kept:
    """A task with its earlier runs of methods without an L-MoE that it has no newer ones of: they are still valid."""
    if before is None:
        return task
    missing = [row.name for row in before.suite(before.main) if row.name in before.runs.keys() - task.runs.keys()]
    names = [name for name in missing if before.configs[name]["method"] != "pfedsam"]
    return replace(
        task,
        runs=task.runs | {name: before.runs[name] for name in names},
        configs=task.configs | {name: before.configs[name] for name in names},
        joined=tuple(names),
    )


def _labelled(rows: list[Row]) -> list[Row]:
    """The rows, each name once. Of two with one label the second has its name in its label."""
    found: dict[str, Row] = {}
    for row in rows:
        taken = row.label in [one.label for one in found.values()]
        found.setdefault(row.name, replace(row, label=f"{row.label}, row `{row.name}`") if taken else row)
    return list(found.values())


def _task(folder: Path) -> Kept:
    records = {path.parent: json.loads(path.read_text()) for path in sorted(folder.glob("*/*/results.json"))}
    main = "leading" if (folder / OWN_LORA.name).exists() else "methods"
    first = _first(folder, records)
    sizes = _sizes(records[first])
    runs: dict[str, dict[int, Found]] = {}
    for run, record in records.items():
        runs.setdefault(run.parent.name, {})[int(run.name)] = read(run, record)
    suites = (*reversed(NAMES), main)  # a row is called as in the main suite, else as in the first that has it
    rows = {row.name: row for suite in suites for row in rows_of(suite, folder.name, sizes)}
    configs = {run.parent.name: record["config"] for run, record in records.items()}
    images = _images(records[first], sizes)
    return Kept(folder.name, folder.name, main, runs, _homes(first), rows, configs, sizes, images)


def _first(folder: Path, records: dict[Path, dict[str, Any]]) -> Path:
    """The run that tells of a task's sites: the first of the leaderboard's rows that has the hospitals as its sites.

    Raises:
        UserFault: there is none.
    """
    names = [row.name for suite in MAINS for row in SUITES[suite]]
    runs = [run for name in names for run in records if run.parent.name == name]
    if whole := [run for run in runs if not records[run]["config"]["data"]["pool"]]:
        return whole[0]
    raise UserFault(
        expected=f"a run of the suites {' or '.join(MAINS)}, not pooled, of {folder.name}",
        came=", ".join(sorted({run.parent.name for run in records})) or "none",
        do="run one of them on the task, and pack it too",
    )


def _sizes(record: dict[str, Any]) -> Sizes:
    """Of a run with whole splits and one epoch a round: what each site counts."""
    return {site: report["samples"] for site, report in sorted(record["rounds"][0]["sites"].items())}


def _images(record: dict[str, Any], sizes: Sizes) -> dict[str, tuple[int, int, int]]:
    def cases(scored: dict[str, Any]) -> int:
        return int(scored["scored"] + scored["empty"])

    tested = record["final"]["sites"]
    return {
        site: (train, cases(tested[site]["val"]["global"]), cases(tested[site]["global"]))
        for site, train in sizes.items()
    }


def _homes(run: Path) -> dict[str, Home]:
    """Of a run whose sites are the hospitals."""
    found: dict[str, Home] = {}
    for path in sorted(run.glob("*/cases.json")):
        told, site = json.loads(path.read_text()), path.parent.name
        pairs = zip(told["cases"], told["groups"], strict=True)
        found |= {case: Home(site, f"{site}/{group}") for case, group in pairs}
    return found


@dataclass(frozen=True)
class Fault:
    """Something known to be wrong with the code that some runs ran.

    Attributes:
        status: of those runs.
        tasks: that it touches; empty: all.
        only, unless: settings, by dotted name, with the values that it touches, or does not.
        mended: the commit that mended it; empty: none yet.
        last: the last of the codes of kept runs that had it; empty: all of them.
    """

    name: str
    status: str
    says: str
    tasks: list[str] = field(default_factory=list)
    only: dict[str, list[Any]] = field(default_factory=dict)
    unless: dict[str, list[Any]] = field(default_factory=dict)
    mended: str = ""
    last: str = ""

    def told(self) -> str:
        """In words."""
        return f"{self.says} {f'Mended in {self.mended}.' if self.mended else 'Not mended yet.'}"

    def touches(self, task: str, config: dict[str, Any], codes: list[str]) -> bool:
        """Whether runs of these settings and codes on a task have it."""
        known = list(commits())
        old = not self.last or any(known.index(code) <= known.index(self.last) for code in codes)
        here = not self.tasks or task in self.tasks
        ours = all(_value(config, name) in values for name, values in self.only.items())
        return old and here and ours and not any(_value(config, n) in values for n, values in self.unless.items())


def note_of(code: str) -> str:
    """What else is known of a code."""
    return next((str(one.get("note", "")) for one in _status()["codes"] if one["code"] == code), "")


def device_of(run: Found) -> str:
    """Where a run ran: as its JSON says; of older ones, whose JSON names no device, as status.json has it."""
    known = {one["code"]: one.get("device", "not known") for one in _status()["codes"]}
    return run.ran[2] or ", ".join(dict.fromkeys(known[code] for code in run.ran[0].split(", ")))


def with_device(run: Found) -> Found:
    """The run as if its JSON had named its device."""
    return replace(run, ran=(*run.ran[:2], device_of(run)))


def faults() -> list[Fault]:
    """All that are known."""
    return [Fault(**one) for one in _status()["faults"]]


def commits() -> dict[str, str]:
    """The commit of each code that a kept run ran, oldest first; empty where it was none."""
    return {one["code"]: one["commit"] for one in _status()["codes"]}


def codes_of(runs: Iterable[Found]) -> list[str]:
    """The codes that runs ran, oldest first.

    Raises:
        UserFault: one is not known.
    """
    found = {code for run in runs for code in run.ran[0].split(", ")}
    if unknown := sorted(found - commits().keys()):
        raise UserFault(
            expected="the code of every kept run in benchmarks/results/status.json",
            came=", ".join(unknown),
            do="add it to `codes`, with its commit, after those that are older",
        )
    return [code for code in commits() if code in found]


@cache
def _status() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "status.json").read_text())
    return found


def _value(config: dict[str, Any], name: str) -> Any:
    for key in name.split("."):
        config = config.get(key, {})
    return config
