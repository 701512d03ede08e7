"""Slices of a site as tensors of the model's size, read when asked for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pfedsam import log
from pfedsam.config import Config
from pfedsam.data import datalist, reader
from pfedsam.data.classes import check_class_names
from pfedsam.data.datalist import Row
from pfedsam.data.geometry import across, check_formats, strayed
from pfedsam.data.square import Normalise, fit, fit_labels, shown, shrink
from pfedsam.errors import UserFault

PLAIN = -1  # the number of a view without augmentation


@dataclass(frozen=True)
class View:
    """A slice, by its index in the split, as augmented for the `number`-th time; `PLAIN`: as it is."""

    slice: int
    number: int = PLAIN


Augment = Callable[[Tensor, Tensor, View], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Slice:
    """One 2-D slice: its files, its index in them, what the headers say, and whose it is (the patient)."""

    image: Path
    mask: Path
    index: int
    shape: tuple[int, int]
    spacing: tuple[float, float, float]
    group: str = ""
    unit: Literal["mm", "px"] = "px"  # of the spacing: pixels where the file knows no place in the patient


@dataclass(frozen=True)
class Batch:
    """What a step trains on.

    Attributes:
        image: (B, 3, S, S), normalised for the backbone; if `stemmed`, what its frozen front makes of them.
        label: (B, L, L) of class numbers, L = `label_size`.
        stemmed: whether the front has been run already.
        annotated: channels of the classes that the site's masks show; None: all of them.
        ignores: whether `IGNORED` in the label marks pixels that nobody labelled; else it is a class like others.
    """

    image: Tensor
    label: Tensor
    stemmed: bool = False
    annotated: list[int] | None = None
    ignores: bool = False


class Dataset:
    """The slices of one split; an item is read, scaled and fitted when it is asked for.

    Args:
        root: folder of the datalist.
        rows: the split's rows.
        config: sizes, classes and intensity scale.
        split: the split's name.
        unannotated: classes that the masks leave out.

    Raises:
        UserFault: a mask's format, size, slice count or place differs from its image's.
    """

    def __init__(
        self,
        root: Path,
        rows: list[Row],
        config: Config,
        *,
        split: str,
        unannotated: Sequence[int] = (),
    ) -> None:
        self.root = root
        self.config = config
        self.split = split
        known = [c for c in range(config.model.num_classes) if c + 1 not in unannotated]
        self.annotated = known if unannotated else None
        self.ignores = config.data.ignore is not None
        self.normalise = Normalise(config.model.pixels)
        self.slices = [s for row in rows for s in _slices(root, row, config.data.plane)]
        self._range = cache(reader.intensity_range)

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """Image (3, S, S) of 0..1 before normalisation, and mask (S, S) of class numbers."""
        size = self.config.model.image_size
        return fit(self.picture(i), size), fit_labels(self.labels(i), size)

    def picture(self, i: int) -> Tensor:
        """The slice itself, (3, H, W), scaled to 0..1."""
        s = self.slices[i]
        plane = self.config.data.plane
        ends = reader.EIGHT_BIT if self.config.data.scale == "uint8" else self._range(s.image, plane)
        return shown(reader.read_image(s.image, s.index, plane), ends, str(s.image))

    def labels(self, i: int) -> Tensor:
        """The mask at its own size, (H, W) of class numbers, and `IGNORED` where nobody labelled."""
        s, data = self.slices[i], self.config.data
        mask = reader.read_mask(s.mask, s.index, self.config.model.num_classes, data.ignore, plane=data.plane)
        return torch.from_numpy(mask)

    def order(self, generator: torch.Generator) -> Iterator[list[int]]:
        """One epoch's batches of slices, drawn from `generator`; the last short batch is kept."""
        drawn = torch.randperm(len(self), generator=generator).tolist()
        size = self.config.train.batch_size
        yield from (drawn[start : start + size] for start in range(0, len(drawn), size))

    def batch(self, views: list[View], augment: Augment | None = None) -> Batch:
        """The views, read, augmented where they are numbered, and normalised."""
        images, masks = zip(*(self._view(view, augment) for view in views), strict=True)
        label = shrink(torch.stack(masks), label_size(self.config))
        return Batch(self.normalise(torch.stack(images)), label, annotated=self.annotated, ignores=self.ignores)

    def label(self, view: View, augment: Augment | None = None) -> Tensor:
        """The view's label as `batch` gives it, (L, L) of class numbers; its image is not read."""
        size = self.config.model.image_size
        mask = fit_labels(self.labels(view.slice), size)
        if augment is not None and view.number != PLAIN:
            mask = augment(torch.zeros(3, size, size), mask, view)[1]  # what is drawn depends on the view alone
        return shrink(mask[None], label_size(self.config))[0]

    def identity(self, i: int) -> str:
        """What tells slice `i` of this image file from that of another, or of a later state of the file."""
        s = self.slices[i]
        state = s.image.stat()
        return f"{s.image.absolute()} {s.index} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"

    def _view(self, view: View, augment: Augment | None) -> tuple[Tensor, Tensor]:
        pair = self[view.slice]
        return pair if augment is None or view.number == PLAIN else augment(*pair, view)

    def cases(self) -> Iterator[list[int]]:
        """Indices that belong together: one slice each for pictures, all slices of a volume; anew for another mask."""
        starts = [i for i, s in enumerate(self.slices) if s.index == 0]
        yield from (list(range(start, end)) for start, end in pairwise([*starts, len(self)]))


