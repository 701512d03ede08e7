"""One branch: encoder and prompt-free decoder; and the set of branches that a site trains."""

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from pfedsam.model.decoder import PromptFreeDecoder
from pfedsam.model.encoder import Encoder


class Segmenter(nn.Module):
    """Logits (B, outputs, 4S/p, 4S/p) from normalised images (B, 3, S, S)."""

    def __init__(self, encoder: Encoder, decoder: PromptFreeDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the whole chain."""
        return self.from_stem(self.encoder.stem(image))

    def from_stem(self, hidden: Tensor) -> Tensor:
        """Logits from what `encoder.stem` returned."""
        return cast(Tensor, self.decoder(self.encoder.body(hidden)))

    def train(self, mode: bool = True) -> "Segmenter":
        """Training mode, but frozen batch norms keep their pretrained statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self


class Branches(nn.Module):
    """The branches a site trains, on one frozen base: "global", "personal", or both.

    Parameters that two branches have in common appear once, under the first branch's name.
    """

    def __init__(self, **branches: Segmenter) -> None:
        super().__init__()
        self.branch = nn.ModuleDict(branches)

    def __getitem__(self, name: str) -> Segmenter:
        return cast(Segmenter, self.branch[name])

    def __contains__(self, name: str) -> bool:
        return name in self.branch

    def names(self) -> tuple[str, ...]:
        """The branches' names, in order."""
        return tuple(self.branch.keys())

    def forward(self, image: Tensor, only: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """Logits of each branch (or of `only`); the frozen stem runs once, without a gradient."""
        names = self.names() if only is None else only
        with torch.no_grad():
            hidden = self[names[0]].encoder.stem(image)
        return {name: self[name].from_stem(hidden) for name in names}


def twin(segmenter: Segmenter, keep: Callable[[nn.Parameter], bool]) -> Segmenter:
    """A copy of `segmenter` that holds the same tensors where `keep` says so, and all same buffers.

    With `keep` = "is frozen" two branches cost the memory of one base.
    """
    memo: dict[int, object] = {id(p): p for p in segmenter.parameters() if keep(p)}
    memo.update({id(b): b for b in segmenter.buffers()})
    return copy.deepcopy(segmenter, memo)
