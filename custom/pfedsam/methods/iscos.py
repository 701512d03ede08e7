"""ISCOS (SEE, arXiv 2506.08955): where labels are incomplete, SAM itself labels, prompted by a coarse prediction.

The moving average of the site's own model predicts a coarse mask. Its box, its surest points and the mask itself prompt
the published SAM, whose answer becomes the pseudo-label of pixels without a label. Answers that SAM is not sure of, or
that lie elsewhere than the coarse mask, are left out. Built from a description, and made federated by us: the server
takes the mean. Our choices: all numbers, one object a class and image, and that a site labels from its second round on.
The paper's grouping of features, and its labels from several augmentations, are left out.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods import fedavg
from pfedsam.methods.base import Here, Told, uncached
from pfedsam.model.partition import Declaration, Part
from pfedsam.model.prompted import answer, prompt_of
from pfedsam.model.segmenter import Branches, Segmenter, twin
from pfedsam.tensors import below, under
from pfedsam.train.loop import RoundReport
from pfedsam.train.losses import resize, segmentation_loss
from pfedsam.train.pseudo import average_of, move, pseudo_loss, taught
from pfedsam.train.step import Losses

AVERAGE, TURN, STEPS = "average/", "turn", "steps"
SHARP = 10.0  # of the mask that prompts SAM: it was trained on masks of logits as large as this


@dataclass(frozen=True)
class Settings:
    """ISCOS's own settings. All are our choice."""

    decay: float = number(0.99, least=0, below=1)  # of the moving average, in a step
    sure: float = number(0.8, least=0.5, below=1)  # probability from which on SAM's answer counts
    agree: float = number(0.5, least=0, most=1)  # least overlap (IoU) of SAM's answer with the coarse mask
    pseudo_weight: float = number(0.5, least=0, most=1_000_000)  # of the loss on pseudo-labels
    first: int = number(1, least=0, most=1000)  # rounds of a site before SAM labels: an untrained model asks nonsense


def branches(segmenter: Segmenter, _: Config) -> Branches:
    """The global branch, and beside it SAM as published, on the same base."""
    return Branches(**{"global": segmenter, "sam": twin(segmenter, keep=lambda p: not p.requires_grad)})


def declare(_: Config) -> Declaration:
    """The global branch is shared. SAM is not trained."""
    return lambda branch, _kind: Part.SHARED if branch == "global" else Part.FROZEN


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss, and the loss on SAM's labels if a pixel may be without one. Scalars by name."""
    own, logits = config.own(Settings), model(batch.image, ("global",))["global"]
    found = {"global": segmentation_loss(logits, batch, config.train)}
    if batch.ignores:
        target, known = labels(model, batch, config)
        term = pseudo_loss(logits, target, known, batch, exclusive=config.model.exclusive)
        found["pseudo"] = own.pseudo_weight * (model.received[TURN] >= own.first) * term
    return found


@torch.no_grad()
def labels(model: Branches, batch: Batch, config: Config) -> tuple[Tensor, Tensor]:
    """SAM's labels and where they count, 0 or 1, in the form of `train.pseudo.agreed`."""
    own, coarse = config.own(Settings), taught(model["global"], below(AVERAGE, model.received), batch)
    odds = against_the_rest(coarse)[:, 1:] if config.model.exclusive else coarse
    embedding = model.embeddings(batch.image, ("sam",))["sam"].float()
    answers, seen = zip(*(asked(model, embedding, one, batch.image.shape[-1]) for one in odds.unbind(1)), strict=True)
    sam, present = torch.cat(answers, 1), torch.stack(seen, 1)[..., None, None]
    sure = (sam.sigmoid() >= own.sure) | (sam.sigmoid() <= 1 - own.sure)
    known = sure & present & (overlap(sam > 0, odds > 0)[..., None, None] >= own.agree)
    if not config.model.exclusive:
        return (sam > 0).float(), known.float()
    every = torch.cat([torch.zeros_like(sam[:, :1]), sam.where(present, -torch.inf)], 1)
    return every.argmax(1, keepdim=True), ((known | ~present).all(1, keepdim=True) & present.any(1, True)).float()


def asked(model: Branches, embedding: Tensor, coarse: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """SAM's logits (B, 1, L, L) for one object, from its coarse logits (B, L, L), and whether there was one, (B,)."""
    prompt, present = prompt_of(SHARP * (coarse / 2).tanh(), size)
    return resize(answer(model["sam"], cast(PromptEncoder, model.prompts), embedding, prompt), len(coarse[0])), present


def against_the_rest(logits: Tensor) -> Tensor:
    """Each channel's log odds against all others, from (B, outputs, L, L). Above 0 it is likelier than the rest."""
    chance = logits.softmax(1)
    return torch.logit(chance, eps=1e-6)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """The IoU of masks (B, C, L, L) of bool, (B, C). 0 if both are empty."""
    return (one & other).sum((2, 3)) / (one | other).sum((2, 3)).clamp_min(1)


def merge(model: Branches, _config: Config, here: Here) -> None:
    """Begin the moving average at what the site kept, or else at the received model, and count the site's rounds."""
    device = next(model.parameters()).device
    counts = {name: here.memory.get(name, torch.zeros(())).clone().to(device) for name in (TURN, STEPS)}
    model.received = under(AVERAGE, average_of(model["global"], below(AVERAGE, here.memory))) | counts


def stepped(model: Branches, config: Config) -> None:
    """Move the average towards the site's model, in place."""
    move(below(AVERAGE, model.received), model["global"], config.own(Settings).decay, model.received[STEPS])


def tell(model: Branches, _config: Config, _here: Here, _report: RoundReport) -> Told:
    """Nothing goes up. The moving average stays."""
    return Told({}, model.received | {TURN: model.received[TURN] + 1})


LOCAL = replace(
    fedavg.METHOD, build=branches, declare=declare, loss=losses, terms=("pseudo",), merge=merge, stepped=stepped
)
METHOD = replace(LOCAL, tell=tell, augment=uncached, unlabelled=True, prompts=True, settings=Settings)
