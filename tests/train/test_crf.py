"""The gated CRF term against its definition, pixel by pixel."""

import math

import pytest
import torch

from pfedsam.train import crf


def slow(found: torch.Tensor, colour: torch.Tensor, gate: torch.Tensor, *, exclusive: bool) -> float:
    """Every ordered pair of pixels of every image: what the second is unlike the first, if the first takes energy."""
    total, (images, _, height, width) = 0.0, found.shape
    for b in range(images):
        for i in range(height * width):
            for j in range(height * width):
                (r, c), (s, d) = divmod(i, width), divmod(j, width)
                if i == j or max(abs(r - s), abs(c - d)) > crf.REACH:
                    continue
                near = ((r - s) ** 2 + (c - d) ** 2) / (2 * crf.NEAR**2)
                alike = float((colour[b, :, r, c] - colour[b, :, s, d]).square().sum()) / (2 * crf.ALIKE**2)
                p, q = found[b, :, r, c], found[b, :, s, d]
                unlike = 1 - p @ q if exclusive else (p * (1 - q) + q * (1 - p)).mean()
                total += math.exp(-near - alike) * float(unlike) * float(gate[b, 0, r, c])
    return total / (images * height * width)


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_term_is_the_energy_of_all_pairs_that_are_near(exclusive: bool) -> None:
    logits, colour = torch.randn(2, 3, 6, 6), 0.2 * torch.rand(2, 3, 6, 6)
    gate = (torch.rand(2, 1, 6, 6) > 0.4).float()
    found = logits.softmax(1) if exclusive else logits.sigmoid()
    term = crf.gated_crf(logits, colour, gate, exclusive=exclusive).item()
    assert term == pytest.approx(slow(found, colour, gate, exclusive=exclusive), rel=1e-4)
    every = crf.gated_crf(logits, colour, torch.ones_like(gate), exclusive=exclusive).item()
    assert every == pytest.approx(slow(found, colour, torch.ones_like(gate), exclusive=exclusive), rel=1e-4)


def test_the_term_spreads_a_label_over_what_looks_alike_and_stops_at_an_edge() -> None:
    colour = torch.zeros(1, 3, 8, 8)
    colour[..., 4:] = 1.0
    logits = torch.zeros(1, 1, 8, 8)
    logits[..., :, 0] = 4.0
    logits.requires_grad_()
    crf.gated_crf(logits, colour, torch.ones_like(colour[:, :1]), exclusive=False).backward()
    assert (logits.grad[..., 1:4] < -1e-6).all()
    assert logits.grad[..., 4:].abs().max() < 1e-6
