"""The pages of benchmarks/results, written anew from what is kept: benchmarks/pages.py; `make tables`.

Leaderboards and the summary are of the runs in evidence/, the systems page is of the records in results/systems.
Elsewhere a table stands between two comments, `<!-- NAME: begin -->` and `<!-- NAME: end -->`, where `BLOCKS` has NAME.
"""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boards import (
    beside,
    between,
    board,
    carried,
    leaderboard,
    of_sites,
    ran,
    ran_on,
    rates,
    seeds,
    seeds_apart,
    shown,
    starred,
    summary,
    together,
    with_median,
    wrapped,
)
from kept import RESULTS, Kept, earlier, kept
from machine import ROOT, SYSTEMS, Table, markdown
from suites import METHODS, SUITES
from tables import ON_THE_WAY, budgets, table

MADE = "<!-- Made by `make tables`: what is written here by hand is lost. -->"
KINDS = (  # in the order of the systems page: how their titles begin
    "A training step",
    "A recorded step",
    "Compiling",
    "Attention",
    "Shares of a round",
    "Time to a Dice",
    "Prediction",
    "Memory of a step",
    "A round outside training",
    "Secure aggregation",
    "Start of a site",
    "Growth",
    "Scale",
    "Doctor",
    "Random kills",
    "One hostile site",
    "Privacy",
    "Leak",
    "Methods side by side",
    "Suite",
    "Between the branches",
    "A U-Net from scratch",
    "The demonstration job",
    "How often intervals hold",
)
LEADING = ("pfedsam", "fedavg", "fedper", "ditto", "fedmsa", "fedms_sam", "local", "pooled")
SEVERAL = "4 private adapters"  # in the label of a row whose L-MoE has several adapters and a gate
EXPERTS = ("pfedsam", "experts_0", "top_1", "gate_free", "mlp", "r2", "r2_mlp", "fedavg")
COPYING = ("pfedsam", "r1", "r2", "recopy_always", "margin_01", "fedavg", "local")
DISTILLING = ("pfedsam", "distill_none", "distill_down", "distill_up", "distill_05", "rank_8", "fedavg")
SMALL = ("own", "own_lora", "fedavg", "fedavg_lora", "dual_lora_own", "dual_lora_own_lora", "fedper_own")
WIRE = ("wire_brain_mri", "wire_nuclei")
RECORDS = (
    "`make bench` and `make chaos` measure anew; with `--keep` a script adds its record. In the small tables, worst is"
    " each seed's lowest site, in the mean over seeds. Records before 2026-12-01 have percentiles of a bootstrap as"
    " intervals. These are too narrow, and their p values too small: see the last table."
)
ASKED = ("distilling", "efficiency", "late", "partial", "unequal")  # suites whose records a question shows
RATES = {
    "brain_mri": [
        f"{row}{end}" for row in ("fedper", "fedrep", "fedsa_lora", "ffa_lora") for end in ("", "_3e-3_3e-4")
    ],
    "polyp": ["local", "local_1e-2_3e-4"],
}
SOURCES = {  # as NOTICE has them
    "brain_mri": "LGG Segmentation Dataset, on images of TCGA-LGG",
    "nuclei_he": "MoNuSeg, MoNuSAC, TNBC of Institut Curie, NuInsSeg",
    "breast_us": "BUSI, BUS-UCLM, STU-Hospital, BUS-BRA",
    "polyp_hospitals": "Kvasir-SEG, BKAI-IGH NeoPolyp, CVC-ColonDB, ETIS-Larib",
    "nuclei": "2018 Data Science Bowl, stage 1 training set (BBBC038)",
    "polyp": "Kvasir-SEG",
}
OLD_RATES = "rates_8_rounds"
MORE = ("slower", "beside", "ablations", "scarce")  # suites with kept runs that a leaderboard's page shows below it


@dataclass(frozen=True)
class Record:
    """What one run of a script measured, as `machine.publish` wrote it.

    Attributes:
        transcribed: taken over from the page that these pages replaced; its runs are not kept.
    """

    title: str
    date: str
    commit: str
    machine: str
    command: str
    tables: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    transcribed: bool = False

    def lines(self) -> list[str]:
        """Where it is from, its tables, its notes."""
        told = f"{self.date}, commit {self.commit}. {self.machine}. `{self.command}`."
        from_page = " Transcribed: what the runs wrote is not kept." if self.transcribed else ""
        tables = [line for one in self.tables for line in ["", *Table(**self._without_chances(one)).lines()]]
        notes = ["", *(line for note in self.notes for line in wrapped(f"- {note}", "  "))] if self.notes else []
        return [*wrapped(told + from_page), *tables, *notes]

    def _without_chances(self, table: dict[str, Any]) -> dict[str, Any]:
        """A table; without p values where there was one seed, because they know of patients alone."""
        if not any("One seed" in note for note in self.notes):
            return table
        kept = [i for i, name in enumerate(table["columns"]) if name != "p"]
        columns = {name: form for name, form in table["columns"].items() if name != "p"}
        rows = [[row[i] for i in kept] for row in table["rows"]]
        bare = [[re.sub(r", p [\d.]+$", "", one) if isinstance(one, str) else one for one in row] for row in rows]
        return {"columns": columns, "rows": bare}


