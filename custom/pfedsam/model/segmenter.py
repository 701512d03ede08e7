"""One branch, an encoder with a prompt-free decoder, and the set of branches that a site trains."""

import copy
from collections.abc import Callable, Sequence
from typing import cast

import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

from pfedsam.model.aside import Aside
from pfedsam.model.encoder import Encoder
from pfedsam.model.lora import adapted, loras, side_by_side
from pfedsam.tensors import tensors_digest


class Segmenter(nn.Module):
    """Logits (B, outputs, 4S/p, 4S/p) from normalised images (B, 3, S, S). A light model's are (B, outputs, S, S)."""

    def __init__(self, encoder: Encoder, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, outputs, 4S/p, 4S/p) from images (B, 3, S, S)."""
        return self.decode(self.encoder(image))

    def decode(self, embedding: Tensor) -> Tensor:
        """Logits (B, outputs, 4S/p, 4S/p) from the encoder's embedding (B, C, S/p, S/p)."""
        return cast(Tensor, self.decoder(embedding))

    def trained_digest(self) -> str:
        """sha256 of all that the branch's predictions depend on in a site's process.

        These are the trained parameters, and the shares that are taken of own detours.
        """
        shares = torch.tensor([place.own.share for place in adapted(self) if place.own is not None])
        return tensors_digest([*(tensor for tensor in self.parameters() if tensor.requires_grad), shares])

    def train(self, mode: bool = True) -> "Segmenter":
        """Set training mode. Batch norms keep their pretrained statistics, because a batch has only a few images."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class Branches(nn.Module):
    """The branches that a site trains on one frozen base: "global", "personal", or both.

    A parameter that two branches have in common appears once, under the first branch's name.
    """

    def __init__(self, **branches: Segmenter) -> None:
        super().__init__()
        self.branch = nn.ModuleDict(branches)
        self.aside: Aside | None = None  # what a method trains at the site beside the branches
        self.prompts: PromptEncoder | None = None  # SAM's, frozen, for a method that has SAM label
        self.received: dict[str, Tensor] = {}  # as `merge` leaves it, for methods that stay near what they got
        self._one_base = len({_base(branch.encoder) for branch in branches.values()}) == 1
        self._one_decoder = len({_base(branch.decoder) for branch in branches.values()}) == 1

    def __getitem__(self, name: str) -> Segmenter:
        return cast(Segmenter, self.branch[name])

    def __contains__(self, name: str) -> bool:
        return name in self.branch

    def names(self) -> tuple[str, ...]:
        """The branches' names, in order."""
        return tuple(self.branch.keys())

    def forward(
        self, image: Tensor, only: tuple[str, ...] | None = None, *, stemmed: bool = False
    ) -> dict[str, Tensor]:
        """Logits of each branch, by name, (B, outputs, 4S/p, 4S/p). The frozen stem runs once, without a gradient.

        Args:
            image: (B, 3, S, S), normalised.
            only: the branches to run. None: all.
            stemmed: `image` is what `stem` returned.
        """
        found = self.embeddings(image, only, stemmed=stemmed)
        if not self._one_decoder:
            return {name: self[name].decode(embedding) for name, embedding in found.items()}
        decoders = [self[name].decoder for name in found]
        return dict(zip(found, _as_one(decoders, decoders[0], torch.cat([*found.values()])), strict=True))

    def embeddings(
        self, image: Tensor, only: tuple[str, ...] | None = None, *, stemmed: bool = False
    ) -> dict[str, Tensor]:
        """The encoder's embedding of each branch, by name, (B, C, S/p, S/p). The arguments are those of `forward`."""
        names = self.names() if only is None else only
        encoders = [self[name].encoder for name in names]
        if not self._one_base:
            return {name: encoder(image) for name, encoder in zip(names, encoders, strict=True)}
        hidden = image if stemmed else self.stem(image)
        batch = hidden.repeat(len(names), 1, 1, 1)
        return dict(zip(names, _as_one(encoders, encoders[0].body, batch), strict=True))

    @torch.no_grad()
    def stem(self, image: Tensor) -> Tensor:
        """The output of the base's frozen front, which all branches have in common. `image`: (B, 3, S, S)."""
        return self[self.names()[0]].encoder.stem(image)


def _as_one(modules: Sequence[nn.Module], run: Callable[[Tensor], Tensor], batch: Tensor) -> Sequence[Tensor]:
    """What each of the modules makes of its equal share of the batch. One pass costs less than several.

    Args:
        modules: encoders, or decoders, of one structure on the same tensors, but for their adapters'.
        run: the first module's way.
    """
    lead, *others = modules
    with side_by_side(lead, others):
        return run(batch).chunk(len(modules))


def _base(module: nn.Module) -> frozenset[int]:
    """The ids of the tensors of an encoder or a decoder without its adapters'."""
    adapters = {id(p) for lora in loras(module) for p in lora.parameters()}
    return frozenset(id(p) for p in module.parameters()) - adapters


def twin(segmenter: Segmenter, keep: Callable[[nn.Parameter], bool]) -> Segmenter:
    """A copy of `segmenter` that has the original's buffers, and its parameters wherever `keep` is true.

    If `keep` is true for frozen parameters, two branches need the memory of one base.
    """
    memo: dict[int, object] = {id(p): p for p in segmenter.parameters() if keep(p)}
    memo.update({id(b): b for b in segmenter.buffers()})
    return copy.deepcopy(segmenter, memo)
