"""pfedsam verify: check that a model file is complete, belongs to its run, settings and base, and who signed it."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from pfedsam.cli.console import say, show
from pfedsam.errors import UserFault

if TYPE_CHECKING:
    from pfedsam.export.verify import Check

HELP = "check that a model file or a run's tensors are complete, fit their run, settings and base, and who signed them"
EXAMPLE = "pfedsam verify model.safetensors --results runs/pfedsam/server/simulate_job/results.json"
MARKS = {True: "ok", False: "FAILED", None: "-"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add = parser.add_argument
    add("file", type=Path, help="an exported model, models/shared.safetensors, or a site's private.safetensors")
    add(
        "--results",
        type=Path,
        metavar="PATH",
        help="the run's results.json, or its folder; default: the run folder that contains the file",
    )
    add("--weights", type=Path, metavar="DIR", help="the folder of pretrained weight files; default: PFEDSAM_WEIGHTS")
    by = "check the signature beside the file (FILE.sig): rootCA.pem of the project, or a startup kit with it"
    add("--by", type=Path, metavar="ROOT", help=by)
    add("--signer", default="", metavar="NAME", help="the name that the signer must have; default: any party's")
    add("--json", action="store_true", help="print the checks as JSON")


def serve(options: argparse.Namespace) -> int:
    """Print one line per check. Return 1 if one failed."""
    if options.signer and not options.by:
        raise UserFault(expected="--by with --signer", came="none", do="name the root certificate that you trust")
    checks = _checks(options)
    fine = all(check.ok is not False for check in checks)
    if options.json:
        say({"file": str(options.file), "ok": fine, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        for check in checks:
            show(f"{MARKS[check.ok]:7} {check.name:17} {check.why}")
    return 0 if fine else 1


def _checks(options: argparse.Namespace) -> "list[Check]":
    """All checks of a file of tensors. Of another file, such as an ONNX graph, only its signature can be checked."""
    from pfedsam.certificates import root_of
    from pfedsam.export.signature import beside
    from pfedsam.export.verify import signature, verify

    root, tensors = root_of(options.by) if options.by else None, options.file.suffix == ".safetensors"
    checks = verify(options.file, options.results, options.weights) if tensors or root is None else []
    told = root is not None or beside(options.file).exists()
    return [*checks, *([signature(options.file, root, options.signer)] if told else [])]
