"""Medical SAM adapters (Wu et al. 2023) as FedFMS's FedMSA places them in each block of the encoder.

Each block gets two. A space adapter with a skip follows the attention. An adapter without a skip, times 0.5,
runs beside the MLP on the same normed input. The release's depth adapters serve only 3-D and are left out:
in 2-D they would be sent and never used. Both kinds work token by token, so windows and their padding do
not matter.
"""

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfedsam.model.encoder import Encoder

Start = Literal["zero", "random"]
NARROW = 4  # width / bottleneck, as released
BESIDE = 0.5  # factor of the adapter beside the MLP, as released


class TokenAdapter(nn.Module):
    """up(GELU(down(x))): (..., d) -> (..., d). The paper's figure says ReLU, its code GELU. We take GELU."""

    def __init__(self, width: int, start: Start) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, width // NARROW), nn.Linear(width // NARROW, width)
        self.start = start

    def forward(self, x: Tensor) -> Tensor:
        """The adapter's output, without the skip."""
        return cast(Tensor, self.up(F.gelu(self.down(x))))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw the weights again. With "zero", `up` is zero, so that training begins at the pretrained model.

        With "random", both layers are drawn, as in the release. This disturbs the pretrained encoder before
        the first step. Here every site draws the same values. The release draws others at each site.
        """
        for linear in (self.down, self.up):
            nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(linear.bias)
        if self.start == "zero":
            nn.init.zeros_(self.up.weight)


class Behind(nn.Module):
    """A projection with an adapter behind it: y + adapter(y), y = proj(x)."""

    def __init__(self, proj: nn.Linear, start: Start) -> None:
        super().__init__()
        self.proj, self.adapter = proj, TokenAdapter(proj.out_features, start)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        y = self.proj(x)
        return cast(Tensor, y + self.adapter(y))


class Beside(nn.Module):
    """An MLP with an adapter beside it: mlp(x) + 0.5 adapter(x). If the MLP has a norm, the adapter gets norm(x)."""

    def __init__(self, mlp: nn.Module, width: int, start: Start) -> None:
        super().__init__()
        self.mlp, self.adapter = mlp, TokenAdapter(width, start)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        norm = getattr(self.mlp, "norm", None)
        return cast(Tensor, self.mlp(x) + BESIDE * self.adapter(x if norm is None else norm(x)))


def adapt_blocks(encoder: Encoder, start: Start = "zero") -> None:
    """Put both adapters into every attention block. For `start` see `TokenAdapter.draw`."""
    for unit in encoder.units:
        if hasattr(unit, "attn"):
            attention = cast(nn.Module, unit.attn)
            proj = cast(nn.Linear, attention.proj)
            attention.proj = Behind(proj, start)
            unit.mlp = Beside(cast(nn.Module, unit.mlp), proj.out_features, start)
