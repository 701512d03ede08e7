"""An image encoder as a row of units, so that the frozen front can be run once for all branches."""

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from pfedsam.model.lora import AdaptedBlock, PostAdapter


class Encoder(nn.Module):
    """Units run in a row: (B, 3, S, S) normalised -> (B, C, S/p, S/p).

    `stem` runs the units before the first adapter, `body` the rest; `body(stem(x))` is the encoder.
    """

    def __init__(self, units: Iterable[nn.Module], *, channels: int, patch: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.channels = channels
        self.patch = patch

    @property
    def split(self) -> int:
        """Index of the first unit with an adapter; the number of units if there is none."""
        adapted = [i for i, u in enumerate(self.units) if isinstance(u, AdaptedBlock | PostAdapter)]
        return adapted[0] if adapted else len(self.units)

    def stem(self, image: Tensor) -> Tensor:
        """What enters the first adapted unit; the same for every branch on this backbone."""
        return self._run(image, 0, self.split)

    def body(self, hidden: Tensor) -> Tensor:
        """The embedding, (B, C, S/p, S/p), from what `stem` returned."""
        return self._run(hidden, self.split, len(self.units))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C, S/p, S/p)."""
        return self.body(self.stem(image))

    def _run(self, x: Tensor, start: int, stop: int) -> Tensor:
        for unit in self.units[start:stop]:
            x = unit(x)
        return x


class PatchAndPosition(nn.Module):
    """SAM's ViT entry: patches plus absolute position, (B, 3, S, S) -> (B, S/p, S/p, d)."""

    def __init__(self, patch_embed: nn.Module, position: nn.Parameter) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.position = position

    def forward(self, image: Tensor) -> Tensor:
        """Patch embedding with the position table added."""
        return cast(Tensor, self.patch_embed(image)) + self.position


class ChannelsLast(nn.Module):
    """(B, C, H, W) -> (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """The permuted view."""
        return x.permute(0, 2, 3, 1)


class ChannelsFirst(nn.Module):
    """(B, H, W, C) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """The permuted view."""
        return x.permute(0, 3, 1, 2)


def adapt(encoder: Encoder, *, rank: int, alpha: float, last: int | None) -> None:
    """Put LoRA on the fused qkv of the encoder's last `last` attention blocks (None: all)."""
    where = [i for i, unit in enumerate(encoder.units) if hasattr(unit, "attn")]
    for i in where if last is None else where[len(where) - min(last, len(where)) :]:
        encoder.units[i] = AdaptedBlock(encoder.units[i], rank=rank, alpha=alpha)


def adapt_after(encoder: Encoder, *, rank: int, alpha: float) -> None:
    """Put one LoRA after the encoder (the post reading)."""
    encoder.units.append(PostAdapter(encoder.channels, rank=rank, alpha=alpha))
