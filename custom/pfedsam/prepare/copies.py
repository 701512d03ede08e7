"""Finds copies of one image under several patients, so that no image is in two splits under two names."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from pfedsam.errors import UserFault
from pfedsam.prepare.convert import compact
from pfedsam.prepare.outcome import Prepared


def fingerprint(values: NDArray[Any]) -> str:
    """A digest of an image's pixels, (H, W, N[, 3]), whatever their type. Three equal channels are grey.

    Empty if all are equal, because two blank images are no copies.
    """
    if values.ndim == 4 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.min() == values.max():
        return ""
    kept = compact(values)
    digest = hashlib.sha256(f"{kept.shape} {kept.dtype.str}".encode())
    for k in range(kept.shape[2]):  # a slice at a time: a whole volume may be stored in another order
        digest.update(kept[:, :, k].tobytes())
    return digest.hexdigest()


def joined(done: Sequence[Prepared]) -> tuple[list[Prepared], list[str]]:
    """The cases, where patients with a common image are one patient, named by all of them, and a remark about them.

    No case is left out. The other images of these patients may be of one person too, so they share a split.
    """
    alike: dict[str, list[Prepared]] = defaultdict(list)
    for one in done:
        if one.fingerprint:
            alike[one.fingerprint].append(one)
    torn = [same for same in alike.values() if len({one.case.patient for one in same}) > 1]
    first: dict[str, str] = {}
    for same in torn:
        homes = {_first(first, one.case.patient) for one in same}
        home = min(homes)
        first |= dict.fromkeys(homes - {home}, home)
    if not torn:
        return [*done], []
    of: dict[str, list[str]] = defaultdict(list)
    for patient in dict.fromkeys(one.case.patient for one in done):
        of[_first(first, patient)].append(patient)
    named = {home: " and ".join([all_[0], *(p.removeprefix("name:") for p in all_[1:])]) for home, all_ in of.items()}
    cases = [replace(d, case=replace(d.case, patient=named[_first(first, d.case.patient)])) for d in done]
    count, some = sum(map(len, torn)) - len(torn), " and ".join(one.case.shown for one in torn[0][:2])
    return cases, [
        f"{count} image(s) are copies of another patient's image (such as {some}). Patients with a common image count"
        " as one patient, so that no image is in two splits. If a copy is a mistake, remove it and prepare again."
    ]


def check_kept(done: Sequence[Prepared]) -> None:
    """UserFault if a datalist puts copies of one image into two splits."""
    seen: dict[str, Prepared] = {}
    for one in done:
        other = seen.setdefault(one.fingerprint, one) if one.fingerprint else one
        if other.case.split != one.case.split:
            raise UserFault(
                expected="each image of the datalist in one split, also under another name",
                came=f"copies: {other.case.shown} in {other.case.split} and {one.case.shown} in {one.case.split}",
                do="remove one of the two rows, or draw new splits with --split 0.7,0.1,0.2",
            )


def _first(first: dict[str, str], patient: str) -> str:
    """The patient as which one counts."""
    while patient in first:
        patient = first[patient]
    return patient
