"""Turns a hospital's folder into a datalist: completely, or not at all."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pfedsam.data.classes import safe_flips, sided
from pfedsam.data.datalist import SPLITS
from pfedsam.data.folder import check_free, new_folder
from pfedsam.data.readable import disguised, readable
from pfedsam.data.values import MOST_CLASSES
from pfedsam.data.volume import kind_of
from pfedsam.errors import UserFault
from pfedsam.prepare import measurements, predicted
from pfedsam.prepare.classes import check_by_name, check_numbers, class_names, numbered
from pfedsam.prepare.convert import Plan, mask_values, read_pair, read_weak, write_mask, write_pair
from pfedsam.prepare.copies import check_kept, fingerprint, joined
from pfedsam.prepare.discover import discover, telling
from pfedsam.prepare.found import Case, Discovered, Dropped, Reason, reason
from pfedsam.prepare.labels import Values, understood
from pfedsam.prepare.layers import coverings
from pfedsam.prepare.measurements import measured
from pfedsam.prepare.outcome import Prepared, labels_by, names_of, write_down
from pfedsam.prepare.page import by_reason, thumbnail
from pfedsam.prepare.palettes import unlike
from pfedsam.prepare.patients import told_apart
from pfedsam.prepare.splits import SHARES, drawn
from pfedsam.prepare.words import some_of

PICTURES = 24
Watch = Callable[[Sequence[Any], str], Iterable[Any]]  # iterates over things and shows the progress


@dataclass(frozen=True)
class Wish:
    """The user's options.

    Attributes:
        site: the site's name in the report. In a datalist for several sites it selects the rows.
        masks: a folder that contains only masks.
        plane: axial, coronal, sagittal or stored.
        table: mask value or DICOM segment label to class number.
        ignore: the mask value of pixels that nobody labelled; None: all pixels are labelled.
        classes: number of classes without the background; None: as many as the masks show.
        shares: of train, val and test; None: those of a datalist, else 0.7, 0.1, 0.2.
        patient: a regular expression whose first group is the patient, `folder` or `each`; None: taken from the files.
        pair: regular expressions of an image and its mask with equal first groups; None: the naming rules apply.
        names: of the classes, in the order of their numbers; empty: taken from the files.
    """

    site: str = "site"
    masks: Path | None = None
    plane: str = "axial"
    table: dict[str, int] | None = None
    classes: int | None = None
    ignore: int | None = None
    shares: tuple[float, float, float] | None = None
    seed: int = 0
    patient: str | None = None
    pair: tuple[str, str] | None = None
    names: tuple[str, ...] = ()

    @property
    def structures(self) -> list[str]:
        """The structures that the options name, in their order."""
        return [*(key for key in self.table or {} if not key.isdecimal() and key != "*"), *self.names]


def prepare(
    folders: Sequence[Path], out: Path | None, wish: Wish, watch: Watch = lambda things, what: things
) -> dict[str, Any]:
    """The report. `out` gets datalist, images, masks, report and names; if it is None, nothing is written.

    Faulty files are left out and named in the report. The rest is prepared.

    Raises:
        UserFault: `out` is taken, no pair can be used, or there are too few patients.
    """
    if out is not None:
        check_free(out)
    found = discover(folders, wish.masks, site=wish.site, pair=wish.pair, structures=wish.structures)
    with nullcontext() if out is None else new_folder(out) as folder:
        return _prepared(found, folder, wish, watch)


def _prepared(found: Discovered, folder: Path | None, wish: Wish, watch: Watch) -> dict[str, Any]:
    if wish.classes is not None and not 1 <= wish.classes <= MOST_CLASSES:
        raise UserFault(expected=f"1 to {MOST_CLASSES} classes", came=str(wish.classes), do="correct --classes")
    if folder is not None:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
    cases, dropped, patients_by = told_apart(found.cases, wish.patient)
    segments, table = numbered(found.segments, wish.table, wish.names)
    cases, unread, values = _surveyed(cases, watch, colours=wish.table is None)
    check_by_name(segments, wish.table, values)
    classes = wish.classes or len(wish.names) or None
    names = [case.shown for case in cases]
    rule = understood(values, table, classes, ignore=wish.ignore, structures=segments, names=names)
    check_numbers(segments, rule, values, cases)
    done, failed, pictures = _converted(cases, folder, Plan(wish.plane, rule, segments, bool(wish.structures)), watch)
    left = [*found.dropped, *dropped, *unread, *failed]
    if not done:
        raise _nothing(found, [*unread, *failed, *dropped, *telling(found.dropped)])
    done, copies = joined(done)
    splits, split_by = _splits(done, wish, patients_by, [*_reasons(left), *copies])
    called = class_names(rule.classes, names_of(segments), wish.names)
    report = _report(replace(found, notes=[*found.notes, *copies]), done, left, wish, segments) | {
        "classes": rule.classes,
        "class_names": called,
        "labels": measurements.label_table(
            [d.facts for d in done], names_of(segments) | dict(enumerate(called, 1)), rule.classes
        ),
        "labels_by": labels_by(rule, segments, values),
        "unlabelled": None if rule.ignore is None else measurements.unlabelled([d.facts for d in done]),
        "patients_by": patients_by,
        "split_by": split_by,
        "splits": {s: _totals([d for d in done if splits[d.case.patient] == s]) for s in SPLITS},
    }
    if (those := sided(called)) and "both" not in (safe := safe_flips(wish.plane)):
        report["notes"].append(f"Train with train.flips={safe[0]}. The default mirrors {some_of(those)}.")
    if folder is not None:
        write_down(folder, done, splits, report, pictures)
    return report


def _nothing(found: Discovered, left: Sequence[Dropped]) -> UserFault:
    """The fault of a folder without a usable pair: the first reasons with some files each, and their remedies."""
    pairs = f"none of {len(found.cases)} pairs" if found.cases else "none"
    reasons = _reasons(left)
    return UserFault(
        expected="a usable pair of image and mask",
        came=(f"{pairs} in {found.files} files", *reasons),
        do="; ".join(dict.fromkeys(reasons.values())) or "name the folder that contains images and masks",
    )


def _reasons(left: Sequence[Dropped]) -> dict[str, str]:
    """The first reasons for leaving out files, with some files each, and the remedy of each."""
    return {f"{some_of(files)}: {why}": do for why, do, files in by_reason([vars(one) for one in left])[:3]}


def _surveyed(cases: Sequence[Case], watch: Watch, *, colours: bool) -> tuple[list[Case], list[Dropped], list[Values]]:
    """The cases whose masks can be read, those that are left out, and the mask values of the former.

    Args:
        colours: whether to leave out a mask if its palette gives a number another colour than most masks do.
    """
    kept, dropped, values = [], [], []
    for case in watch(cases, "masks"):
        try:
            with readable(case.mask):
                values.append(mask_values(case))
            kept.append(case)
        except UserFault as fault:
            dropped.append(Dropped(case.shown, *_with_image(case, fault)))
    odd = unlike(kept, values) if colours else {}
    like = [i for i in range(len(kept)) if i not in odd]
    return [kept[i] for i in like], [*dropped, *odd.values()], [values[i] for i in like]


def _with_image(case: Case, fault: UserFault) -> Reason:
    """The reason why a mask cannot be read, with its image if its name is wrong in the same way."""
    why, do = reason(fault)
    image = case.image[0]
    if _is_dicom(case) or (disguised(image) or ("",))[0] != fault.came:
        return why, do
    return f"{why}; the same holds for the image {image}", f"{do}, and the image too"


def _is_dicom(case: Case) -> bool:
    return kind_of(case.image[0]) == "dicom"


def _converted(
    cases: Sequence[Case], folder: Path | None, plan: Plan, watch: Watch
) -> tuple[list[Prepared], list[Dropped], list[tuple[str, bytes]]]:
    """Read and write one case at a time, and keep its facts. The pictures show cases spread evenly."""
    done: list[Prepared] = []
    dropped, pictures = [], []
    shown = set(np.linspace(0, len(cases) - 1, min(PICTURES, len(cases))).round().astype(int).tolist())
    for i, case in enumerate(watch(cases, "cases")):
        try:
            with readable(case.image[0]):
                pair, weak = read_pair(case, plan), read_weak(case, plan)
                facts, pixels = measured(pair), fingerprint(pair.image.values)
        except UserFault as fault:
            dropped.append(Dropped(case.shown, *reason(fault)))
            continue
        name = f"case-{len(done) + 1:04d}"
        image, mask = write_pair(pair, folder, name, plane=plan.plane) if folder else ("", "")
        sparse = write_mask(weak, folder, f"{name}-weak", plane=plan.plane) if folder and weak else ""
        done.append(Prepared(case, name, image, mask, facts, sparse, pixels))
        if i in shown and folder:
            pictures.append((f"{name}: {case.shown}", thumbnail(pair)))
    return done, dropped, pictures


def _splits(done: Sequence[Prepared], wish: Wish, patients_by: str, lost: Sequence[str]) -> tuple[dict[str, str], str]:
    """The split of each patient, and a sentence on where the splits come from. `lost` is said if they are too few."""
    patients = [d.case.patient for d in done]
    kept = {d.case.patient: d.case.split for d in done if d.case.split}
    if wish.shares is not None or len(kept) < len(set(patients)):
        if wish.patient is None and not kept:
            _check_ids(done)
        shares = wish.shares or SHARES
        words = f"Splits ({', '.join(f'{share:.0%}' for share in shares)}) were drawn by patient with seed {wish.seed}."
        return drawn(patients, shares, seed=wish.seed, known_by=patients_by, lost=lost), words
    check_kept(done)
    _check_whole(done)
    if empty := [split for split in SPLITS if split not in kept.values()]:
        raise UserFault(
            expected=f"cases in split {empty[0]}",
            came="no usable ones",
            do="look at what was left out, or give --split",
        )
    return {patient: split for patient, split in kept.items() if split}, "The splits are taken from the datalist."


def _check_whole(done: Sequence[Prepared]) -> None:
    """UserFault if a datalist puts images of one patient, as the user says it, into two splits."""
    seen: dict[str, Case] = {}
    for case in (d.case for d in done):
        other, who = seen.setdefault(case.patient, case), case.patient.removeprefix("name:")
        if other.split != case.split:
            raise UserFault(
                expected="each patient in one split of the datalist, with patients by --patient",
                came=f"{other.shown} in {other.split} and {case.shown} in {case.split}, both of {who}",
                do="draw new splits with --split 0.7,0.1,0.2, or correct the datalist or --patient",
            )


def _check_ids(done: Sequence[Prepared]) -> None:
    """UserFault if there are several DICOM series and all have one PatientID. A de-identification may write that."""
    by_id = all(_is_dicom(d.case) and not d.case.patient.startswith("name:") for d in done)
    if by_id and len(done) > 1 and len({d.case.patient for d in done}) == 1:
        raise UserFault(
            expected="at least three patients, one for each split",
            came=f"one PatientID in all {len(done)} series",
            do="if they are several patients, use --patient folder where each has a folder, else --patient REGEX;"
            " if it is one patient, add other patients",
        )


def _totals(done: Sequence[Prepared]) -> dict[str, int]:
    return {
        "patients": len({d.case.patient for d in done}),
        "cases": len(done),
        "slices": sum(d.facts.shape[2] for d in done),
    }


def _report(
    found: Discovered, done: Sequence[Prepared], left: Sequence[Dropped], wish: Wish, segments: dict[str, int]
) -> dict[str, Any]:
    facts, names = [d.facts for d in done], [d.case.shown for d in done]
    return {
        "site": wish.site,
        "stays_at_site": True,
        "plane": wish.plane,
        "files": found.files,
        **_totals(done),
        "sizes": measurements.sizes(facts),
        "intensity": measurements.intensities(facts),
        "notes": [
            *coverings(facts, names, segments),
            *found.notes,
            *predicted.note(mask for one in done for mask in one.case.masks),
            *measurements.remarks(facts, names, wish.plane),
            *([] if segments or wish.table or wish.names else measurements.counted_objects(facts)),
        ],
        "dropped": [{"file": d.file, "why": d.why, "do": d.do} for d in left],
    }
