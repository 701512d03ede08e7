"""GIN (arXiv 2602.20773, 2508.05137; Ouyang et al. 2021): FedAvg on views that have passed through a random network.

The network changes intensities and keeps shapes, so that a site with one modality learns shapes. Beside it are three
plainer changes to compare it with: one random convolution (Xu et al. 2021), the spectrum's amplitude, and intensities.
The network's values are in deviations around the image's mean. Our choices: the method comes after the job's
augmentation, mean and deviation are the view's, black padding too, and values are cut to 0..1 afterwards, because SAM
knows no others. The three plainer changes' strengths are ours too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from pfedsam.bounds import number
from pfedsam.config import Config
from pfedsam.data.dataset import View
from pfedsam.files import seed_of
from pfedsam.methods import fedavg
from pfedsam.methods.base import Augmented, Here

Form = Literal["network", "convolution", "amplitude", "intensity"]


@dataclass(frozen=True)
class Settings:
    """GIN's own settings."""

    form: Form = "network"  # what changes a view: GIN's network, one convolution, the spectrum, or mean and deviation
    layers: int = number(4, least=1, most=16)  # of the network; the paper's
    width: int = number(2, least=1, most=64)  # its hidden channels; the paper's
    share: float = number(1.0, least=0, most=1)  # of the views that are changed; the paper changes all


def network(image: Tensor, draw: Generator, own: Settings) -> Tensor:
    """The image (3, H, W), of mean 0, through random convolutions, each of kernel 1 or 3 and with a random shift.

    Leaky ReLU follows all but the last. Values are in deviations of the image, so that a shift is about as large as
    they are. Without shifts every kink of a map of intensities would be at the image's mean.
    """
    widths, deviation = [3, *[own.width] * (own.layers - 1), 3], image.std().clamp_min(1e-6)
    image = image / deviation
    for i, (into, out) in enumerate(pairwise(widths)):
        image = convolved(F.leaky_relu(image) if i else image, out, into, draw)
        image = image + torch.randn(out, 1, 1, generator=draw)
    return image * deviation


def convolution(image: Tensor, draw: Generator, _own: Settings) -> Tensor:
    """The image through one random convolution of kernel 1 or 3."""
    return convolved(image, 3, 3, draw)


def convolved(image: Tensor, out: int, into: int, draw: Generator) -> Tensor:
    """A convolution with new Gaussian weights, (into, H, W) -> (out, H, W)."""
    side = 1 + 2 * int(torch.randint(2, (), generator=draw))
    weight = torch.randn(out, into, side, side, generator=draw)
    return F.conv2d(image[None], weight, padding=side // 2)[0]


def amplitude(image: Tensor, draw: Generator, _own: Settings) -> Tensor:
    """The image with each amplitude of its spectrum times a number in 0..2, and its phases."""
    spectrum = torch.fft.rfft2(image)
    found: Tensor = torch.fft.irfft2(spectrum * 2 * torch.rand(spectrum.shape, generator=draw), s=image.shape[-2:])
    return found


def intensity(image: Tensor, draw: Generator, _own: Settings) -> Tensor:
    """Each channel with a new deviation, 0.5 to 1.5 times the old, and a new mean, up to a deviation away."""
    factor, offset = 0.5 + torch.rand(3, 1, 1, generator=draw), 2 * torch.rand(3, 1, 1, generator=draw) - 1
    return image * factor + offset * image.std((1, 2), keepdim=True)


FORMS: dict[Form, Callable[[Tensor, Generator, Settings], Tensor]] = {
    "network": network,
    "convolution": convolution,
    "amplitude": amplitude,
    "intensity": intensity,
}


def blended(image: Tensor, changed: Tensor, alpha: float) -> Tensor:
    """alpha changed + (1 - alpha) image, at the image's own Frobenius norm. All (3, H, W)."""
    mixed = alpha * changed + (1 - alpha) * image
    return mixed.mul_(image.norm() / mixed.norm().clamp_min(1e-6))


def restyled(image: Tensor, draw: Generator, own: Settings) -> Tensor:
    """A view (3, H, W) in 0..1 with other intensities and the same shapes. All is drawn from `draw`."""
    if float(torch.rand((), generator=draw)) >= own.share:
        return image
    alpha, mean = float(torch.rand((), generator=draw)), image.mean()
    return (mean + blended(image - mean, FORMS[own.form](image - mean, draw, own), alpha)).clamp(0, 1)


def augment(usual: Augmented, config: Config, here: Here) -> Augmented:
    """The job's augmentation, then the method's. None if `train.augment` is false.

    A view's draws follow from the site's seed and the view alone, so a repeated round has the same bits.
    """
    own = config.own(Settings)
    if usual is None:
        return None

    def apply(image: Tensor, mask: Tensor, view: View) -> tuple[Tensor, Tensor]:
        image, mask = usual(image, mask, view)
        draw = Generator().manual_seed(seed_of(f"{here.seed}/{view.slice}/{view.number}/restyled"))
        return restyled(image, draw, own), mask

    return apply


METHOD = replace(fedavg.METHOD, augment=augment, settings=Settings)
