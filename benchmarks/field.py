"""Rows side by side, small: benchmarks/field.py [--suite NAME] [--task NAME] [--seeds N ...] [--rows NAME ...].

Small means MobileSAM at 128 pixels, sixteen training images a site and six rounds, in one process. Without a suite the
rows are all methods, at the rates of FedAvg. It shows that each does what it says, and which are worth a search of
their own. It is no leaderboard. It needs PFEDSAM_DATA_ROOT and PFEDSAM_WEIGHTS.
"""

import argparse
import json
import statistics as st
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import Table, keepable, publish
from suites import NAMES, OWN_LORA, Row, few, rows_of
from sweep import Run, data_of, joined, places, planned, settings, sites, sizes
from tables import Found, by_site, corrected, differences, in_words, of_sites, read, read_homes, spread

from pfedsam import methods
from pfedsam.config import Config
from pfedsam.data.cells import write_cells
from pfedsam.data.records import PATHS, raw_rows
from pfedsam.data.taken import at_most
from pfedsam.errors import UserFault
from pfedsam.federation import federate
from pfedsam.files import write_json
from pfedsam.record.cases import ROLES
from pfedsam.report.gather import read_results
from pfedsam.study import same_settings

ROUNDS, IMAGES = 6, 16
SMALL = "model.image_size=128"
OWN = {  # what a method needs beside its name
    "local": ("train.lr=3e-3",),
    "fedms_sam": ("train.lr=3e-4",),
    "fedbn": ("train.lr_private=3e-4",),
    "ditto": ("method.lam=0.1",),
    "dsfedmed": ("train.lr=3e-3",),
}
FIRST = ("pfedsam", "local", "fedavg")
NOT = ("newcomer", "furl", "cpss_adapt", "iscos")  # which want other labels, begin from another run, or end in one
MEANS = {"worst": ".3f", "global": ".3f", "validation": ".3f", "MB up": ".2f", "CPU s": ".0f"}
UNSEEN, AT = "unseen", "at "
ONE_SEED = (  # five is our choice. 3.6: the suite `unseen` on two days. 1.5 to 11.1: the suite `leading` on four tasks
    "One seed: differences below five points mean nothing. Training alone, run again with the same seed, differed by"
    " 3.6 points. Over three seeds its standard deviation is 1.5 to 11.1 points."
)
PAIRED = "The difference is paired by patient and seed."
CHANCE = " p is corrected by Holm for all rows."
OF_SUITE = {  # what else a reader has to know
    "efficiency": "Each site has the row's number of images.",
    "late": "A site that joins or trains alone has the row's number of images, and the others 16.",
    "bounds": "The defaults cut each update to the round's median length, and a site's share to one and a half equal"
    " shares.",
}
DECODERS = {"full": "whole", "lora": "by LoRA", "lean": "lean"}
RATES = "Rates: of what is trained in the encoder, of the decoder, and of what stays at a site."
TOLD: dict[str, Callable[[Config], str]] = {  # settings in which rows may differ
    "rates": lambda config: rates(config),
    "decoder": lambda config: DECODERS[config.model.decoder],
    "messages": lambda config: config.wire.up,
    "server's rule": lambda config: config.server.rule,
}
Cells = dict[str, float]  # of one run, by column


def main() -> None:
    """Run every row that is not there yet, print a table, and keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=NAMES, help="its rows instead of all methods")
    parser.add_argument("--task", default="nuclei_he")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", nargs="+", help="only these, in this order; they are compared with the first")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="give each number another --out")
    parser.add_argument("--out", type=Path, default=Path("runs/field"), help="holds what is done; it resumes")
    options = keepable(parser).parse_args()
    torch.set_num_threads(1)
    rows = rows_of(options.suite, options.task, small(options.task)) if options.suite else of_methods()
    named = {row.name: row for row in rows}
    if unknown := [name for name in options.rows or () if name not in named]:
        parser.error(f"no row {', '.join(unknown)} among {', '.join(named)}")
    rows = [named[name] for name in options.rows] if options.rows else rows
    runs = {row: [Run(options.task, row, seed) for seed in options.seeds] for row in rows}
    try:
        found = {row: [line(run, options.out, options.rounds) for run in of_row] for row, of_row in runs.items()}
    except UserFault as fault:
        sys.exit(f"{fault}")
    some = f", {len(rows)} of them" if options.rows else ""
    what = f"Suite {options.suite}" if options.suite else f"Methods side by side{some}"
    title = f"{what} on {options.task}: {IMAGES} images a site, 128 px, {options.rounds} rounds"
    table = unseen(found) if options.suite == UNSEEN else as_table(found, differing(runs, options.out))
    ways = {row.label: smaller(of_row[0], options.rounds)[1] for row, of_row in runs.items()}
    told = notes(options.suite, options.task, options.seeds, ways)
    publish(title, with_settings(table, ways), notes=told, keep=options.keep)


def notes(suite: str | None, task: str, seeds: list[int], ways: dict[str, Config]) -> list[str]:
    """What a reader has to know of the table, whose rows have these settings."""
    own = (
        "own site: test Dice of the branch that predicts at its own site. global: of the shared branch there. Where"
        " sites keep a part of it, or get a model each, a site that takes no part would get less."
    )
    out = "Test Dice at the site that was left out: of the global branch, or of what the site made of it or alone."
    one = len(seeds) == 1
    return [
        f"{out if suite == UNSEEN else own} {len(sizes(task))} sites, seed {', '.join(map(str, seeds))}.",
        *([ONE_SEED] if one else []),
        *([PAIRED + CHANCE * (not one)] if suite != UNSEEN else []),
        *([OF_SUITE[suite]] if suite in OF_SUITE else []),
        f"{RATES} {in_common(ways)}".strip(),
    ]


def with_settings(table: Table, ways: dict[str, Config]) -> Table:
    """The table, with a column for each setting in which its rows differ. `ways` has their settings by label."""
    differ = {name: tell for name, tell in TOLD.items() if len({*map(tell, ways.values())}) > 1}
    rows = [[*row, *(tell(ways[str(row[0])]) for tell in differ.values())] for row in table.rows]
    return Table(table.columns | dict.fromkeys(differ, ""), rows)


def in_common(ways: dict[str, Config]) -> str:
    """What is alike in the rows' settings."""
    found = {name: {*map(tell, ways.values())} for name, tell in TOLD.items()}
    alike = [f"{name} {value}" for name, (value, *others) in found.items() if not others]
    return f"Alike in all rows: {', '.join(alike)}." if alike else ""


