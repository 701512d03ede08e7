"""pfedsam prepare: turn a folder of NIfTI, DICOM or pictures into a datalist, with a report in words."""

import argparse
import json
from pathlib import Path
from typing import Any

from pfedsam.cli.console import say, show, tracked
from pfedsam.data.planes import CHOICES

HELP = "turn a folder of NIfTI, DICOM or picture files into a datalist, with a report in words"
EXAMPLE = "pfedsam prepare /data/ward-7 /data/pfedsam --site hospital-a"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="where the files are")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder for the results")
    parser.add_argument("--site", default="site", help="the site's name, for the report")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="a folder in which every file is a mask")
    parser.add_argument(
        "--plane",
        default="axial",
        choices=CHOICES,
        help="how volumes are cut into slices; stored: along the last axis of the file",
    )
    parser.add_argument(
        "--pair",
        nargs=2,
        metavar=("IMAGE_REGEX", "MASK_REGEX"),
        help="an image and its masks share the text of the first group, such as 'volume-(.+)' 'segmentation-(.+)';"
        " a second group of MASK_REGEX is the name of a structure",
    )
    parser.add_argument("--labels", metavar="VALUE=CLASS,...", help="the class of each mask value or structure name")
    parser.add_argument("--ignore", type=int, metavar="VALUE", help="the mask value of pixels that nobody labelled")
    parser.add_argument("--names", metavar="NAME,...", help="the classes' names in the order of their numbers")
    parser.add_argument("--classes", type=int, metavar="N", help="the number of classes, without the background")
    parser.add_argument("--split", metavar="SHARES", help="shares of train, val and test; default: 0.7,0.1,0.2")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the splits; another seed gives other splits")
    parser.add_argument(
        "--patient",
        metavar="REGEX",
        help=r"the first group is the patient, such as '^(p\d+)_', searched in the file name, then in the path;"
        " folder: each folder is a patient; each: each image is a patient",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def serve(options: argparse.Namespace) -> int:
    """Prepare the folder and print the outcome."""
    from pfedsam.prepare.site import prepare

    out = None if options.dry_run else options.out
    report = prepare(options.folders, out, _wish(options), tracked)
    say(report) if options.json else show(*_words(report, out))
    return 0


def _wish(options: argparse.Namespace) -> Any:
    from pfedsam.prepare.classes import parse_names
    from pfedsam.prepare.labels import parse_table
    from pfedsam.prepare.site import Wish
    from pfedsam.prepare.splits import parse_shares

    return Wish(
        site=options.site,
        masks=options.masks,
        plane=options.plane,
        table=parse_table(options.labels) if options.labels is not None else None,
        classes=options.classes,
        ignore=options.ignore,
        shares=parse_shares(options.split) if options.split is not None else None,
        seed=options.seed,
        patient=options.patient,
        pair=tuple(options.pair) if options.pair else None,
        names=parse_names(options.names) if options.names is not None else (),
    )


def _words(report: dict[str, Any], out: Path | None) -> list[str]:
    """The report's main points as lines."""
    from pfedsam.prepare.page import by_reason
    from pfedsam.prepare.words import some_of

    volumes = report["sizes"]["slices"][-1] > 1  # pictures have no plane
    plane = f", data.plane to {report['plane']}" if volumes else ""
    names = json.dumps(report["class_names"], ensure_ascii=False)
    return [
        f"{_of(report['cases'], 'pair')} of image and mask, {_of(report['slices'], 'slice')},"
        f" {_of(report['patients'], 'patient')}.",
        report["patients_by"],
        report["labels_by"],
        f"Set model.num_classes to {report['classes']}{plane} and data.scale to"
        f" {report['intensity']['scale']}: {report['intensity']['why']}.",
        *_unlabelled(report["unlabelled"]),
        *([f"Set data.classes to {names}."] if report["class_names"] else []),
        f"{report['split_by']} " + "; ".join(f"{name}: {_split(s)}" for name, s in report["splits"].items()) + ".",
        *(f"Note: {note}" for note in report["notes"]),
        *(
            f"Left out: {some_of(files, 1)}: {why}. To mend it: {do}."
            for why, do, files in by_reason(report["dropped"])
        ),
        f"Written to {out}: look at {out / 'report.html'} first." if out else "Nothing was written (--dry-run).",
    ]


def _split(one: dict[str, int]) -> str:
    return f"{_of(one['patients'], 'patient')}, {_of(one['slices'], 'slice')}"


def _of(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _unlabelled(counts: dict[str, Any] | None) -> list[str]:
    if counts is None:
        return []
    share = f"{counts['pixels']} pixels ({counts['share']:.2%}) in {counts['cases']} cases"
    return [f"Unlabelled: {share}. Set data.ignore to 255: then they are neither trained on nor scored."]
