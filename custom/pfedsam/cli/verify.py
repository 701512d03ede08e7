"""pfedsam verify: check that a model file is complete and belongs to its run, settings and base."""

import argparse
import dataclasses
from pathlib import Path

from pfedsam.cli.console import say

HELP = "check that a model file or a run's tensors are complete and fit their run, settings and base"
EXAMPLE = "pfedsam verify model.safetensors --results runs/pfedsam/server/simulate_job/results.json"
MARKS = {True: "ok", False: "FAILED", None: "-"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add = parser.add_argument
    add("file", type=Path, help="an exported model, models/shared.safetensors, or a site's private.safetensors")
    add(
        "--results",
        type=Path,
        metavar="FILE",
        help="the run's results.json; default: that of the run folder that contains the file",
    )
    add("--weights", type=Path, metavar="DIR", help="the folder of pretrained weight files; default: PFEDSAM_WEIGHTS")
    add("--json", action="store_true", help="print the checks as JSON")


def serve(options: argparse.Namespace) -> int:
    """Print one line per check. Return 1 if one failed."""
    from pfedsam.export.verify import verify

    checks = verify(options.file, options.results, options.weights)
    fine = all(check.ok is not False for check in checks)
    if options.json:
        say({"file": str(options.file), "ok": fine, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        for check in checks:
            print(f"{MARKS[check.ok]:7} {check.name:17} {check.why}")
    return 0 if fine else 1
