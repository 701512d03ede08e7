"""Scoring branches on a split, and the masks they find."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice

import torch
from torch import Tensor

from pfedsam.data.dataset import Dataset, View
from pfedsam.data.square import decide, unfit
from pfedsam.data.values import IGNORED
from pfedsam.model.segmenter import Branches
from pfedsam.record.scores import CaseScore
from pfedsam.train.loop import Source
from pfedsam.train.losses import one_hot
from pfedsam.train.metrics import score
from pfedsam.train.patients import patients_of
from pfedsam.train.precision import autocast, fitting


def evaluate(
    model: Branches,
    data: Dataset,
    branches: tuple[str, ...],
    source: Source = Dataset.batch,
    *,
    distances: bool = False,
) -> dict[str, list[CaseScore]]:
    """Scores of every case and annotated class, by branch. For `source` see `train_round`.

    Args:
        distances: also measure distances, which takes several times as long as the rest of the scoring.
    """
    scores: dict[str, list[CaseScore]] = {name: [] for name in branches}
    cases = list(data.cases())
    maps = _predict(model, data, _passes(data, list(chain.from_iterable(cases))), branches, source)
    for case in cases:
        truth = torch.stack([reference(data, i) for i in case], dim=-1)
        known = torch.stack([labelled(data, i) for i in case], dim=-1) if data.ignores else None
        first = data.slices[case[0]]
        for name, found in _stacked(islice(maps, len(case)), data, branches).items():
            if known is not None:
                found = found & known
            flat = truth.shape[-1] == 1
            pair = (found[..., 0], truth[..., 0]) if flat else (found, truth)
            spacing = (first.spacing[:2] if flat else first.spacing) if distances else None
            found_scores = score(*pair, spacing, unit=first.unit)
            scores[name] += [s for s in found_scores if data.annotated is None or s.cls - 1 in data.annotated]
    return scores


def find_masks(
    model: Branches, data: Dataset, indices: list[int], branches: tuple[str, ...], source: Source = Dataset.batch
) -> dict[str, Tensor]:
    """Each branch's masks of slices `indices` at their own size, (classes, H, W, slices) of bool."""
    maps = _predict(model, data, _passes(data, indices), branches, source)
    return _stacked(maps, data, branches)


def _passes(data: Dataset, indices: list[int]) -> list[list[int]]:
    """The slices of each forward pass: four batches, whatever their cases. No gradient is kept, so there is room."""
    size = 4 * data.config.train.batch_size
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _stacked(
    maps: Iterable[tuple[int, dict[str, Tensor]]], data: Dataset, branches: tuple[str, ...]
) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {name: [] for name in branches}
    for i, logits in maps:
        for name in branches:
            found[name].append(masks(logits[name], data, i))
    return {name: torch.stack(of_slices, dim=-1) for name, of_slices in found.items()}


def masks(logits: Tensor, data: Dataset, i: int) -> Tensor:
    """Slice i's masks, (classes, H, W) of bool, from logits (outputs, h, h): probabilities first, then a threshold."""
    m = data.config.model
    return decide(unfit(logits, data.slices[i].shape, m.image_size), exclusive=m.exclusive)


def _predict(
    model: Branches, data: Dataset, passes: list[list[int]], branches: tuple[str, ...], source: Source
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    model.eval()
    for part in passes:
        batch = source(data, [View(i) for i in part], None)
        logits = logits_of(model, batch.image, branches, data.config.train.precision, stemmed=batch.stemmed)
        for row, i in enumerate(part):
            yield i, {name: maps[row] for name, maps in logits.items()}


@torch.no_grad()
def logits_of(
    model: Branches, image: Tensor, branches: tuple[str, ...], precision: str, *, stemmed: bool = False
) -> dict[str, Tensor]:
    """Each branch's logits, (B, outputs, h, h) float32 on the CPU, computed in the number format `precision`.

    Args:
        image: (B, 3, S, S), normalised. If `stemmed`, the frozen front's output for it.
    """
    device = next(model.parameters()).device
    with fitting(len(image)), autocast(device, precision):
        found = model(image.to(device), branches, stemmed=stemmed)
        return {name: maps.float().cpu() for name, maps in found.items()}


def labelled(data: Dataset, i: int) -> Tensor:
    """Which pixels of a slice have a label, (H, W) of bool. The others are not scored."""
    return data.labels(i) != IGNORED


def fewest_shown(data: Dataset) -> int:
    """The patients of the split whose masks show the class that the fewest show, of the classes that are scored.

    0: no mask shows any. A mean of Dice says no more of a class than these patients do.
    """
    shown = torch.zeros(data.config.model.num_classes, dtype=torch.long)
    for slices in patients_of(data):
        shown += torch.stack([reference(data, i).flatten(1).any(1) for i in slices]).any(0)
    counts = shown if data.annotated is None else shown[list(data.annotated)]
    return min((count for count in counts.tolist() if count), default=0)


def reference(data: Dataset, i: int) -> Tensor:
    """A slice's mask at its own size, (classes, H, W) of bool. Pixels without a label have no class."""
    return one_hot(data.labels(i)[None].long(), data.config.model.num_classes, background=False)[0].bool()
