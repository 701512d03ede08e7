"""Finds a site's cases: from an existing datalist, else series by reference and files by name."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pfedsam.data import datalist
from pfedsam.data.dicom import dicom_header
from pfedsam.data.readable import readable
from pfedsam.data.records import PATHS, raw_rows
from pfedsam.data.volume import kind_of, stem_of
from pfedsam.errors import UserFault
from pfedsam.prepare.dicomseg import number_labels, segment_labels
from pfedsam.prepare.families import taken_whole
from pfedsam.prepare.found import Case, Discovered, Dropped
from pfedsam.prepare.pairing import Candidate, candidate, claimed
from pfedsam.prepare.pairrule import pairs_by_pattern
from pfedsam.prepare.series import matched, stacked, told
from pfedsam.prepare.walk import File, files_below
from pfedsam.prepare.words import role

NO_MASK = ("the datalist names no mask", "draw one; or leave it to training, which takes rows without a mask")


def discover(
    folders: Sequence[Path],
    masks: Path | None,
    *,
    site: str | None = None,
    pair: tuple[str, str] | None = None,
    structures: Collection[str] = (),
) -> Discovered:
    """All cases below `folders`, and what is left out.

    Args:
        masks: a folder in which every file is a mask.
        site: selects the rows of a datalist for several sites.
        pair: patterns of an image and its mask with equal first groups; None: the naming rules apply.
        structures: the structures with one mask file each, if the user names them.

    Raises:
        UserFault: a folder does not exist, or a datalist is faulty.
    """
    for folder in (*folders, *([masks] if masks else [])):
        if not folder.is_dir():
            raise UserFault(expected=f"a folder at {folder}", came="none", do="name an existing folder")
    listed = [folder / name for folder in folders for name in datalist.NAMES if (folder / name).is_file()]
    if listed and pair:
        raise UserFault(
            expected=f"no --pair, because {listed[0]} lists the mask of each image",
            came="both",
            do="leave out --pair, or remove the datalist",
        )
    if listed:
        return _from_datalist(listed[0], len(folders), site)
    return _from_files(folders, masks, pair, structures)


def _from_files(
    folders: Sequence[Path], masks: Path | None, pair: tuple[str, str] | None, structures: Collection[str]
) -> Discovered:
    files, dropped = _files(folders, masks)
    stack = stacked(f for f in files if f.kind == "dicom")
    cases, lone, orphans = matched(stack)
    named = partial(_candidate, masks=masks, roles=frozenset(folders) if len(set(folders)) > 1 else frozenset())
    several = Counter(series.name for series in lone)
    candidates = [
        *(named(file.name, [file]) for file in files if file.kind != "dicom"),
        *(named(one.name, one.files, alone=several[one.name] == 1) for one in lone),
    ]
    matches = taken_whole(pairs_by_pattern(candidates, *pair) if pair else claimed(candidates), structures)
    patients = {series.files[0].path: series.patient for series in lone}
    left = list(matches.dropped)
    for match in matches.pairs:
        image, many = match.image, [mask.name for mask in match.masks if len(mask.files) > 1]
        left += [Dropped(name, "a mask in several files", "give a NIfTI file or a DICOM-SEG") for name in many]
        if not many:
            files_of_masks = tuple(mask.files[0] for mask in match.masks)
            patient = patients.get(image.files[0], "")
            cases.append(Case(image.name, image.files, files_of_masks, patient, structures=match.names))
    cases, left = told(_at_home(cases, folders), left, stack)
    nameless = sum(not series.patient for series in stack.series)
    return Discovered(
        len(files) + len(dropped),
        sorted(cases, key=lambda case: case.shown),
        sorted(dropped + stack.dropped + orphans + left, key=lambda d: d.file),
        [*stack.notes, *([f"{nameless} DICOM series have no PatientID."] if nameless else []), *matches.notes],
        _with_structures(number_labels(s.labels for s in stack.segmentations), matches.structures),
    )


def _place(path: Path) -> Path:
    """A path from the root on. Two ways to write one are equal."""
    return Path(os.path.abspath(path))


def _at_home(cases: Sequence[Case], folders: Sequence[Path]) -> list[Case]:
    """The cases, each with the given folder that it is in. A folder named for images counts as the one around it."""
    places = {_place(folder): _place(folder) for folder in folders}
    places = {folder: folder if role(folder.name) is None else folder.parent for folder in places}
    if len(set(places.values())) < 2:
        return [*cases]
    top = os.path.commonpath(places.values())
    homes = {folder: os.path.relpath(place, top) for folder, place in places.items()}
    return [
        replace(case, home=next(homes[up] for up in _place(case.image[0]).parents if up in homes)) for case in cases
    ]


def _with_structures(segments: dict[str, int], structures: Iterable[str]) -> dict[str, int]:
    """The classes of segments, then those of structures with a file each. Case does not distinguish names."""
    numbers = {label.casefold(): number for label, number in segments.items()}
    for name in structures:
        numbers.setdefault(name.casefold(), len(numbers) + 1)
    return segments | {name: numbers[name.casefold()] for name in structures}


def telling(dropped: Sequence[Dropped]) -> list[Dropped]:
    """The same, starting with files that may be missing masks but are of a kind that cannot be read."""
    names = {name for one in dropped if kind_of(Path(one.file)) for name in _names(one, mask=False)}
    return sorted(dropped, key=lambda one: kind_of(Path(one.file)) is not None or not names & _names(one, mask=True))


def _names(one: Dropped, *, mask: bool) -> set[tuple[str, ...]]:
    path = Path(one.file)
    stem = path.stem if mask else stem_of(path)
    return {key for key in candidate(one.file, (), path.parts[:-1], stem, mask=mask).keys if key}


def _labels_in(mask: Path) -> dict[int, str]:
    """The segments of a DICOM-SEG. Empty for another mask, or for a damaged one, whose case is left out later."""
    try:
        with readable(mask):
            head = dicom_header(mask) if kind_of(mask) == "dicom" else None
            return {} if head is None else segment_labels(head)
    except UserFault:
        return {}


def _files(folders: Sequence[Path], masks: Path | None) -> tuple[list[File], list[Dropped]]:
    """Each file once, even if one given folder contains another."""
    files: dict[Path, File] = {}
    dropped = []
    for root in dict.fromkeys([*folders, *([masks] if masks else [])]):
        for found in files_below(root):
            if isinstance(found, Dropped):
                dropped.append(found)
            else:
                files.setdefault(_place(found.path), found)
    return list(files.values()), list(dict.fromkeys(dropped))


def _candidate(
    name: str, files: Sequence[File], *, masks: Path | None, roles: frozenset[Path], alone: bool = False
) -> Candidate:
    """The candidate of these files, named by the first one.

    Args:
        masks: a folder in which every file is a mask.
        roles: given folders whose own name may say mask or image: those given together with others. A folder given
            alone contains images and masks, whatever its name is.
        alone: for several files, whether all files of their folder belong to one series. The series then has the
            folder's name, so that a NIfTI mask of that name finds it.
    """
    first, said = files[0], None if masks is None else _place(files[0].path).is_relative_to(_place(masks))
    if masks is not None and said:
        parts = _place(first.path).relative_to(_place(masks)).parts[:-1]
    else:
        own = first.root in roles and role(first.root.name) is not None
        parts = (first.root.name, *first.parts) if own else first.parts
    by_folder = alone and len(files) > 1 and parts
    place, stem = (parts[:-1], parts[-1]) if by_folder else (parts, first.stem)
    return candidate(name, tuple(f.path for f in files), place, stem, mask=said)


def _from_datalist(path: Path, folders: int, site: str | None) -> Discovered:
    if folders > 1:
        raise UserFault(
            expected=f"only {path.parent}, because it contains a datalist",
            came="other folders too",
            do="prepare each separately",
        )
    folder, sites = path.parent, datalist.sites(path)
    if sites and site not in sites:
        raise UserFault(
            expected=f"--site, because {path.name} serves several sites: {', '.join(sites)}",
            came=str(site),
            do="name one of them",
        )
    splits = datalist.read(path, *([site] if site else []))
    every = [row for rows in splits.values() for row in rows]
    rows = [row for row in every if row.mask]
    bare = [Dropped(row.image, *NO_MASK) for row in every if not row.mask]
    cases = [
        Case(
            r.image, (folder / r.image,), (folder / r.mask,), r.group, r.split, weak=folder / r.weak if r.weak else None
        )
        for r in rows
    ]
    notes = [f"Cases, patients and splits are taken from {path.name}.", *_unread(path)]
    segments = number_labels(map(_labels_in, sorted({case.mask for case in cases})))
    files = len(every) + len(rows) + sum(case.weak is not None for case in cases)
    return Discovered(files, sorted(cases, key=lambda case: case.name), bare, notes, segments)


def _unread(path: Path) -> Iterator[str]:
    """Remarks on what is beside a datalist and not read: another datalist, and files that no row names."""
    others = [name for name in datalist.NAMES if (path.parent / name).is_file() and name != path.name]
    if others:
        yield f"{' and '.join(others)} beside {path.name} is not read. Remove the one that does not count."
    columns = (record.get(column) for record in raw_rows(path) for column in PATHS)
    named = {_place(path.parent / str(name)) for name in columns if name}
    found = [one for one in files_below(path.parent) if isinstance(one, File)]
    if lone := [one.name for one in found if _place(one.path) not in named]:
        yield (
            f"{len(lone)} file(s) are in no row of {path.name} and are not read (such as {lone[0]}). If they belong to"
            " it, add rows for them and prepare again."
        )
