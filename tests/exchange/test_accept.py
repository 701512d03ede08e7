"""A site trains on no model that training cannot have made of the last one, and on every one that it can."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pfedsam.errors import Diverged, UserFault
from pfedsam.exchange.accept import accept, judge, note_moved
from pfedsam.exchange.store import Moment, SiteStore
from pfedsam.tensors import Tensors


def model() -> Tensors:
    draw = torch.Generator().manual_seed(0)
    return {
        "encoder.x.lora.a.weight": torch.randn(4, 30, generator=draw),
        "encoder.x.lora.b.weight": torch.zeros(20, 4),
        "decoder.weight": torch.randn(50, generator=draw),
    }


def moved(by: float, seed: int = 1) -> Tensors:
    """The model after a step of `by` times its norm, in LoRA and in the rest."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for end in ("lora", "decoder"):
        part = {name: tensor for name, tensor in model().items() if end in name}
        step = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in part.items()}
        size = [sum(float(t.square().sum()) for t in of.values()) ** 0.5 for of in (part, step)]
        found |= {name: tensor + by * size[0] / size[1] * step[name] for name, tensor in part.items()}
    return found


HARMFUL: dict[str, Callable[[Tensors], Tensors]] = {
    "signs turned round": lambda m: {name: -tensor for name, tensor in m.items()},
    "zeros": lambda m: {name: torch.zeros_like(tensor) for name, tensor in m.items()},
    "noise": lambda m: {name: torch.randn(tensor.shape) for name, tensor in m.items()},
    "ten times as large": lambda m: {name: 10 * tensor for name, tensor in m.items()},
    "LoRA ten times as large": lambda m: {n: (10 if "lora" in n else 1) * t for n, t in m.items()},
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_model_that_is_no_next_one_is_refused_and_the_last_stays_the_measure(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    store = SiteStore(tmp_path, "study", "site")
    accept(store, model(), Moment("run", 0))
    for _ in range(2):
        with pytest.raises(UserFault, match="a model near the last one"):
            accept(store, HARMFUL[kind](model()), Moment("run", 1))
    accept(store, moved(0.4), Moment("run", 1))
    accept(store, HARMFUL[kind](model()), Moment("another", 1))  # nothing is known of that run yet


@pytest.mark.parametrize("number", [torch.float64, torch.float16])
def test_a_model_in_another_number_format_is_no_next_one_either(tmp_path: Path, number: torch.dtype) -> None:
    """What is sent as float32 is decoded as it came. Once such a model was not compared with the last one."""
    store = SiteStore(tmp_path, "study", "site")
    accept(store, model(), Moment("run", 0))
    for other in ({name: -100 * tensor.to(number) for name, tensor in model().items()}, {}):
        with pytest.raises(Diverged, match="tensors of the same names, shapes and number formats; came others"):
            accept(store, other, Moment("run", 1))
    assert store.accepted("run") is not None
    accept(store, moved(0.4), Moment("run", 1))


def of_lora(end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: change(t) if f"lora.{end}" in n else t for n, t in tensors.items()}


@pytest.mark.parametrize("end", ["a", "b", ""])
@pytest.mark.parametrize("rounds", [1, 2, 1000])
@pytest.mark.parametrize("kind", ["zeros", "signs turned round", "noise of the same length"])
def test_a_lora_that_does_not_go_on_is_refused_after_any_number_of_rounds(
    tmp_path: Path, kind: str, end: str, rounds: int
) -> None:
    """The message itself states the number of rounds."""
    draw = torch.Generator().manual_seed(2)
    large = {"x.lora.a.weight": torch.randn(4, 9000, generator=draw), "head": torch.randn(50, generator=draw)}
    last = {**large, "x.lora.b.weight": 0.3 * torch.randn(9000, 4, generator=draw)}
    noise = torch.randn(4, 9000, generator=draw)
    change = {
        "zeros": torch.zeros_like,
        "signs turned round": torch.neg,
        "noise of the same length": lambda t: noise.reshape(t.shape) * t.norm() / noise.norm(),
    }[kind]
    store = SiteStore(tmp_path, "study", "site")
    accept(store, last, Moment("run", 0))
    with pytest.raises(Diverged, match="a model near the last one: LoRA"):
        judge(store, of_lora(end, change)(last), Moment("run", rounds))
    judge(
        store,
        of_lora(end, lambda t: t + 1.2 * noise.reshape(t.shape) * t.norm() / noise.norm())(last),
        Moment("run", 1),
    )


def test_noise_that_is_longer_than_the_model_is_no_sign_of_a_lie(tmp_path: Path) -> None:
    """As with privacy.unit site: the site's own update is then as long, so it knows."""
    store = SiteStore(tmp_path, "study", "site")
    accept(store, model(), Moment("run", 0))
    note_moved(store, {name: tensor - model()[name] for name, tensor in moved(5, seed=2).items()}, "run")
    accept(store, moved(4), Moment("run", 1))


def test_what_rounds_of_training_move_is_accepted_and_missed_rounds_count(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    accept(store, model(), Moment("run", 0))
    accept(store, moved(0.45), Moment("run", 1))
    accept(store, model(), Moment("run", 0))  # the server fell back a round
    with pytest.raises(UserFault, match="other tensors no further"):
        accept(store, moved(0.8), Moment("run", 1))
    accept(store, moved(0.8), Moment("run", 2))


def test_after_missed_rounds_a_model_may_be_as_far_as_this_site_s_updates_if_it_keeps_its_direction(
    tmp_path: Path,
) -> None:
    """Sites without LoRA in the decoder that missed six rounds were refused, and then in every later round."""
    head = {"decoder.weight": torch.ones(50)}
    store = SiteStore(tmp_path, "study", "site")
    accept(store, head, Moment("run", 0))
    note_moved(store, {"decoder.weight": torch.full((50,), 0.5)}, "run")
    aside = torch.cat([torch.full((25,), 2.5), torch.full((25,), -0.5)])  # 1.5 norms away, with a cosine of 0.55
    judge(store, {"decoder.weight": aside}, Moment("run", 4))
    with pytest.raises(Diverged, match=r"other tensors no further than 7\.07"):
        judge(store, {"decoder.weight": aside}, Moment("run", 2))
    for harmful in (torch.zeros(50), -torch.ones(50), torch.cat([torch.full((25,), 1.5), torch.full((25,), -1.5)])):
        with pytest.raises(Diverged, match="other tensors turned by less"):
            judge(store, {"decoder.weight": harmful}, Moment("run", 8))


def test_at_a_high_rate_a_first_round_moves_further_and_the_site_s_own_update_is_the_measure(tmp_path: Path) -> None:
    """Three hospitals' LoRA moved by 1.9 norms in the first round at the rate of a shipped job."""

    def lora_moved(by: float, seed: int = 1) -> Tensors:
        return moved(by, seed) | {"decoder.weight": moved(0.2, seed)["decoder.weight"]}

    store = SiteStore(tmp_path, "study", "site")
    accept(store, model(), Moment("run", 0))
    with pytest.raises(UserFault, match="LoRA no further"):
        accept(store, lora_moved(1.9), Moment("run", 1))
    note_moved(store, {name: tensor - model()[name] for name, tensor in lora_moved(1.9, seed=2).items()}, "run")
    accept(store, lora_moved(1.9), Moment("run", 1))
    with pytest.raises(UserFault, match="LoRA no further"):
        accept(store, lora_moved(6.0, seed=3), Moment("run", 2))


def test_a_lora_of_which_only_b_travels_has_no_measure_because_it_begins_at_zero(tmp_path: Path) -> None:
    store, b = SiteStore(tmp_path, "study", "site"), "encoder.x.lora.b.weight"
    accept(store, {b: torch.zeros(20, 4)}, Moment("run", 0))
    accept(store, {b: torch.ones(20, 4)}, Moment("run", 1))


def test_a_damaged_measure_is_none(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    accept(store, model(), Moment("run", 0))
    (store.folder / "accepted.run.safetensors").write_bytes(b"torn")
    accept(store, HARMFUL["noise"](model()), Moment("run", 1))
