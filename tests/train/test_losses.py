import pytest
import torch
import torch.nn.functional as F

from conftest import tiny
from pfedsam.data.dataset import Batch
from pfedsam.train.distill import distillation, teaches
from pfedsam.train.losses import one_hot, segmentation_loss


def test_cross_entropy_of_a_sigmoid_head_is_the_literal_sum() -> None:
    logits, label = torch.randn(2, 2, 4, 4), torch.randint(0, 3, (2, 4, 4))
    slow = []
    for z, y in zip(logits, label, strict=True):
        for c in (0, 1):
            for p, t in zip(z[c].flatten().sigmoid(), y.flatten() == c + 1, strict=True):
                slow.append(-(2 * p.log() if t else (1 - p).log()))
    train = tiny(train={"dice_weight": 0, "pos_weight": 2}).train
    assert segmentation_loss(logits, Batch(logits, label), train).item() == pytest.approx(
        torch.stack(slow).mean().item(), abs=1e-5
    )


def test_cross_entropy_of_exclusive_classes_is_torch_s() -> None:
    logits, label = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    config = tiny(model={"exclusive": True, "num_classes": 2}, train={"loss": "ce", "dice_weight": 0})
    assert torch.allclose(segmentation_loss(logits, Batch(logits, label), config.train), F.cross_entropy(logits, label))


def test_a_perfect_answer_costs_next_to_nothing_and_dice_counts() -> None:
    label = torch.zeros(1, 16, 16, dtype=torch.long)
    label[:, 4:9, 4:9] = 1
    right = (label[:, None].float() - 0.5) * 40
    assert segmentation_loss(right, Batch(right, label), tiny().train) < 1e-3
    with_dice, without = (
        segmentation_loss(-right, Batch(right, label), tiny(train={"dice_weight": w}).train) for w in (1, 0)
    )
    assert with_dice.item() == pytest.approx(without.item() + 1, abs=1e-3)


@pytest.mark.parametrize("exclusive", [False, True])
def test_pixels_that_nobody_labelled_cost_nothing_and_teach_nothing(exclusive: bool) -> None:
    """The loss of a half-labelled batch is that of the labelled half alone."""
    train = {"loss": "ce" if exclusive else "bce"}
    config = tiny(model={"exclusive": exclusive, "num_classes": 2}, train=train).train
    logits, label = torch.randn(2, 3 if exclusive else 2, 8, 8, requires_grad=True), torch.randint(0, 3, (2, 8, 8))
    half = label.clone()
    half[:, :4] = 255
    loss = segmentation_loss(logits, Batch(logits, half, ignores=True), config)
    loss.backward()
    assert not logits.grad[:, :, :4].any()
    assert logits.grad[:, :, 4:].all()
    known = logits.detach()[:, :, 4:], label[:, 4:]
    alone = [torch.cat([part, part], 2 if part.dim() == 4 else 1) for part in known]  # square, and of the same means
    square = segmentation_loss(alone[0], Batch(*alone), config)
    assert loss.item() == pytest.approx(square.item(), rel=1e-4)


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_batch_without_a_labelled_pixel_teaches_nothing(exclusive: bool) -> None:
    train = {"loss": "ce" if exclusive else "bce"}
    config = tiny(model={"exclusive": exclusive, "num_classes": 2}, train=train).train
    logits = torch.randn(1, 3 if exclusive else 2, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, Batch(logits, torch.full((1, 4, 4), 255), ignores=True), config)
    loss.backward()
    assert loss.isfinite()
    assert not logits.grad.any()


def test_one_hot_counts_the_background_only_where_asked() -> None:
    label = torch.tensor([[[0, 1, 2]]])
    assert one_hot(label, 2, background=False)[0, :, 0].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert one_hot(label, 3, background=True)[0, :, 0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_torch_s_kl_divergence(temperature: float) -> None:
    s, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    p, q = (t / temperature).softmax(1), (s / temperature).log_softmax(1)
    exclusive = temperature**2 * F.kl_div(q, p, reduction="none").sum(1).mean()
    assert torch.allclose(distillation(s, t, temperature, exclusive=True), exclusive, atol=1e-5)
    pair = [torch.stack([z / temperature, torch.zeros_like(z)]) for z in (s, t)]
    bernoulli = temperature**2 * F.kl_div(pair[0].log_softmax(0), pair[1].softmax(0), reduction="none").sum(0).mean()
    assert torch.allclose(distillation(s, t, temperature, exclusive=False), bernoulli, atol=1e-5)


def test_the_teacher_learns_nothing_and_agreement_costs_nothing() -> None:
    s, t = torch.randn(2, 1, 4, 4, requires_grad=True), torch.randn(2, 1, 4, 4, requires_grad=True)
    distillation(s, t, 1.0, exclusive=False).backward()
    assert s.grad.abs().sum() > 0
    assert t.grad is None
    assert distillation(t, t, 1.0, exclusive=False).item() == pytest.approx(0, abs=1e-7)


def test_each_direction_teaches_whom_it_names() -> None:
    pairs = {("global", "personal"), ("personal", "global")}
    taught = {d: {p for p in pairs if teaches(*p, d)} for d in ("none", "mutual", "global_to_personal")}
    assert taught == {"none": set(), "mutual": pairs, "global_to_personal": {("global", "personal")}}


def test_a_class_that_is_not_annotated_costs_nothing_and_teaches_nothing() -> None:
    logits, label = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randint(0, 4, (2, 8, 8))
    train = tiny(model={"num_classes": 3}).train
    partial = segmentation_loss(logits, Batch(logits, label, annotated=[0, 2]), train)
    partial.backward()
    assert logits.grad is not None
    assert not logits.grad[:, 1].any()
    assert logits.grad[:, [0, 2]].any()
    two = label.clone()
    two[label == 2], two[label == 3] = 0, 2
    assert partial.item() == pytest.approx(segmentation_loss(logits[:, [0, 2]], Batch(logits, two), train).item())
