"""FedICRA (arXiv 2304.05635): for sites with weak labels of several kinds. A site mixes the received decoder into its
own value by value (ALA, from FedALA), selects channels by a gate of its own, and learns from labelled pixels and a CRF.

ALA: theta = own + (received - own) W, with W <- clip(W - eta grad (received - own), 0, 1). W is trained on the site's
images before each round, and persists. Our choices: the mixed layers are SAM's decoder, a round's W learns from a few
batches and on the whole loss, all parts train together, the cross-entropy has Dice beside it, and an unknown site gets
the model without a gate. The release first trains its last convolution alone, and trains W on the cross-entropy alone
and only after iteration 50. The site-contrastive loss and the tree energy are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice

import torch
from torch import Tensor

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch, View
from pfedsam.data.square import spread
from pfedsam.files import seed_of
from pfedsam.methods.base import Here, Method, Told, uncached
from pfedsam.model.channel_gate import ChannelGate
from pfedsam.model.partition import DECODER, Declaration, Kind, Part, kinds
from pfedsam.model.segmenter import Branches, Segmenter, twin
from pfedsam.tensors import Tensors, below, under
from pfedsam.train.ala import train_weight
from pfedsam.train.crf import gated_crf
from pfedsam.train.loop import RoundReport
from pfedsam.train.losses import labelled, segmentation_loss
from pfedsam.train.precision import autocast
from pfedsam.train.step import Losses

OWN, WEIGHT, TURN = "own/", "weight/", "turn"


@dataclass(frozen=True)
class Settings:
    """FedICRA's own settings."""

    crf_weight: float = number(0.1, least=0, most=1_000_000)  # of the gated CRF term; our choice
    ala_rate: float = number(1.0, above=0, most=1_000_000)  # eta; FedALA's
    ala_steps: int = number(4, least=0, most=10_000)  # batches that train W in a round; our choice
    ala_first: int = number(40, least=0, most=10_000)  # most batches in the first of these rounds; our choice
    ala_spread: float = number(0.1, least=0, most=1_000)  # the first ends when the last losses deviate less; FedALA's


def branches(segmenter: Segmenter, _: Config) -> Branches:
    """One model, as the global branch, and with the site's channel gate behind its encoder as the personal branch."""
    personal = twin(segmenter, keep=lambda _: True)
    personal.encoder.units.append(ChannelGate(personal.encoder.channels))
    return Branches(**{"global": segmenter, "personal": personal})


def declare(_: Config) -> Declaration:
    """The gate is private, all else is shared."""
    return lambda _branch, kind: Part.PRIVATE if kind is Kind.GATE else Part.SHARED


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The loss on labelled pixels, and the CRF term on those without a label. Scalars by name."""
    logits, known = model(batch.image, ("personal",))["personal"], labelled(batch)
    colour = batch.image * spread(config.model.pixels)
    bare = torch.zeros_like(colour[:, :1]) if known is None else 1 - known
    term = gated_crf(logits, colour, bare, exclusive=config.model.exclusive)
    return {"personal": segmentation_loss(logits, batch, config.train), "crf": config.own(Settings).crf_weight * term}


def merge(model: Branches, config: Config, here: Here) -> None:
    """ALA. A site without a round of its own takes the received model unchanged. Before a test, W is not trained."""
    settings, kept = config.own(Settings), below(WEIGHT, here.memory)
    model.received = {TURN: here.memory.get(TURN, torch.zeros(())) + 1}
    live = mixed(model)
    own = {name: tensor.to(live[name].device) for name, tensor in below(OWN, here.memory).items()}
    if own:
        weight = {name: kept.get(name, torch.ones_like(p)).clone().to(p.device) for name, p in live.items()}
        count = (settings.ala_steps if kept else settings.ala_first) if here.dice else 0  # no dice: a test
        some = batches(here, count, next(model.parameters()).device)
        losses = (partial(total, model, batch, config) for batch in some)
        train_weight(live, own, weight, losses, rate=settings.ala_rate, spread=0.0 if kept else settings.ala_spread)
        model.received |= under(WEIGHT, weight)


def mixed(model: Branches) -> Tensors:
    """The trained parameters of the decoder and its head, live, by name in the global branch."""
    kind, upper = kinds(model["global"]), DECODER | {Kind.DECODER_LORA_A, Kind.DECODER_LORA_B, Kind.HEAD}
    return {name: p for name, p in model["global"].named_parameters() if kind[name] in upper and p.requires_grad}


def total(model: Branches, batch: Batch, config: Config) -> Tensor:
    """The sum of the losses, a scalar."""
    with autocast(batch.image.device, config.train.precision):
        return torch.stack(list(losses(model, batch, config).values())).sum()


def batches(here: Here, count: int, device: torch.device) -> Iterator[Batch]:
    """`count` batches of the site's training images without augmentation. Their order differs from round to round."""
    assert here.data is not None
    draw = torch.Generator().manual_seed(seed_of(f"{here.seed}/{int(here.memory[TURN])}/ala"))
    order = chain.from_iterable(here.data.order(draw) for _ in range(count))  # each epoch has a batch or more
    for slices in islice(order, count):
        batch = here.data.batch([View(i) for i in slices])
        yield replace(batch, image=batch.image.to(device), label=batch.label.to(device))


def tell(model: Branches, _config: Config, _here: Here, _report: RoundReport) -> Told:
    """Nothing goes up. The site remembers its decoder as trained, W, and the number of its rounds."""
    return Told({}, under(OWN, {name: p.detach().clone() for name, p in mixed(model).items()}) | model.received)


METHOD = replace(
    Method(branches, declare, losses, merge, personal="personal", global_="global"),
    terms=("crf",),
    blends=True,
    tell=tell,
    augment=uncached,
    settings=Settings,
)
