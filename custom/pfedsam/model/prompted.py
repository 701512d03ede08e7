"""SAM's answer to prompts: a box, points and a coarse mask, for one object in each image."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from pfedsam.model.decoder import PromptFreeDecoder
from pfedsam.model.segmenter import Segmenter


@dataclass(frozen=True)
class Prompt:
    """What SAM is told of one object in each of B images. Positions are x and y in pixels of the model's input.

    Attributes:
        points: (B, N, 2).
        signs: (B, N): 1 for a point inside the object, 0 outside.
        box: (B, 4): left, top, right, bottom.
        mask: (B, 1, h, h) of logits, of any size.
    """

    points: Tensor
    signs: Tensor
    box: Tensor
    mask: Tensor


def answer(branch: Segmenter, prompts: PromptEncoder, embedding: Tensor, prompt: Prompt) -> Tensor:
    """SAM's logits for the prompted objects, (B, 1, 4H, 4W), as segment-anything gives them for a single mask.

    Args:
        branch: with SAM's decoder as published.
        embedding: of the frozen encoder as published, (B, C, H, W).
    """
    size = [4 * side for side in embedding.shape[-2:]]
    mask = F.interpolate(prompt.mask, size=size, mode="bilinear", align_corners=False)
    tokens, dense = prompts((prompt.points, prompt.signs), prompt.box, mask)
    return cast(PromptFreeDecoder, branch.decoder).masks(embedding + dense, tokens)[:, :1]


def prompt_of(coarse: Tensor, size: int) -> tuple[Prompt, Tensor]:
    """What a coarse mask tells SAM: its box, its surest point inside and outside, and the mask itself.

    Args:
        coarse: logits of one object, (B, h, h). Above 0 is inside.
        size: the side of the model's input in pixels.

    Returns:
        The prompt, and whether the coarse mask has a pixel at all, (B,) of bool.
    """
    side, inside = coarse.shape[-1], coarse > 0
    pixel = size / side
    edges = [_edges(inside.any(axis)) for axis in (1, 2)]  # along x, along y
    low = torch.stack([first for first, _ in edges], 1) * pixel
    high = torch.stack([last + 1 for _, last in edges], 1) * pixel - 1
    flat = coarse.flatten(1)
    surest = torch.stack([flat.argmax(1), flat.argmin(1)], 1)
    points = (torch.stack([surest % side, surest // side], 2) + 0.5) * pixel - 0.5
    signs = torch.tensor([1.0, 0.0], device=coarse.device).expand(len(coarse), -1)
    return Prompt(points, signs, torch.cat([low, high], 1), coarse[:, None]), inside.flatten(1).any(1)


def _edges(lines: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last true place of each row of (B, h)."""
    marked = lines.float()
    return marked.argmax(1), lines.shape[1] - 1 - marked.flip(1).argmax(1)
