"""A site's slices as tensors of the model's size, read on demand."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pfedsam import log
from pfedsam.config import Config, Weak
from pfedsam.data import datalist, reader
from pfedsam.data.classes import check_class_names
from pfedsam.data.datalist import Row
from pfedsam.data.geometry import across, check_formats, strayed
from pfedsam.data.square import Normalise, fit, fit_labels, scaled, shown, shrink
from pfedsam.data.taken import datalist_of, taken
from pfedsam.data.values import IGNORED
from pfedsam.data.weak import weakened
from pfedsam.errors import UserFault
from pfedsam.files import seed_of

PLAIN = -1  # the number of a view without augmentation


@dataclass(frozen=True)
class View:
    """A slice, by its index in the split, in its `number`-th augmentation; `PLAIN`: without augmentation."""

    slice: int
    number: int = PLAIN


Augment = Callable[[Tensor, Tensor, View], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Slice:
    """One 2-D slice: its files, its index in them, the headers' facts, and its patient.

    `mask` is None for a training image without labels. If `weak`, only some of the mask's pixels have a label.
    """

    image: Path
    mask: Path | None
    index: int
    shape: tuple[int, int]
    spacing: tuple[float, float, float]
    group: str = ""
    unit: Literal["mm", "px"] = "px"  # of the spacing: pixels if the file states no position in the patient
    weak: bool = False


@dataclass(frozen=True)
class Batch:
    """The input of one training step.

    Attributes:
        image: (B, 3, S, S), normalised for the backbone; if `stemmed`, the output of its frozen front.
        label: (B, L, L) of class numbers, L = `label_size`.
        stemmed: whether the frozen front was already applied.
        annotated: channels of the classes that the site labels; None: all of them.
        ignores: whether `IGNORED` in the label marks unlabelled pixels; otherwise it is an ordinary class.
    """

    image: Tensor
    label: Tensor
    stemmed: bool = False
    annotated: list[int] | None = None
    ignores: bool = False


class Dataset:
    """The slices of one split. An item is read, scaled and fitted on demand.

    Args:
        root: the datalist's folder.
        rows: the split's rows.
        config: sizes, classes and intensity scale.
        split: the split's name.
        unannotated: classes that the masks do not label.
        weaken: the kind of weak labels that are made of whole masks. None: labels as they are.

    Raises:
        UserFault: a mask's format, size, slice count or position differs from its image's.
    """

    def __init__(
        self,
        root: Path,
        rows: list[Row],
        config: Config,
        *,
        split: str,
        unannotated: Sequence[int] = (),
        weaken: Weak | None = None,
    ) -> None:
        self.root = root
        self.config = config
        self.split = split
        known = [c for c in range(config.model.num_classes) if c + 1 not in unannotated]
        self.annotated = known if unannotated else None
        self.normalise = Normalise(config.model.pixels)
        self.slices = [s for row in rows for s in _slices(root, row, config.data.plane)]
        self.weaken = weaken
        self.sparse = weaken is not None or any(s.weak for s in self.slices)
        self.ignores = config.data.ignore is not None or self.sparse or any(s.mask is None for s in self.slices)
        self._ends = cache(reader.ends_of_file)

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """The image (3, S, S) in 0..1 before normalisation, and the mask (S, S) of class numbers."""
        return fit(self.picture(i), self.config.model.image_size), self._target(i)

    def picture(self, i: int) -> Tensor:
        """The slice at its own size, (3, H, W), scaled to 0..1."""
        s, scale, plane = self.slices[i], self.config.data.scale, self.config.data.plane
        pixels = reader.read_image(s.image, s.index, plane)
        bright = scale == "uint8" and pixels.max() > reader.UNIT  # then its file needs no judging
        return shown(pixels, reader.EIGHT_BIT if bright else self._ends(s.image, scale, plane), str(s.image))

    def labels(self, i: int) -> Tensor:
        """The mask at its own size, (H, W) of class numbers, with `IGNORED` for unlabelled pixels."""
        s, data = self.slices[i], self.config.data
        if s.mask is None:
            return torch.full(s.shape, IGNORED, dtype=torch.uint8)
        ignore = IGNORED if s.weak and data.ignore is None else data.ignore
        mask = reader.read_mask(s.mask, s.index, self.config.model.num_classes, ignore, plane=data.plane)
        return torch.from_numpy(mask)

    def labelled(self) -> list[int]:
        """The slices that have a label."""
        return [i for i, s in enumerate(self.slices) if s.mask is not None]

    def order(self, generator: torch.Generator) -> Iterator[list[int]]:
        """One epoch's batches of slices, drawn from `generator`. The last short batch is kept.

        If some slices have no label, every other one has a label, and an epoch is as long as ever: our choice, so that
        few labels count in each batch.
        """
        known = self.labelled()
        others = sorted(set(range(len(self))) - set(known)) if len(known) < len(self) else []
        if known and others:
            pairs = zip(in_turn(known, generator), in_turn(others, generator), strict=False)
            drawn = list(islice(chain.from_iterable(pairs), len(self)))
        else:
            drawn = torch.randperm(len(self), generator=generator).tolist()
        size = self.config.train.batch_size
        yield from (drawn[start : start + size] for start in range(0, len(drawn), size))

    def batch(self, views: list[View], augment: Augment | None = None) -> Batch:
        """The views, read, augmented if they have a number, and normalised."""
        images, masks = zip(*(self._view(view, augment) for view in views), strict=True)
        label = shrink(torch.stack(masks), label_size(self.config), sparse=self.sparse)
        return Batch(self.normalise(torch.stack(images)), label, annotated=self.annotated, ignores=self.ignores)

    def label(self, view: View, augment: Augment | None = None) -> Tensor:
        """The view's label as in `batch`, (L, L) of class numbers. The image is not read."""
        size = self.config.model.image_size
        blank = torch.zeros(3, size, size)  # the draw depends only on the view
        mask = self._seen(blank, self._target(view.slice), view, augment)[1]
        return shrink(mask[None], label_size(self.config), sparse=self.sparse)[0]

    def identity(self, i: int) -> str:
        """Identifies slice `i` of this image file: another file, or a changed one, has another identity."""
        s = self.slices[i]
        state = s.image.stat()
        return f"{s.image.absolute()} {s.index} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"

    def fingerprint(self) -> str:
        """Identifies the split's files as they are now: their paths, sizes and times of change."""
        files = dict.fromkeys(path for s in self.slices for path in (s.image, s.mask) if path)
        states = ((path.absolute(), path.stat()) for path in files)
        return "\n".join(f"{path} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}" for path, state in states)

    def content(self) -> str:
        """A digest of what the split holds, wherever its folder is: patients, and their files with sizes and times.

        It is empty for synthetic images, which follow from the settings.
        """
        if self.config.data.source == "synthetic":
            return ""
        rows = dict.fromkeys((s.group, s.weak, path) for s in self.slices for path in (s.image, s.mask) if path)
        states = ((group, weak, os.path.relpath(path, self.root), path.stat()) for group, weak, path in rows)
        lines = (repr((*row, state.st_size, state.st_mtime_ns)) for *row, state in states)
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def _target(self, i: int) -> Tensor:
        """What a slice is trained towards, (S, S) of class numbers, with `IGNORED` for unlabelled pixels."""
        s, size = self.slices[i], self.config.model.image_size
        if s.mask is None:
            return torch.full((size, size), IGNORED)
        labels = self.labels(i)
        mask = fit_labels(labels, size, sparse=self.sparse)
        if self.weaken is not None:
            rows, columns = scaled(labels.shape, size)  # what is padded stays background
            seed = seed_of(f"{self.config.seed}/{os.path.relpath(s.image, self.root)}/{s.index}/{self.weaken}")
            mask[:rows, :columns] = weakened(mask[:rows, :columns], self.weaken, seed)
        return mask

    def _view(self, view: View, augment: Augment | None) -> tuple[Tensor, Tensor]:
        return self._seen(*self[view.slice], view, augment)

    def _seen(self, image: Tensor, mask: Tensor, view: View, augment: Augment | None) -> tuple[Tensor, Tensor]:
        """The pair as the view shows it. An image without labels has none in what a shift brings in either."""
        if augment is None or view.number == PLAIN:
            return image, mask
        image, moved = augment(image, mask, view)
        return image, mask if self.slices[view.slice].mask is None else moved

    def cases(self) -> Iterator[list[int]]:
        """The indices of each case: one slice for pictures, all slices of a volume. Another mask starts a new case."""
        starts = [i for i, s in enumerate(self.slices) if s.index == 0]
        yield from (list(range(start, end)) for start, end in pairwise([*starts, len(self)]))