def open_site(folder: Path, site: str, config: Config) -> dict[str, Dataset]:
    """The three splits of a site whose data lie in `folder`.

    Raises:
        UserFault: the datalist, a file of it, or the meaning of the masks' numbers is not what the job expects.
    """
    path = datalist.find(folder, site)
    check_class_names(path.parent, config)
    splits = datalist.read(path, None if config.data.pool else site)
    splits["train"] = limited(splits["train"], config, site)
    lacks = config.data.unannotated.get(site, [])
    found = {
        split: Dataset(path.parent, rows, config, split=split, unannotated=lacks) for split, rows in splits.items()
    }
    _tell_coarse(site, found, config.data.plane)
    return found


def _tell_coarse(site: str, splits: dict[str, Dataset], plane: str) -> None:
    """Say of volumes that they were taken in another plane than the job cuts them along."""
    volumes = [s for split in splits.values() for s in split.slices if s.index == 1 and s.unit == "mm"]
    if coarse := sum(across(s.spacing, 2) for s in volumes):
        log.warning(
            "[%s] %d of %d volumes have coarser steps within the %s slices than across them: they were taken in"
            " another plane; the plane of most sites' volumes makes the best data.plane",
            site,
            coarse,
            len(volumes),
            plane,
        )


def limited(rows: list[Row], config: Config, site: str) -> list[Row]:
    """At most `data.limit` of a site's rows, drawn by the job's seed, in their order."""
    if len(rows) <= config.data.limit.get(site, len(rows)):
        return rows
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed))
    return [rows[i] for i in sorted(drawn[: config.data.limit[site]].tolist())]


def label_size(config: Config) -> int:
    """Side at which loss is taken: the input's, at most 256 (FedFMS takes 256 at 1024 px)."""
    return min(config.model.image_size, 256)


def _slices(root: Path, row: Row, plane: str) -> list[Slice]:
    image, mask = root / row.image, root / row.mask
    head, other = reader.header(image, plane), reader.header(mask, plane)
    check_formats(image, mask, (head.affine, other.affine))
    if (head.shape, head.slices) != (other.shape, other.slices):
        raise UserFault(
            expected=f"{mask} of the size of its image, {head.shape} x {head.slices}",
            came=f"{other.shape} x {other.slices}",
            do="pair the right files, or resample the mask (EXIF turns pictures, each as its own says)",
        )
    if (far := strayed(head.affine, other.affine, (*head.shape, head.slices))) is not None:
        raise UserFault(
            expected=f"the mask {mask} at the place of its image {image}",
            came=far,
            do="run pfedsam prepare, which lays the mask on its image and says where that can't be",
        )
    return [Slice(image, mask, i, head.shape, head.spacing, row.group, head.unit) for i in range(head.slices)]