def main() -> None:
    """Write every page whose text is not what it should be, and name it."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(ROOT))


def pages() -> dict[Path, str]:
    """All pages with a generated part, by their path."""
    found = {RESULTS / f"{name}.md": text(leaderboard_page(task)) for name, task in kept().items()}
    found |= {RESULTS / "systems.md": text(systems_page()), RESULTS / "summary.md": text(summary_page())}
    written = [ROOT / "README.md", *sorted(RESULTS.rglob("*.md"))]
    return found | {path: filled(path.read_text()) for path in written if path not in found}


def filled(page: str) -> str:
    """A page with the tables between its comments made anew; one without any as it is."""

    def block(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        return "\n".join([begin, *BLOCKS[name](), end]) if name in BLOCKS else match.group()

    return re.sub(r"(<!-- (\w+): begin -->)\n.*?(<!-- \2: end -->)", block, page, flags=re.DOTALL)


def text(lines: list[str]) -> str:
    """Lines as a file has them."""
    return "\n".join(lines) + "\n"


def leaderboard_page(task: Kept) -> list[str]:
    """All that is kept of a task's methods."""
    found = task.suite(task.main)
    folder = "../evidence/earlier" if task.past else "../evidence"
    others = {row.name for row in found} & {row.name for row in METHODS} - {row.name for row in SUITES[task.main]}
    rows = f"the suite `{task.main}`{', and what ran of `methods`' if others else ''}"
    joined = f"{len(task.joined)} rows are of [earlier runs](../evidence/earlier), as their commits say."
    return [
        f"# {task.name}: leaderboard",
        "",
        MADE,
        "",
        *wrapped(f"Made from [{task.task}.tar.xz]({folder}). Test patients: {of_sites(task)}."),
        *([joined] if task.joined else []),
        f"{ran_on(found)} {seeds(task)}",
        *wrapped(f"The rows are {rows}. [README.md](README.md) says what each column is, and how to run it again."),
        "",
        *leaderboard(task),
        "",
        "## By site, and the other measures",
        "",
        "In brackets: a site's test patients. Distances are in pixels. A case in which a model found nothing has none,",
        "and counts in `detected`. Surface Dice is of runs that measured it.",
        "",
        *table(found, task.homes),
        "",
        "## Within a budget of bytes",
        "",
        *wrapped(f"A site's uploads and downloads, up to the model that it predicts with. {ON_THE_WAY}"),
        "",
        *budgets({row: runs for row, runs in found.items() if row.name in task.runs}),
        "",
        *(line for suite in MORE for line in more(task, suite)),
        "## What ran",
        "",
        *ran(task),
    ]


def more(task: Kept, suite: str) -> list[str]:
    """Another suite's tables, where rows of it are kept that the methods do not have."""
    found = task.suite(suite)
    if not {row.name for row in found} - {row.name for row in task.suite(task.main)}:
        return []
    return [f"## The suite `{suite}`", "", *table(found, task.homes), "", *budgets(found), ""]


def tasks() -> list[str]:
    """A line a task, for the entry."""
    head = ["task", "sites", "leaderboard", "test patients", "seeds"]
    rows = [
        [name, str(len(task.sizes)), f"[{name}.md]({name}.md)", of_sites(task), str(len(task.seeds()))]
        for name, task in kept().items()
    ]
    return markdown(head, rows)


def datasets() -> list[str]:
    """A line a site: where its images are from, and how many train, validate and test."""
    rows = [
        [task.task, SOURCES.get(task.task, "not named yet"), site, *map(str, counts)]
        for task in {task.task: task for task in kept().values()}.values()
        for site, counts in task.images.items()
    ]
    return markdown(["task", "source", "site", "training images", "validation", "test"], rows)


def systems_page() -> list[str]:
    """The newest record of each title that no question shows; older ones are named."""
    shown_elsewhere = tuple(map(titled, ASKED))
    found = {title: of for title, of in records().items() if not title.startswith(shown_elsewhere)}
    head = ["# Speed, memory, rounds, kills", "", MADE, "", "Each table is of one record in [systems/](systems)."]
    head += [*wrapped(RECORDS), ""]
    for title in sorted(found, key=lambda title: ([title.startswith(kind) for kind in KINDS].index(True), title)):
        *older, newest = found[title]
        earlier = ["", f"Earlier: {', '.join(f'{one.date} (commit {one.commit})' for one in older)}."] if older else []
        head += [f"## {title}", "", *newest.lines(), *earlier, ""]
    return head[:-1]


def records() -> dict[str, list[Record]]:
    """What the scripts measured, by title, the oldest first."""
    found: dict[str, list[Record]] = {}
    for record in sorted((read(path) for path in SYSTEMS.glob("*.json")), key=lambda record: record.date):
        found.setdefault(record.title, []).append(record)
    return found


def titled(suite: str) -> str:
    """How the titles of a suite's small runs begin."""
    return f"Suite {suite} on "


