"""pfedsam back: let a run go on from an earlier good round, at the server. Nothing is deleted."""

import argparse
from pathlib import Path
from typing import Any

from pfedsam.cli.console import show
from pfedsam.errors import UserFault
from pfedsam.names import one_name, site_name

HELP = "let a run go on from an earlier good round, or from before a site joined; at the server"
EXAMPLE = "pfedsam back liver-1a2b3c4d 5 --store /srv/fl-server/pfedsam_store"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add = parser.add_argument
    add("run", help="the run's name")
    add("round", type=int, nargs="?", help="go back to the last good model after at most so many finished rounds")
    add("--without", default="", metavar="SITE", help="go back to before this site's first update, and leave it out")
    add("--store", type=Path, required=True, help="the server's store (setting store)")
    add("--study", default="", help="the study's name, if runs of several studies have the same name")


def serve(options: argparse.Namespace) -> None:
    """Write the new run's first checkpoint, and say what was done and what to do."""
    from pfedsam.exchange.checkpoint import Checkpoints
    from pfedsam.record.back import BACK, go_back

    if options.round is None and not options.without:
        raise UserFault(
            expected="a round, or --without SITE", came="neither", do="pfedsam back RUN ROUND --store STORE"
        )
    without = site_name(options.without) if options.without else ""
    points = Checkpoints(options.store, _study(options.store, options.run, options.study))
    new = go_back(points, options.run, options.round, without=without)
    for line in _told(new.run, new.results[BACK][-1], options.round, points.folder):
        show(line)


def _study(store: Path, run: str, study: str) -> str:
    """The study of the run in the server's store."""
    found = sorted(path.parents[1].name for path in store.glob(f"*/server/{one_name(run, 'run')}"))
    if study in found or (len(found) == 1 and not study):
        return study or found[0]
    where = f"study {study}" if study else "one study"
    raise UserFault(
        expected=f"run {run} in {where} of {store}",
        came=f"the run in {', '.join(found)}" if found else "no folder of that run",
        do="name it with --study" if found else "correct the run's name, or --store: runs are in STORE/STUDY/server",
    )


def _told(new: str, step: dict[str, Any], asked: int | None, folder: Path) -> list[str]:
    old, done = step["run"], step["round"]
    lines = [f"Run {old} goes back to its model after {done} rounds, and goes on as run {new}."]
    if asked is not None and asked != done:
        lines.append(f"That is the last good one that is kept after at most {asked} rounds.")
    lines += [
        f"Nothing is deleted: {folder / old} stays as it is.",
        f"Each site begins round {done + 1} with its own private part from before that round. If its store has none"
        " from then, it begins with the oldest from later. No site deletes anything.",
    ]
    for site in step["without"]:
        lines += [
            f"The server neither asks nor sends {site} anything in run {new}.",
            f"What {site} contributed is still in {folder / old} and in the results of that run's jobs."
            " Delete them once nobody needs them.",
            "If the job's min_sites is above the number of sites that are left, lower it in a copy of the job's file.",
        ]
    return [*lines, f"End a job of run {old} that still runs. Then: pfedsam watch JOB --kit KIT --continue {new}"]
