"""pfedsam report: a run as one HTML file."""

import argparse
from pathlib import Path

from pfedsam.cli import console

HELP = "write a run as one HTML file that opens without a network"
EXAMPLE = "pfedsam report runs/pfedsam --out report.html"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    add = parser.add_argument
    add("run", type=Path, help="a simulator workspace, a downloaded result, a site's own folder, or a results.json")
    add(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE.html",
        help="the file to write; default report.html",
    )
    add("--no-cases", action="store_true", help="leave out pictures and intervals, so that the page may leave a site")
    add("--json", action="store_true", help="print what it says in short as one JSON object")


def serve(options: argparse.Namespace) -> None:
    """Write the page and say what it says."""
    from pfedsam.report.gather import gather
    from pfedsam.report.page import write_report

    said = write_report(gather(options.run), options.out, pictures=not options.no_cases)
    if options.json:
        return console.say(said)
    print("\n".join(said["summary"]))
    where = "; it holds what may not leave a site" if said["stays_at_the_site"] else ""
    print(f"report: {options.out}{where}")
