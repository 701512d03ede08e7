"""FedDG-ELCFS (Liu et al., CVPR 2021): sites exchange low-frequency amplitudes of some images, and learn in episodes.

A site restyles its images by others' amplitudes, at a new place between the two for each. An episode takes one inner
step on the plain images, and judges the stepped model on the restyled ones, also by a loss that contrasts each class's
boundary with its surroundings.
Our choices: a gradient of first order (Finn et al. 2017), how many spectra are sent and their reach, and the encoder's
embeddings in the boundary loss. Spectra are made of images, so a hospital must permit them (`derived` in its fence).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch.func import functional_call

from pfedsam.bounds import Bounds, number
from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.data.spectrum import foreign, low
from pfedsam.data.square import Normalise
from pfedsam.exchange.schema import Schema, Spec
from pfedsam.exchange.server import Contribution, ServerState, banked, mean
from pfedsam.methods import fedavg
from pfedsam.methods.base import Here, Told, of_others, uncached
from pfedsam.model.segmenter import Branches
from pfedsam.tensors import below
from pfedsam.train.boundary import boundary_loss
from pfedsam.train.loop import RoundReport
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.step import Losses

SPECTRA, BANK, MEAN, STD = "spectra", "bank", "mean", "std"


@dataclass(frozen=True)
class Settings:
    """FedDG's own settings."""

    spectra: int = number(8, least=1, most=1_000)  # images of which a site sends the amplitudes; our choice
    bank: int = number(32, least=1, most=10_000)  # spectra that a site is sent; our choice
    reach: float = number(0.02, above=0, most=0.5)  # highest frequency, in periods a pixel; our choice
    inner_rate: float = number(1e-3, least=0, most=10)  # of the inner step; as released
    boundary_weight: float = number(0.1, least=0, most=1_000_000)  # as released
    temperature: float = number(0.05, above=0, most=1_000)  # of the boundary loss; as released

    def hold_derived(self, config: Config) -> None:
        """UserFault if the spectra show more than the usual ones at 1024 pixels. Whole spectra show the images."""
        Bounds(1, Settings.spectra).hold("method.spectra", self.spectra)
        Bounds(1, 20).hold("method.reach in periods an image", reach_of(config))


def reach_of(config: Config) -> int:
    """The highest frequency, in periods an image."""
    return max(1, min(round(config.own(Settings).reach * config.model.image_size), config.model.image_size // 2 - 1))


def form(config: Config, count: int) -> Spec:
    """The form of `count` spectra. Rounding may bring an amplitude above 1."""
    reach = reach_of(config)
    return Spec((count, 3, 2 * reach + 1, reach + 1), torch.float32, most=1.01)


def up(_shared: Schema, config: Config) -> Schema:
    """A site sends its spectra."""
    return {SPECTRA: form(config, config.own(Settings).spectra)}


def down(_shared: Schema, config: Config) -> Schema:
    """The server sends the bank: spectra of all sites, and zeros in places that nothing fills."""
    return {BANK: form(config, config.own(Settings).bank)}


def losses(model: Branches, batch: Batch, config: Config) -> Losses:
    """The supervised loss, and the episode's. Scalars by name. Without spectra of others only the first."""
    own, student, others = config.own(Settings), model["global"], model.received[BANK]
    embedding = student.encoder(batch.image)
    plain = segmentation_loss(student.decode(embedding), batch, config.train)
    if not len(others):
        return {"global": plain}
    live = {name: p for name, p in student.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(plain, list(live.values()), retain_graph=True)
    ahead = {name: p - own.inner_rate * slope for (name, p), slope in zip(live.items(), slopes, strict=True)}
    centre, spread = model.received[MEAN], model.received[STD]
    image = (foreign(batch.image * spread + centre, others) - centre) / spread
    changed = functional_call(student.encoder, below("encoder.", ahead), (image,))
    logits = functional_call(student.decoder, below("decoder.", ahead), (changed,))
    maps, classes = (embedding, changed), config.model.num_classes
    boundary = boundary_loss(maps, batch.label, classes=classes, temperature=own.temperature)
    return {
        "global": plain,
        "episode": segmentation_loss(logits, batch, config.train),
        "boundary": own.boundary_weight * boundary,
    }


def merge(model: Branches, config: Config, here: Here) -> None:
    """Keep the bank's spectra that are there, and not this site's own; and how images were normalised."""
    others = of_others(here.extras.get(BANK, torch.zeros(0)), here.memory.get(SPECTRA))
    normalise, device = Normalise(config.model.pixels), next(model.parameters()).device
    kept = {BANK: others, MEAN: normalise.mean, STD: normalise.std}
    model.received = {name: tensor.to(device) for name, tensor in kept.items()}


def tell(_model: Branches, config: Config, here: Here, _report: RoundReport) -> Told:
    """The spectra of training images that the site's seed draws. They are sent, and kept to be sent again."""
    assert here.data is not None
    draw = torch.Generator().manual_seed(here.seed)
    drawn = torch.randint(len(here.data), (config.own(Settings).spectra,), generator=draw).tolist()
    known = here.memory or {SPECTRA: torch.stack([low(here.data[i][0], reach_of(config)) for i in drawn])}
    return Told(known, known)


def rule(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> ServerState:
    """FedAvg's model. The bank takes the sites' spectra in turn: the first of each, then the second of each."""
    return replace(mean(state, contributions, config), memory=banked(state, contributions, SPECTRA, BANK))


LOCAL = replace(fedavg.METHOD, loss=losses, terms=("episode", "boundary"), merge=merge, tell=tell, augment=uncached)
METHOD = replace(LOCAL, rule=rule, up=up, down=down, derived=frozenset({SPECTRA}), settings=Settings)
