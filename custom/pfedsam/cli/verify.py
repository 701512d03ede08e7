"""pfedsam verify: whether a model file is whole and of the run, settings and base it names."""

import argparse
import dataclasses
from pathlib import Path

from pfedsam.cli.console import say

HELP = "check an exported model or a run's tensors: whole, of its run, settings and base; exit code 1 if not"
EXAMPLE = "pfedsam verify model.safetensors --results runs/pfedsam/server/simulate_job/results.json"
MARKS = {True: "ok", False: "FAILED", None: "-"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    add = parser.add_argument
    add("file", type=Path, help="an exported model, models/shared.safetensors, or a site's private.safetensors")
    add(
        "--results",
        type=Path,
        metavar="FILE",
        help="the run's results.json; default: the run folder's, if it lies in one",
    )
    add("--weights", type=Path, metavar="DIR", help="folder of pretrained weight files; default: PFEDSAM_WEIGHTS")
    add("--json", action="store_true", help="say the checks as JSON")


def serve(options: argparse.Namespace) -> int:
    """Print a line a check; 1 if one failed."""
    from pfedsam.export.verify import verify

    checks = verify(options.file, options.results, options.weights)
    fine = all(check.ok is not False for check in checks)
    if options.json:
        say({"file": str(options.file), "ok": fine, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        for check in checks:
            print(f"{MARKS[check.ok]:7} {check.name:17} {check.why}")
    return 0 if fine else 1
