"""pfedsam report: write a run's report as one HTML file."""

import argparse
from pathlib import Path

from pfedsam.cli import console
from pfedsam.errors import UserFault

HELP = "write a run's report as one HTML file that opens without a network"
EXAMPLE = "pfedsam report runs/pfedsam --out report.html"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add = parser.add_argument
    add("run", type=Path, help="a simulator workspace, a downloaded result, a site's own folder, or a results.json")
    add(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE.html",
        help="the file to write; default report.html",
    )
    add("--no-cases", action="store_true", help="leave out pictures and intervals: such a page may leave the site")
    add("--json", action="store_true", help="print the page's summary as one JSON object")


def serve(options: argparse.Namespace) -> None:
    """Write the page and print its summary. A page may be replaced, but no other file, such as the run's record."""
    from pfedsam.report.gather import gather
    from pfedsam.report.page import write_report

    if options.out.exists() and options.out.suffix.lower() not in (".html", ".htm"):
        do = "name a file that ends with .html"
        raise UserFault(expected=f"a page or no file at {options.out}", came="another file", do=do)
    said = write_report(gather(options.run), options.out, pictures=not options.no_cases)
    if options.json:
        return console.say(said)
    console.show(*said["summary"])
    where = "; keep it at the site: it shows data that may not leave" if said["stays_at_the_site"] else ""
    console.show(f"report: {options.out}{where}")
