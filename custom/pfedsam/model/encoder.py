"""An image encoder as a row of units, so that the frozen front can be run once for all branches."""

from collections.abc import Iterable, Iterator
from functools import partial

from torch import Tensor, nn
from torchvision.ops import Permute

from pfedsam.config import Target
from pfedsam.model.lora import LoRA, LoRALinear, PostAdapter, adapted

ChannelsLast, ChannelsFirst = partial(Permute, [0, 2, 3, 1]), partial(Permute, [0, 3, 1, 2])


class Encoder(nn.Module):
    """Units run in a row: (B, 3, S, S) normalised -> (B, C, S/p, S/p).

    `stem` runs the frozen units at the front and `body` the rest. `body(stem(x))` is the encoder.
    """

    def __init__(self, units: Iterable[nn.Module], *, channels: int, patch: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.channels = channels
        self.patch = patch

    @property
    def split(self) -> int:
        """The index of the first unit with an adapter or a trained parameter. The number of units if there is none."""
        trained = (adapted(unit) or any(p.requires_grad for p in unit.parameters()) for unit in self.units)
        return next((i for i, here in enumerate(trained) if here), len(self.units))

    def stem(self, image: Tensor) -> Tensor:
        """The input of the first adapted unit, which is the same for every branch on this backbone."""
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


def adapt(encoder: Encoder, *, rank: int, alpha: float, last: int | None, on: Target = "qkv") -> None:
    """Put LoRA on the layers `on` of the encoder's last `last` attention blocks (None: all).

    "qkv" in all blocks is Conv-LoRA's. The other choices are ours.
    """
    where = [i for i, unit in enumerate(encoder.units) if hasattr(unit, "attn")]
    for i in where if last is None else where[len(where) - min(last, len(where)) :]:
        replace_linear(encoder.units[i], on, rank=rank, alpha=alpha)


def replace_linear(block: nn.Module, on: Target, *, rank: int, alpha: float) -> None:
    """Put LoRA on the linear layers of `block` that `on` names, unless they have it."""
    for owner, name, layer in list(layers(block, on)):
        setattr(owner, name, LoRALinear(layer, rank=rank, alpha=alpha))


def layers(block: nn.Module, on: Target) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The layers that can get LoRA, each as its owner, its name there, and the layer."""
    for owner in block.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.Linear) and not isinstance(owner, LoRALinear | LoRA) and on in ("linear", name):
                yield owner, name, child


def adapt_after(encoder: Encoder, *, rank: int, alpha: float) -> None:
    """Put one LoRA after the encoder: Figure 1 read literally, our "post" reading."""
    encoder.units.append(PostAdapter(encoder.channels, rank=rank, alpha=alpha))
