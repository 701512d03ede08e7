"""A folder of files through a model, one item in memory at a time."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pfedsam.errors import UserFault
from pfedsam.export.model import Predictor
from pfedsam.predict.items import Item, shared
from pfedsam.predict.masks import Way, segment
from pfedsam.predict.segmentation import Classes
from pfedsam.predict.written import FORMATS, of_others, write


@dataclass(frozen=True)
class Done:
    """What became of one item.

    Attributes:
        item: None where the file could not even be taken for one.
        files: what was written; empty where all was there already.
        fault: why nothing could be written.
        pixels: of each class, summed over the slices.
    """

    item: Item | None
    files: tuple[Path, ...] = ()
    fault: UserFault | None = None
    pixels: tuple[int, ...] = ()


def predict(
    model: Predictor, items: Iterable[Item | UserFault], out: Path, way: Way, classes: Classes, *, again: bool = False
) -> Iterator[Done]:
    """Write the masks of every item below `out`; a faulty item is told and passed over.

    Items whose masks would be one file are faulty, all of them.

    Args:
        classes: their names, in order, and codes.
        again: write anew what is there already; else what of an item's files is there is kept.
    """
    every = list(items)
    known = [item for item in every if isinstance(item, Item)]
    rivals, twins = _rivals(known, out), shared(known)
    for item in every:
        if isinstance(item, UserFault):
            yield Done(None, fault=item)
            continue
        try:
            _check_alone(_target(out, item), rivals[_target(out, item)])
            if item.files[0] in twins:
                raise twins[item.files[0]]
            yield _one(model, item, out, way, classes, again)
        except UserFault as fault:
            yield Done(item, fault=_named(fault, item))


def _rivals(items: list[Item], out: Path) -> dict[Path, list[Path]]:
    """The first file of each item, by the mask's file."""
    rivals: dict[Path, list[Path]] = defaultdict(list)
    for item in items:
        rivals[_target(out, item)].append(item.files[0])
    return rivals


def _check_alone(target: Path, files: list[Path]) -> None:
    if len(files) > 1:
        raise UserFault(
            expected=f"one image whose mask is {target}",
            came=" and ".join(map(str, files)),
            do="rename them, or predict each by itself into a folder of its own",
        )


def _target(out: Path, item: Item) -> Path:
    return FORMATS[item.kind].target(out, item)


def _one(model: Predictor, item: Item, out: Path, way: Way, classes: Classes, again: bool) -> Done:
    form, target = FORMATS[item.kind], _target(out, item)
    if not again and target.exists():
        _check_same(target, item)
        if all(path.exists() for path in form.files(target, len(classes.names), probabilities=way.probabilities)):
            return Done(item)
    if target in item.files:
        raise UserFault(
            expected="an output folder of its own", came=f"{out}, which holds {item.name}", do="name another"
        )
    volume = form.read(item)
    form.check(item, classes)
    found = segment(model, volume, way)
    written = write(out, item, found, classes, again=again)
    return Done(item, tuple(written), pixels=tuple(int(mask.sum()) for mask in found.masks))


def _check_same(target: Path, item: Item) -> None:
    if of_others(target, item):
        raise UserFault(
            expected=f"no mask of other images at {target}",
            came="one of another series, or of fewer or more slices than there are now; it was not written over",
            do="name another output folder, or --overwrite",
        )


def _named(fault: UserFault, item: Item) -> UserFault:
    """The fault with the item's file in it."""
    text = str(item.files[0])
    if text in str(fault):
        return fault
    return UserFault(expected=f"{fault.expected} in {text}", came=fault.came, do=fault.do)
