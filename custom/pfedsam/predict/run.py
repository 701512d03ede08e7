"""Predicts a folder of files, with one scan in memory at a time."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfedsam.data.readable import readable
from pfedsam.errors import UserFault
from pfedsam.inference.predictor import Predictor
from pfedsam.predict.given import read_scan
from pfedsam.predict.made import Record, maker_of
from pfedsam.predict.masks import Way, segment
from pfedsam.predict.scans import Scan, parts, twins
from pfedsam.predict.segmentation import Classes, check_series
from pfedsam.predict.written import existing, files_of, write


@dataclass(frozen=True)
class Done:
    """The outcome of one scan.

    Attributes:
        scan: None if the file could not be recognised as a scan.
        files: what was written; empty if all files existed already.
        fault: why nothing could be written, or None.
        pixels: of the mask, the number per class, summed over the slices; empty if the mask was not written.
    """

    scan: Scan | None
    files: tuple[Path, ...] = ()
    fault: UserFault | None = None
    pixels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where masks go: a folder, the record of what made those in it, and whether they are written again."""

    out: Path
    record: Record
    again: bool


def predict(
    model: Predictor, scans: Iterable[Scan | UserFault], out: Path, way: Way, classes: Classes, *, again: bool = False
) -> Iterator[Done]:
    """Write the masks of every scan below `out`. A faulty scan is reported and skipped.

    If several items would get the same mask file, all of them are faulty. So is one whose files are there already, but
    of another model, branch, plane or scale, of another image, or with other names in a DICOM segmentation.

    Args:
        classes: their names in order, and their codes.
        again: write existing files again; otherwise existing files are kept.
    """
    every = list(scans)
    known = [scan for scan in every if isinstance(scan, Scan)]
    record = Record(out)
    faults = twins(known) | parts(known) | _rivals(known, out, len(classes.names), way)
    for scan in every:
        if isinstance(scan, UserFault):
            yield Done(None, fault=scan)
            continue
        try:
            if scan.files[0] in faults:
                raise faults[scan.files[0]]
            yield _one(model, scan, Place(out, record, again), way, classes)
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
        for mask, files in reversed(rivals.items())  # of an image's files, the mask is the first
        for file in (files if len(files) > 1 else ())
    }


def _one(model: Predictor, scan: Scan, place: Place, way: Way, classes: Classes) -> Done:
    files = files_of(place.out, scan, len(classes.names), probabilities=way.probabilities)
    missing = [path for path in files if place.again or not path.exists()]
    with readable(scan.files[0]):
        maker = maker_of(model, way, scan, classes)
        _check_mask(scan, files[0], place, kept=files[0] not in missing, anonymous=classes.anonymous)
        _check_ours(files, place)
        for path in files_of(place.out, scan, len(classes.names), probabilities=True):
            if path.exists() and path not in missing and (wrong := place.record.other(path, maker)):
                raise _not_replaced(path, f"one of {wrong}")
        if not missing:
            return Done(scan)
        volume = read_scan(scan)
        if scan.kind == "dicom":  # before the mask is computed
            check_series(scan, classes)
    found = segment(model, volume, way)
    with readable(scan.files[0]):
        place.record.add(missing, maker)
        written = write(place.out, scan, found, classes, again=place.again)
    counts = tuple(int(one.sum()) for one in found.masks) if files[0] in written else ()
    return Done(scan, tuple(written), pixels=counts)


def _check_ours(files: Sequence[Path], place: Place) -> None:
    """Check that those of the files which exist were written by this function: no other is overwritten or kept."""
    if strange := next((path for path in files if path.exists() and not place.record.known(path)), None):
        raise UserFault(
            expected=f"no file at {strange} but one that pfedsam predict wrote",
            came="another, such as a drawn mask or an image",
            do="move it away, or predict into another folder",
        )


def _check_mask(scan: Scan, mask: Path, place: Place, *, kept: bool, anonymous: bool) -> None:
    """Refuse a mask that would replace its image, and one to be kept that is not this scan's."""
    if mask in scan.files:
        raise UserFault(
            expected="a separate output folder", came=f"{place.out}, which contains {scan.name}", do="name another"
        )
    if kept and (wrong := existing(mask, scan, anonymous=anonymous)):
        raise _not_replaced(mask, wrong)


def _not_replaced(path: Path, wrong: str) -> UserFault:
    likely = " and --probabilities" if ".prob" in path.name else ""
    return UserFault(
        expected=f"no other mask at {path}",
        came=f"{wrong}; it was not replaced",
        do=f"name another output folder, remove what is there, or add --overwrite{likely}",
    )


def _named(fault: UserFault, scan: Scan) -> UserFault:
    """The fault with the name of the scan's file."""
    text = str(scan.files[0])
    if text in str(fault):
        return fault
    return UserFault(expected=f"{fault.expected} in {text}", came=fault.came, do=fault.do)
