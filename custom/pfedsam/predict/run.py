"""Predicts a folder of files, with one scan in memory at a time."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pfedsam.data.readable import readable
from pfedsam.errors import UserFault
from pfedsam.inference.predictor import Predictor
from pfedsam.predict.given import read_scan
from pfedsam.predict.masks import Way, segment
from pfedsam.predict.scans import Scan, parts, twins
from pfedsam.predict.segmentation import Classes, check_series
from pfedsam.predict.written import existing, files_of, target, write


@dataclass(frozen=True)
class Done:
    """The outcome of one scan.

    Attributes:
        scan: None if the file could not be recognised as a scan.
        files: what was written; empty if all files existed already.
        fault: why nothing could be written, or None.
        pixels: the number per class, summed over the slices.
    """

    scan: Scan | None
    files: tuple[Path, ...] = ()
    fault: UserFault | None = None
    pixels: tuple[int, ...] = ()


def predict(
    model: Predictor, scans: Iterable[Scan | UserFault], out: Path, way: Way, classes: Classes, *, again: bool = False
) -> Iterator[Done]:
    """Write the masks of every scan below `out`. A faulty scan is reported and skipped.

    If several items would get the same mask file, all of them are faulty.

    Args:
        classes: their names in order, and their codes.
        again: write existing files again; otherwise existing files are kept.
    """
    every = list(scans)
    known = [scan for scan in every if isinstance(scan, Scan)]
    faults = twins(known) | parts(known) | _rivals(known, out, len(classes.names), way)
    for scan in every:
        if isinstance(scan, UserFault):
            yield Done(None, fault=scan)
            continue
        try:
            if scan.files[0] in faults:
                raise faults[scan.files[0]]
            yield _one(model, scan, out, way, classes, again)
        except UserFault as fault:
            yield Done(scan, fault=_named(fault, scan))


def _rivals(scans: list[Scan], out: Path, classes: int, way: Way) -> dict[Path, UserFault]:
    """By a scan's first file, the fault of scans of which two would write the same file."""
    rivals: dict[Path, list[Path]] = defaultdict(list)
    for scan in scans:
        for path in files_of(out, scan, classes, probabilities=way.probabilities):
            rivals[path].append(scan.files[0])
    return {
        file: UserFault(
            expected=f"one image that is predicted into {mask}",
            came=" and ".join(map(str, files)),
            do="rename them, or predict each separately into its own folder",
        )
        for mask, files in rivals.items()
        for file in (files if len(files) > 1 else ())
    }


def _one(model: Predictor, scan: Scan, out: Path, way: Way, classes: Classes, again: bool) -> Done:
    with readable(scan.files[0]):
        if done := _there(scan, out, way, classes, again):
            return done
        volume = read_scan(scan)
        if scan.kind == "dicom":  # before the mask is computed
            check_series(scan, classes)
    found = segment(model, volume, way)
    with readable(scan.files[0]):
        written = write(out, scan, found, classes, again=again)
    return Done(scan, tuple(written), pixels=tuple(int(one.sum()) for one in found.masks))


def _there(scan: Scan, out: Path, way: Way, classes: Classes, again: bool) -> Done | None:
    """The outcome of a scan whose files are there already. None if there is something to do."""
    mask = target(out, scan)
    if mask in scan.files:
        raise UserFault(
            expected="a separate output folder", came=f"{out}, which contains {scan.name}", do="name another"
        )
    if not again and mask.exists():
        if wrong := existing(mask, scan, anonymous=classes.anonymous):
            raise UserFault(
                expected=f"no other mask at {mask}",
                came=f"{wrong}; it was not replaced",
                do="name another output folder, or --overwrite",
            )
        files = files_of(out, scan, len(classes.names), probabilities=way.probabilities)
        if all(path.exists() for path in files):
            return Done(scan)
    return None


def _named(fault: UserFault, scan: Scan) -> UserFault:
    """The fault with the name of the scan's file."""
    text = str(scan.files[0])
    if text in str(fault):
        return fault
    return UserFault(expected=f"{fault.expected} in {text}", came=fault.came, do=fault.do)