def small(suite: str) -> list[str]:
    """The newest record of a suite's small runs, on each task."""
    found = {title: of for title, of in sorted(records().items()) if title.startswith(titled(suite))}
    return several(*([f"**{title}.**", "", *newest.lines()] for title, (*_, newest) in found.items()))


def gated() -> list[str]:
    """Of small runs, the rows of several private adapters and a gate, beside the first row: a plain private adapter."""
    rows = []
    for title, (*_, record) in sorted(records().items()):
        first, *others = record.tables[0]["rows"] if title.startswith("Suite leading") else [[]]
        task = title.split(" on ")[-1].split(":")[0]
        rows += [[task, first[1], row[1], *row[-2:]] for row in others if SEVERAL in row[0]]
    return markdown(["task", "a plain adapter of rank 8", "4 of rank 4, 2 chosen", "difference", "p"], rows)


def summary_page() -> list[str]:
    """What the README shows, and the same of the runs with earlier defaults."""
    sites = [
        line
        for name, task in kept().items()
        for line in wrapped(f"- {name}: {of_sites(task)}. {ran_on(shown(task))} {seeds(task)}", "  ")
    ]
    return [
        "# Summary",
        "",
        MADE,
        "",
        "Test Dice, its 95 % interval, the worst site's Dice, and the megabytes that a site sends in a round.",
        "Test patients are in the head, and here by site:",
        "",
        *sites,
        "",
        "## Today's defaults",
        "",
        "Differences are paired by patient and seed. p is corrected by Holm for a table's rows; one seed has none.",
        "",
        *several(together(alike(), with_median), *map(beside, today())),
        "",
        "## Earlier defaults",
        "",
        "Of an earlier version, whose mixture of experts had [a fault](questions/experts.md). The rows without experts",
        "are as valid as they were.",
        "",
        *summary(),
        "",
        "![Dice beside megabytes a message, brain_mri and nuclei](../../docs/pictures/dice_by_megabytes.png)",
    ]


def read(path: Path) -> Record:
    """A record's file."""
    return Record(**json.loads(path.read_text()))


def transcribed(*names: str) -> list[str]:
    """Records of questions whose runs are not kept."""
    found = [read(RESULTS / "transcribed" / f"{name}.json") for name in names]
    return [line for one in found for line in [f"**{one.title}.**", "", *one.lines(), ""]][:-1]


def of_kept(task: str, *names: str) -> list[str]:
    """Kept rows of a task; the first is what the others are compared with."""
    return [f"**{task}.**", "", *board(kept()[task], kept()[task].of(*names))]


def of_earlier(task: str, *names: str) -> list[str]:
    """The same of runs of earlier defaults."""
    return of_kept(earlier(task).name, *names)


def several(*parts: list[str]) -> list[str]:
    """Several tables in one place."""
    return [line for part in parts for line in [*part, ""]][:-1]


def today() -> list[Kept]:
    """The tasks whose kept runs have today's defaults."""
    return [task for task in kept().values() if task.main == "leading"]


def alike() -> list[Kept]:
    """Those of `today` with the most seeds."""
    most = max(len(task.seeds()) for task in today())
    return [task for task in today() if len(task.seeds()) == most]


def whole(suite: str, task: str) -> list[str]:
    """All kept rows of a suite on a task."""
    return [f"**{task}.**", "", *board(kept()[task], kept()[task].suite(suite))]


def leads(task: Kept) -> list[str]:
    """The rows of a task's main suite that come near the first, with the first."""
    return whole(task.main, task.name) if task.main == "leading" else of_kept(task.name, *LEADING)


BLOCKS: dict[str, Callable[[], list[str]]] = {
    "results": lambda: together(alike(), starred),
    "tasks": tasks,
    "datasets": datasets,
    "leads": lambda: several(*map(leads, kept().values())),
    "experts": lambda: several(*map(carried, today()), gated()),
    "between": lambda: between(today()),
    "earlier_experts": lambda: several(of_earlier("nuclei", *EXPERTS), transcribed("parts")),
    "earlier_copying": lambda: several(of_earlier("nuclei", *COPYING), of_earlier("brain_mri", *COPYING)),
    "distillation": lambda: small("distilling"),
    "earlier_distillation": lambda: of_earlier("nuclei", *DISTILLING),
    "bytes": lambda: several(
        *(of_kept(task.name, *SMALL) for task in today()),
        of_earlier("nuclei", "pfedsam", "lean", "fedper"),
        transcribed(*WIRE),
    ),
    "late": lambda: small("late"),
    "earlier_late": lambda: transcribed("late"),
    "missing_class": lambda: small("partial"),
    "earlier_missing_class": lambda: transcribed("partial"),
    "few_images": lambda: small("efficiency"),
    "earlier_few_images": lambda: several(whole("scarce", earlier("nuclei").name), transcribed("scarce")),
    "unequal": lambda: small("unequal"),
    "earlier_unequal": lambda: transcribed("unequal"),
    "labels": lambda: transcribed("labels"),
    "noise": lambda: seeds_apart(earlier("brain_mri")),
    "rates": lambda: several(*(rates(earlier(task), rows) for task, rows in RATES.items()), transcribed(OLD_RATES)),
}


if __name__ == "__main__":
    main()