def open_site(folder: Path, site: str, config: Config, *, unlabelled: bool = False) -> dict[str, Dataset]:
    """The three splits of a site with its data in `folder`.

    Args:
        unlabelled: whether the method learns from images without labels. Otherwise they are left out.

    Raises:
        UserFault: the datalist, one of its files, or the meaning of the masks' numbers does not fit the job. Or no
            image is left to train on.
    """
    path = datalist_of(folder, site, config)
    check_class_names(path.parent, config)
    splits = datalist.read(path, *config.data.rows_of(site))
    splits["train"] = taken(splits["train"], config, site, unlabelled=unlabelled)
    lacks, kind = config.data.unannotated.get(site, []), config.data.weaken.get(site)
    found = {
        split: Dataset(
            path.parent, rows, config, split=split, unannotated=lacks, weaken=kind if split == "train" else None
        )
        for split, rows in splits.items()
    }
    _tell_coarse(site, found, config.data.plane)
    return found


def _tell_coarse(site: str, splits: dict[str, Dataset], plane: str) -> None:
    """Log a warning about volumes that were taken in another plane than the job's."""
    volumes = [s for split in splits.values() for s in split.slices if s.index == 1 and s.unit == "mm"]
    if coarse := sum(across(s.spacing, 2) for s in volumes):
        log.warning(
            "[%s] %d of %d volumes have coarser steps within the %s slices than across them: the scanner used another"
            " plane. Choose the data.plane that fits most sites' volumes",
            site,
            coarse,
            len(volumes),
            plane,
        )


