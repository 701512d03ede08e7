"""A cache of the frozen front's output, once per image and view, for later epochs.

If only the last blocks have adapters, the front's output for a view is the same in every epoch. It
is computed image by image and rounded to bfloat16, with or without the cache. So a run does not
depend on what the cache holds.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pfedsam import log
from pfedsam.config import Config
from pfedsam.data.dataset import Augment, Batch, Dataset, View
from pfedsam.model.segmenter import Branches
from pfedsam.names import beside
from pfedsam.train.precision import autocast

Entry = dict[str, Tensor]  # "hidden" (h, w, c) or (c, h, w) bfloat16; labels are read anew: they may be corrected


class Disk:
    """Entries as files in a folder of this run. A full disk or a damaged file only costs time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Entry | None:
        """The entry, read into memory. None if it is absent or damaged."""
        try:
            return {name: tensor.clone() for name, tensor in load_file(self._path(key)).items()}
        except (OSError, SafetensorError):
            return None

    def __setitem__(self, key: str, entry: Entry) -> None:
        """Write the entry. If the disk is full, warn and write nothing."""
        try:
            with beside(self._path(key)) as new:
                save_file(entry, new)
                new.replace(self._path(key))
        except (OSError, SafetensorError) as fault:
            log.warning("an entry of the cache of the frozen front was not written: %s", fault)

    def __delitem__(self, key: str) -> None:
        """Delete the entry, if it is there."""
        self._path(key).unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        """The size in bytes of each entry that an earlier process of this run left, by key."""
        return {path.stem: path.stat().st_size for path in sorted(self._folder.glob("*.safetensors"))}

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


class Bounded:
    """A shelf that holds at most `limit` bytes. It drops the least recently used entries first."""

    def __init__(self, shelf: dict[str, Entry] | Disk, limit: int) -> None:
        self._shelf, self._limit = shelf, limit
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self.used = 0
        if isinstance(shelf, Disk):
            for key, size in shelf.sizes().items():
                self._count(key, size)

    def get(self, key: str) -> Entry | None:
        """The entry, which is now the most recently used. None if it is gone."""
        entry = self._shelf.get(key)
        if entry is None:
            self.used -= self._sizes.pop(key, 0)
        else:
            self._sizes.move_to_end(key)
        return entry

    def put(self, key: str, entry: Entry) -> None:
        """Keep the entry, and drop others to make room."""
        self._shelf[key] = entry
        self._count(key, sum(t.numel() * t.element_size() for t in entry.values()))

    def _count(self, key: str, size: int) -> None:
        self.used += size - self._sizes.pop(key, 0)
        self._sizes[key] = size
        while self.used > self._limit and self._sizes:
            oldest, freed = self._sizes.popitem(last=False)
            del self._shelf[oldest]
            self.used -= freed


@dataclass(frozen=True)
class Prefix:
    """Makes batches that hold the frozen front's output instead of images.

    Attributes:
        model: branches on one base.
        shelf: keeps the entries.
    """

    model: Branches
    shelf: Bounded

    def batch(self, data: Dataset, views: list[View], augment: Augment | None) -> Batch:
        """The batch that `data.batch` returns, but with the front's output instead of the images."""
        pairs = [self._pair(data, view, augment) for view in views]
        hidden, label = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return Batch(hidden.float(), label, stemmed=True, annotated=data.annotated, ignores=data.ignores)

    def _pair(self, data: Dataset, view: View, augment: Augment | None) -> tuple[Tensor, Tensor]:
        """The front's output for the view, and the view's label."""
        key = _key(data, view)
        entry = self.shelf.get(key)
        if entry is not None:
            return entry["hidden"], data.label(view, augment)
        batch = data.batch([view], augment)
        entry = self._compute(batch, data.config)
        self.shelf.put(key, entry)
        return entry["hidden"], batch.label[0]

    @torch.no_grad()
    def _compute(self, batch: Batch, config: Config) -> Entry:
        device = next(self.model.parameters()).device
        with autocast(device, config.train.precision):
            hidden = self.model.stem(batch.image.to(device))
        return {"hidden": hidden[0].bfloat16().cpu().contiguous()}


def _key(data: Dataset, view: View) -> str:
    """The name of a view's entry. It changes if the image file changes."""
    whose = hashlib.sha256(data.identity(view.slice).encode()).hexdigest()[:16]
    return f"{data.split}.{view.slice}.{view.number}.{whose}"


def prefix(model: Branches, config: Config, folder: Path) -> Prefix | None:
    """The cache that `train.cache` asks for, or None if it asks for none.

    Args:
        folder: for the disk cache: the folder of this run, at this site, with this frozen base.
    """
    if config.train.cache == "none":
        return None
    shelf: dict[str, Entry] | Disk = (
        {} if config.train.cache == "memory" else Disk(folder / "front" / config.digest()[:16])
    )
    return Prefix(model, Bounded(shelf, int(config.train.cache_gb * 1e9)))
