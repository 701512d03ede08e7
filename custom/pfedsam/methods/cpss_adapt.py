"""CPSS's second half (arXiv 2106.03422): a trained model adapts to a new site's images, without the source's data.

The job begins with the last shared tensors of an earlier run (`pfedsam render --begin STUDY/RUN`), and all updates are
zero, as in `newcomer`. The moving average of the site's own model labels its images. The model in training learns these
labels from images whose early features swap styles between patches. Labels that the site has count too. Built from a
description: the paper's own choice of labels is not known. Our choices: LoRA and decoder adapt, both stay at the site,
and all numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.methods import cpss, ditto, newcomer
from pfedsam.methods.base import Here, Told, copy_trained, uncached
from pfedsam.model.segmenter import Branches
from pfedsam.tensors import below, under
from pfedsam.train.loop import RoundReport
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.pseudo import agreed, average_of, move, pseudo_loss, taught
from pfedsam.train.step import Losses

AVERAGE = "average/"


@dataclass(frozen=True)
class Settings(cpss.Settings):
    """The settings of the swap, and those of the adaptation. All are our choice."""

    decay: float = number(0.99, least=0, below=1)  # of the moving average, in a step
    sure: float = number(0.8, least=0.5, below=1)  # probability from which on its label counts


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The loss on the average's labels, and the supervised loss where somebody labelled. Scalars by name."""
    with unswapped(model):
        teacher = taught(model["personal"], below(AVERAGE, model.received), batch)
    target, known = agreed(teacher, teacher, config.own(Settings).sure, exclusive=config.model.exclusive)
    logits = model(batch.image, ("personal",))["personal"]
    return {
        "personal": segmentation_loss(logits, batch, config.train),
        "pseudo": pseudo_loss(logits, target, known, batch, exclusive=config.model.exclusive),
    }


@contextmanager
def unswapped(model: Branches) -> Iterator[None]:
    """Within the context no style is swapped."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def merge(model: Branches, _config: Config, here: Here) -> None:
    """Begin at the federation's model, and go on with the site's own and its average once there are such."""
    if here.dice is None and not here.memory:
        copy_trained(model, "personal")
    model.received = under(AVERAGE, average_of(model["personal"], below(AVERAGE, here.memory)))


def stepped(model: Branches, config: Config) -> None:
    """Move the average towards the site's model, in place."""
    move(below(AVERAGE, model.received), model["personal"], config.own(Settings).decay)


def tell(model: Branches, _config: Config, _here: Here, _report: RoundReport) -> Told:
    """Nothing goes up. The moving average stays."""
    return Told({}, dict(model.received))


LOCAL = replace(
    ditto.METHOD,
    adapt=cpss.adapters,
    loss=losses,
    terms=("pseudo",),
    merge=merge,
    stepped=stepped,
    phase=newcomer.phase,
)
METHOD = replace(LOCAL, tell=tell, augment=uncached, unlabelled=True, joins=True, settings=Settings)