def rates(config: Config) -> str:
    """The three rates of a row's settings."""
    train = config.train
    private = train.lr if train.lr_private is None else train.lr_private
    decoder = train.lr if train.lr_decoder is None or config.model.decoder == "lora" else train.lr_decoder
    return " / ".join(f"{rate:g}" for rate in (train.lr, decoder, private))


def small(task: str) -> dict[str, int]:
    """The sites of a task, with as many training images as they have here."""
    return {site: min(IMAGES, size) for site, size in sizes(task).items()}


def of_methods() -> list[Row]:
    """A row a method. pFedSAM is in the form of the jobs on real data."""
    names = [*FIRST, *(name for name in methods.names() if name not in (*FIRST, *NOT))]
    ours = {"pfedsam": OWN_LORA.changes}
    return [Row(name, name, ours.get(name, (f"method={name}", *OWN.get(name, ())))) for name in names]


def differing(runs: dict[Row, list[Run]], out: Path) -> dict[Row, tuple[str, str]]:
    """By row, the difference at the sites' own branches to the row that it is beside, its interval, and its p value."""
    task = next(iter(runs.values()))[0].task
    homes = read_homes(task)
    found = {row.name: {run.seed: ended(run, out) for run in of_row} for row, of_row in runs.items()}
    pairs = {row: beside for row in runs if (beside := beside_of(row, runs))}
    of = {row: differences(found[row.name], found[one.name], "personal", homes) for row, one in pairs.items()}
    gaps = {row: gap for row, gap in of.items() if gap}  # nothing where two rows have no site in common
    first = next(iter(runs))
    return {
        row: (in_words(gaps[row]) + (f", {pairs[row].label}" if pairs[row] != first else ""), f"{p:.3f}")
        for row, p in corrected(gaps).items()
    }


def beside_of(row: Row, rows: Iterable[Row]) -> Row | None:
    """The row that a row is compared with: the one that it names if that runs too, else the first. None: no row."""
    first, *_ = named = {one.name: one for one in rows}
    return None if row.beside == "" or row.name == first else named.get(row.beside or first, named[first])


def ended(run: Run, out: Path) -> Found:
    """An ended run."""
    return read(run.folder(out), json.loads((run.folder(out) / "results.json").read_text()))


def as_table(found: dict[Row, list[Cells]], differ: dict[Row, tuple[str, str]]) -> Table:
    """A line a row. Of methods the best comes first. With one seed it has no p, which would know of patients alone."""
    ps = slice(1 if len(next(iter(found.values()))) == 1 else 2)
    labelled = any(row.label != row.name for row in found)
    ranked = sorted(found, key=lambda row: 0.0 if labelled else -mean(found[row], "own site"))
    lines: list[list[str | float]] = [
        [
            row.label,
            spread([one["own site"] for one in found[row]]),
            *(mean(found[row], cell) for cell in MEANS),
            *differ.get(row, ("", ""))[ps],
        ]
        for row in ranked
    ]
    less = dict.fromkeys([f"less {next(iter(found)).label}", "p"][ps], "")
    return Table({"row": "", "own site": "", **MEANS, **less}, lines)


def mean(runs: Sequence[Cells], cell: str) -> float:
    """A cell's mean over seeds."""
    return st.fmean(one[cell] for one in runs)


