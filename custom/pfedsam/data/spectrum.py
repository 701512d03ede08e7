"""The amplitudes of an image's lowest frequencies: its style without its shapes (FedDG, Liu et al. 2021).

An amplitude is divided by the number of pixels. So the one of frequency 0 is the channel's mean, and none is above 1 in
an image of values in 0..1.
"""

import torch
from torch import Tensor


def low(image: Tensor, reach: int) -> Tensor:
    """The amplitudes (..., 3, 2 reach + 1, reach + 1) of images (..., 3, S, S), up to `reach` periods along each axis.

    Rows are the frequencies -reach..reach, columns 0..reach. The others follow by symmetry.
    """
    amplitude = torch.fft.rfft2(image).abs() / (image.shape[-1] * image.shape[-2])
    return torch.roll(amplitude, reach, -2)[..., : 2 * reach + 1, : reach + 1]


def restyled(image: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Images whose lowest amplitudes are (1 - share) their own + share `other`. All phases stay.

    Args:
        image: (B, 3, S, S) in 0..1. So is the result, cut where it would leave that.
        other: amplitudes as `low` gives them, (B, 3, 2 reach + 1, reach + 1).
        share: (B, 1, 1, 1) in 0..1.
    """
    reach = other.shape[-1] - 1
    spectrum = torch.roll(torch.fft.rfft2(image.float()), reach, -2)
    own = spectrum[..., : 2 * reach + 1, : reach + 1]
    aim = (1 - share) * own.abs() + share * other * (image.shape[-1] * image.shape[-2])
    lowest = torch.polar(aim, own.angle())
    right = torch.cat([lowest, spectrum[..., : 2 * reach + 1, reach + 1 :]], -1)
    whole = torch.cat([right, spectrum[..., 2 * reach + 1 :, :]], -2)
    found: Tensor = torch.fft.irfft2(torch.roll(whole, -reach, -2), s=image.shape[-2:])
    return found.clamp(0, 1)


def foreign(image: Tensor, bank: Tensor) -> Tensor:
    """Images (B, 3, S, S) in 0..1 in styles between their own and one of the bank's, (N, 3, 2 reach + 1, reach + 1).

    Which one, and how much of it, comes from torch's generator, which each round seeds.
    """
    which = torch.randint(len(bank), (len(image),), device=image.device)
    return restyled(image, bank[which], torch.rand(len(image), 1, 1, 1, device=image.device))
