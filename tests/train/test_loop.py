"""Which views a round trains on."""

from pathlib import Path

import pytest

from conftest import tiny
from pfedsam.data.dataset import PLAIN, View
from pfedsam.layout import Places
from pfedsam.model.moe import statistics
from pfedsam.model.partition import DECODER, Kind, Part, kinds
from pfedsam.site import Site
from pfedsam.study import initial_shared
from pfedsam.train.loop import ahead, make_optimisers, views_of


def numbers(hospital: Path, tmp_path: Path, **train: object) -> list[int]:
    """The view's number in each of the six epochs of three rounds."""
    config = tiny(train={"epochs": 2, "max_steps": None, "batch_size": 4, **train})
    data = Site("site-1", config, Places(hospital, tmp_path)).data["train"]
    steps = [step for round_ in range(3) for step in views_of(data, config.train, 7, round_, 4)]
    epochs = [first + second for first, second in zip(steps[::2], steps[1::2], strict=True)]
    assert all(sorted(view.slice for view in epoch) == list(range(6)) for epoch in epochs)
    return [epoch[0].number for epoch in epochs]


def test_every_epoch_draws_a_view_of_its_own(hospital: Path, tmp_path: Path) -> None:
    assert numbers(hospital, tmp_path) == [0, 1, 2, 3, 4, 5]


def test_a_few_views_take_turns(hospital: Path, tmp_path: Path) -> None:
    assert numbers(hospital, tmp_path, views=2) == [0, 1, 0, 1, 0, 1]


def test_without_augmentation_every_view_is_the_image_itself(hospital: Path, tmp_path: Path) -> None:
    assert numbers(hospital, tmp_path, augment=False) == [PLAIN] * 6


def test_the_order_is_another_each_epoch_and_the_same_for_the_same_round(hospital: Path, tmp_path: Path) -> None:
    config = tiny(train={"epochs": 2, "max_steps": None})
    data = Site("site-1", config, Places(hospital, tmp_path)).data["train"]
    first, again, later = (list(views_of(data, config.train, 7, round_, 4)) for round_ in (0, 0, 1))
    assert first == again
    assert first != later
    assert isinstance(first[0][0], View)


def test_the_decoder_s_rate_is_its_own_in_both_parts(open_site) -> None:
    site = open_site(tiny(train={"lr": 1e-3, "lr_private": 1e-2, "lr_decoder": 1e-5}))
    rates = {
        id(p): group["lr"]
        for optimiser in make_optimisers(site.model, site.part, site.config.train).values()
        for group in optimiser.param_groups
        for p in group["params"]
    }
    tensors, kind, followed = dict(site.model.named_parameters()), kinds(site.model), statistics(site.model)
    assert followed  # weight decay would move them
    for name, of in site.part.parts.items():
        still = of is Part.FROZEN or id(tensors[name]) in followed
        expected = None if still else 1e-3 if of is Part.SHARED else 1e-2
        assert rates.get(id(tensors[name])) == (1e-5 if expected and kind[name] in DECODER else expected)


def test_the_decoder_s_lora_has_the_rate_of_its_part_and_what_is_not_linear_the_decoder_s(open_site) -> None:
    site = open_site(tiny(method="fedavg", model={"decoder": "lora"}, train={"lr": 1e-3, "lr_decoder": 1e-5}))
    (optimiser,) = make_optimisers(site.model, site.part, site.config.train).values()
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    tensors, kind = dict(site.model.named_parameters()), kinds(site.model)
    found = {kind[name]: rates[id(tensors[name])] for name in site.part.names(Part.SHARED)}
    assert (found[Kind.DECODER_LORA_A], found[Kind.DECODER_LORA_B]) == (1e-3, 1e-3)
    assert {found[one] for one in DECODER & found.keys()} == {1e-5}


@pytest.mark.parametrize(
    ("method", "steps", "warmup", "length"),
    [
        ("fedavg", 8, 0, 1e-2),
        ("fedavg", 8, 4, 2.5e-3),
        ("fedavg", 4, 10, 5e-3),  # a short round: half of it
        ("fedrep", 8, 2, 5e-3),  # its LoRA is trained in the second half alone
        ("fedrep", 8, 10, 5e-3),  # and has half of that half to rise in
    ],
)
def test_an_optimiser_s_first_step_is_as_long_as_the_rate_has_risen(
    open_site, method: str, steps: int, warmup: int, length: float
) -> None:
    train = {"lr": 1e-2, "warmup": warmup, "epochs": 8, "max_steps": steps}
    config = tiny(train=train, method=method)
    site = open_site(config)
    site.receive(initial_shared(config)[0])
    tensors = [tensor for name, tensor in site.model.named_parameters() if name.endswith("lora.b.weight")]

    def moved() -> float:
        return max(tensor.abs().max().item() for tensor in tensors)

    assert moved() == 0
    site.train(0, 2, stop=lambda: moved() > 0)
    assert moved() == pytest.approx(length, rel=1e-3)


def test_batches_read_ahead_are_those_read_in_turn_and_a_fault_is_raised_in_its_turn() -> None:
    made = []

    def read(views: list[View]) -> int:
        made.append(views[0].slice)
        if views[0].slice == 3:
            raise OSError("a file is gone")
        return views[0].slice

    order = iter([[View(i)] for i in range(5)])
    coming = ahead(read, order)
    assert [next(coming), next(coming)] == [0, 1]
    assert next(coming) == 2
    with pytest.raises(OSError, match="gone"):
        next(coming)
    assert made == [0, 1, 2, 3]
