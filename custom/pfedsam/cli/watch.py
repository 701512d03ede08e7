"""pfedsam watch: submit a job and continue its run until the last round is done."""

import argparse
import os
import threading
from pathlib import Path

from pfedsam.cli import console

HELP = "submit a rendered job and continue its run to the last round, even if processes die"
EXAMPLE = "pfedsam watch /tmp/job --kit kits/lead@hub.org --out results"
STOPPED = "; a submitted job goes on without you. To watch it again, add --continue RUN with the run's name"
ENDS_WITHIN = 10.0  # seconds from Ctrl-C. Our choice: longer than FLARE takes to end a session


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("job", type=Path, help="a folder that pfedsam render wrote")
    parser.add_argument("--kit", type=Path, required=True, help="your startup kit")
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder for downloaded results")
    parser.add_argument("--continue", dest="continues", default="", metavar="RUN", help="continue this run")


def serve(options: argparse.Namespace) -> None:
    """Watch until the run has ended."""
    from pfedsam import log
    from pfedsam.certificates import now, warnings
    from pfedsam.flare.admin import Admin
    from pfedsam.flare.presence import Lookout
    from pfedsam.flare.watch import watch

    console.tell()
    for line in warnings(options.kit, now()):
        log.warning("%s", line)
    try:
        with Admin(options.kit.resolve()) as admin:
            outcome = watch(options.job, Lookout(admin), out=options.out.resolve(), continues=options.continues)
    except KeyboardInterrupt:
        end = threading.Timer(ENDS_WITHIN, os._exit, [130])  # Python waits for each thread of FLARE's, for ever
        end.daemon = True
        end.start()
        raise
    console.show(f"run {outcome.run} ended after {len(outcome.ends)} jobs; results: {outcome.folder}")
