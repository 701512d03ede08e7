"""ALA (FedALA, Zhang et al. 2023): a site mixes the received tensors into its own, value by value, before it trains.

theta = own + (received - own) W. W is trained on the site's images, and the site keeps it for its next round.
"""

from collections.abc import Callable, Iterable, Mapping
from statistics import pstdev

import torch
from torch import Tensor

LAST = 10  # losses whose deviation says that W is steady, as in FedALA
Live = Mapping[str, Tensor]


@torch.no_grad()
def put(live: Live, own: Live, way: Live, weight: Live) -> None:
    """Set the live tensors to own + way W, where `way` is received - own."""
    for name, p in live.items():
        p.copy_(own[name] + way[name] * weight[name])


def turn(weight: Live, way: Live, slope: Live, rate: float) -> None:
    """W <- clip(W - rate slope way, 0, 1), in place. `slope` is the loss's gradient in the mixed tensors."""
    for name, one in weight.items():
        one.sub_(rate * slope[name] * way[name]).clamp_(0, 1)


def train_weight(
    live: Live, own: Live, weight: Live, losses: Iterable[Callable[[], Tensor]], *, rate: float, spread: float
) -> None:
    """Train W in place. The live tensors hold what was received, and afterwards the mix.

    Args:
        losses: each gives the loss of another batch, a scalar, at the live tensors' values.
        rate: eta.
        spread: W is steady, and the training ends, if the last losses deviate by less. 0: all batches are used.
    """
    way = {name: p.detach() - own[name] for name, p in live.items()}
    put(live, own, way, weight)
    seen: list[float] = []
    for loss_of in losses:
        loss = loss_of()
        turn(weight, way, dict(zip(live, torch.autograd.grad(loss, list(live.values())), strict=True)), rate)
        put(live, own, way, weight)
        seen.append(loss.item())
        if len(seen) > LAST and pstdev(seen[-LAST:]) < spread:
            break
