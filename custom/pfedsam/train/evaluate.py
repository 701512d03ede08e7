"""Scoring branches on a split, and the masks they find."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pfedsam.data.dataset import Dataset, View, unfit
from pfedsam.model.segmenter import Branches
from pfedsam.train.loop import Source
from pfedsam.train.losses import one_hot
from pfedsam.train.metrics import CaseScore, score
from pfedsam.train.precision import autocast

THRESHOLD = 0.5  # on probabilities, never on logits


def evaluate(
    model: Branches, data: Dataset, branches: tuple[str, ...], source: Source = Dataset.batch
) -> dict[str, list[CaseScore]]:
    """Scores of every case and annotated class, by branch; `source` as for `train_round`."""
    scores: dict[str, list[CaseScore]] = {name: [] for name in branches}
    for case in data.cases():
        truth = torch.stack([reference(data, i) for i in case], dim=-1)
        spacing = data.slices[case[0]].spacing
        for name, found in find(model, data, case, branches, source).items():
            flat = truth.shape[-1] == 1
            pair = (found[..., 0], truth[..., 0]) if flat else (found, truth)
            found_scores = score(*pair, spacing[:2] if flat else spacing)
            scores[name] += [s for s in found_scores if data.annotated is None or s.cls - 1 in data.annotated]
    return scores


def find(
    model: Branches, data: Dataset, indices: list[int], branches: tuple[str, ...], source: Source = Dataset.batch
) -> dict[str, Tensor]:
    """What each branch finds on slices `indices` at their own size: (classes, H, W, slices) of bool."""
    found: dict[str, list[Tensor]] = {name: [] for name in branches}
    for i, logits in _predict(model, data, indices, branches, source):
        for name, maps in logits.items():
            found[name].append(masks(maps, data, i))
    return {name: torch.stack(maps, dim=-1) for name, maps in found.items()}


def masks(logits: Tensor, data: Dataset, i: int) -> Tensor:
    """(classes, H, W) of bool from (outputs, h, h) logits: probabilities first, then the threshold."""
    m = data.config.model
    return decide(unfit(logits, data.slices[i].shape, m.image_size), exclusive=m.exclusive)


def decide(maps: Tensor, *, exclusive: bool) -> Tensor:
    """(classes, H, W) of bool from (outputs, H, W) logits: the likeliest class, or each class by its threshold."""
    if exclusive:
        return one_hot(maps.argmax(0)[None], len(maps), background=True)[0, 1:].bool()
    return maps.sigmoid() > THRESHOLD


def label_map(maps: Tensor, *, exclusive: bool) -> Tensor:
    """(H, W) uint8 of class numbers, 0 the background, from (outputs, H, W) logits; of overlapping ones the best."""
    if exclusive:
        return maps.argmax(0).to(torch.uint8)
    best, which = maps.sigmoid().max(0)
    return ((which + 1) * (best > THRESHOLD)).to(torch.uint8)


@torch.no_grad()
def _predict(
    model: Branches, data: Dataset, indices: list[int], branches: tuple[str, ...], source: Source
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    model.eval()
    device = next(model.parameters()).device
    size = data.config.train.batch_size
    for start in range(0, len(indices), size):
        part = indices[start : start + size]
        batch = source(data, [View(i) for i in part], None)
        with autocast(device, data.config.train.precision):
            found = model(batch.image.to(device), branches, stemmed=batch.stemmed)
        logits = {name: maps.float().cpu() for name, maps in found.items()}
        for row, i in enumerate(part):
            yield i, {name: maps[row] for name, maps in logits.items()}


def reference(data: Dataset, i: int) -> Tensor:
    """A slice's mask at its own size, (classes, H, W) of bool."""
    return one_hot(data.labels(i)[None].long(), data.config.model.num_classes, background=False)[0].bool()