def in_turn(slices: list[int], generator: torch.Generator) -> Iterator[int]:
    """The slices again and again, each time in a new order."""
    while True:
        yield from (slices[i] for i in torch.randperm(len(slices), generator=generator).tolist())


def label_size(config: Config) -> int:
    """The side of the labels in the loss: the input's, at most 256 (FedFMS uses 256 at 1024 px)."""
    return min(config.model.image_size, 256)


def _slices(root: Path, row: Row, plane: str) -> list[Slice]:
    image, mask = root / row.image, root / row.learned if row.learned else None
    head = reader.header(image, plane)
    if mask is not None:
        _check_mask(image, head, mask, plane)
    weak = row.learned != row.mask
    return [Slice(image, mask, i, head.shape, head.spacing, row.group, head.unit, weak) for i in range(head.slices)]


def _check_mask(image: Path, head: reader.Header, mask: Path, plane: str) -> None:
    other = reader.header(mask, plane)
    check_formats(image, mask, (head.affine, other.affine))
    if (head.shape, head.slices) != (other.shape, other.slices):
        raise UserFault(
            expected=f"{mask} of the size of its image, {head.shape} x {head.slices}",
            came=f"{other.shape} x {other.slices}",
            do="pair the right files, or resample the mask (EXIF turns each picture by its own mark)",
        )
    if (far := strayed(head.affine, other.affine, (*head.shape, head.slices))) is not None:
        raise UserFault(
            expected=f"the mask {mask} at the position of its image {image}",
            came=far,
            do="run pfedsam prepare: it brings the mask to its image's position, or says why it can't",
        )