def unseen(found: dict[Row, list[Cells]]) -> Table:
    """A line a method, a column for each site that was left out, and their mean."""
    scores: dict[str, Cells] = {}
    for row, runs in found.items():
        site = max((cell for cell in runs[0] if row.name.startswith(cell.replace(AT, f"{UNSEEN}_"))), key=len)
        scores.setdefault(row.label, {})[site.removeprefix(AT)] = mean(runs, "own site" if row.sites else site)
    outs = sorted({out for of in scores.values() for out in of})
    lines: list[list[str | float]] = [
        [label, *(of[out] for out in outs), st.fmean(of.values())] for label, of in scores.items()
    ]
    return Table({"row": "", **dict.fromkeys([*outs, "mean"], ".3f")}, lines)


def line(run: Run, out: Path, rounds: int) -> Cells:
    """A run's cells. It is trained and tested if it is not there yet, and stays beside them: others begin from it.

    Raises:
        UserFault: what is there ran with other settings or another number of rounds.
    """
    path = run.folder(out) / "cells.json"
    if path.exists():
        demand_same(run, out, rounds)
    else:
        run.folder(out).mkdir(parents=True, exist_ok=True)
        write_json(path, cells(run, out, rounds))
    held: Cells = json.loads(path.read_text())
    print(run.row.name, held, flush=True)
    return held


def demand_same(run: Run, out: Path, rounds: int) -> None:
    """Hold what a run's row and rounds would be here against those of the run that ended there.

    Raises:
        UserFault: they differ.
    """
    folder = run.folder(out)
    _, config, rounds = smaller(run, rounds)
    record = read_results(folder / "results.json")
    same_settings(config, record["config"], f"the run in {folder}", "name another --out")
    if len(record["rounds"]) != rounds:
        came = f"{len(record['rounds'])}"
        raise UserFault(expected=f"{rounds} rounds in {folder}", came=came, do="name another --out")


def smaller(run: Run, rounds: int) -> tuple[dict[str, int], Config, int]:
    """A run's sites with their training images here, its settings, and its rounds."""
    named = {site: size for site, size in small(run.task).items() if site in (run.row.sites or sizes(run.task))}
    row = replace(run.row, changes=(SMALL, *few(named, IMAGES, IMAGES), *run.row.changes))
    return named, *settings(replace(run, row=row), rounds)


def cells(run: Run, out: Path, rounds: int) -> Cells:
    """Train and test one row, small."""
    named, config, rounds = smaller(run, rounds)
    here, began = places(run, out), time.process_time()
    if config.data.pool:
        here = replace(here, data=few_of_each(data_of(run.task), run.folder(out) / "data", run.task, config.seed))
    record = federate(planned(run, out, config, dict.fromkeys(sites(run, config), here), rounds))
    tested: dict[str, dict[str, Any]] = record["final"]["sites"]
    dice = by_hospital(run, out, list(named)) if config.data.pool else scored(tested)
    sent = [one["bytes_sent"] for one in record["rounds"][-1]["sites"].values()]
    return {
        "own site": st.fmean(dice["personal"].values()),
        "worst": min(dice["personal"].values()),
        "global": st.fmean(dice["global"].values()),
        "validation": st.fmean(of_sites(tested, "personal").values()),
        "MB up": st.fmean(sent) / 1e6,
        "CPU s": time.process_time() - began,
        **({} if config.data.pool else {AT + site: score for site, score in dice["global"].items()}),
    }


def scored(tested: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The test Dice of each branch at the run's sites. A site where nothing could be scored is left out."""
    return {
        branch: {site: one[branch]["dice"] for site, one in tested.items() if one[branch]["dice"] is not None}
        for branch in ROLES
    }


def by_hospital(run: Run, out: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """The same of a pooled run, whose one site has the test images of all hospitals."""
    found = {branch: by_site(ended(run, out), branch, read_homes(run.task)) for branch in ROLES}
    return {branch: {name: of[name]["dice"] for name in names if name in of} for branch, of in found.items()}


def few_of_each(data: Path, folder: Path, task: str, seed: int) -> Path:
    """`folder` with a task's images, and a datalist that has only as many training rows of each site as it has here.

    They are the rows that each site would draw for itself: a pooled run knows no site's limit.
    """
    homes = {part: site for site, parts in joined(task).items() for part in parts}
    rows = raw_rows(data / "manifest.csv")
    trains: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row["split"] == "train":
            trains.setdefault(homes.get(row["site"], row["site"]), []).append(i)
    taken = {i for of in trains.values() for i in at_most(IMAGES, of, seed)}
    folder.mkdir(parents=True, exist_ok=True)
    for entry in data.iterdir():
        if entry.name != "manifest.csv" and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry.resolve())
    with (folder / "manifest.csv").open("w", newline="") as file:
        kept = [row for i, row in enumerate(rows) if row["split"] != "train" or i in taken]
        write_cells(file, list(rows[0]), kept, {*PATHS})
    return folder


if __name__ == "__main__":
    main()
