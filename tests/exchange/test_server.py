import itertools

import pytest
import torch

from pfedsam.exchange import server
from pfedsam.exchange.schema import EXTRA, Spec
from pfedsam.exchange.server import Contribution, ServerState, mean, unflat, weighted
from pfedsam.settings import from_dict
from pfedsam.tensors import Tensors, pack, unpack

SHAPES = {"w": (7, 5), "b": (3,)}


def given(tensors: Tensors, samples: int = 1, **more: Tensors) -> Contribution:
    return Contribution(samples, lambda: tensors, **more)


def contributions(count: int) -> dict[str, Contribution]:
    drawn = [{name: torch.randn(shape) for name, shape in SHAPES.items()} for _ in range(count)]
    return {f"site-{i}": given(tensors, 3 * i + 1) for i, tensors in enumerate(drawn)}


def state() -> ServerState:
    return ServerState({name: torch.randn(shape) for name, shape in SHAPES.items()})


def test_the_mean_is_weighted_by_samples() -> None:
    before, each = state(), contributions(3)
    after, total = mean(before, each, from_dict({})), sum(one.samples for one in each.values())
    for name in SHAPES:
        slow = before.shared[name] + sum(one.update[name] * one.samples / total for one in each.values())
        assert torch.allclose(after.shared[name], slow, atol=1e-6)
        assert after.shared[name].dtype == torch.float32


def test_every_order_of_arrival_gives_the_same_bits() -> None:
    before, each = state(), contributions(4)
    first = mean(before, each, from_dict({})).shared
    for order in itertools.permutations(each):
        again = mean(before, {site: each[site] for site in order}, from_dict({})).shared
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_no_contribution_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean(state(), {}, from_dict({}))


def test_nothing_shared_means_nothing() -> None:
    assert mean(ServerState({}), {"a": given({}, 3), "b": given({}, 1)}, from_dict({})).shared == {}


def test_a_weighted_sum_changes_none_of_its_parts() -> None:
    part = {"w": torch.ones(2, dtype=torch.float64)}
    assert weighted({"a": 0.5}, lambda _: part)["w"].tolist() == [0.5, 0.5]
    assert part["w"].tolist() == [1.0, 1.0]


def test_a_state_comes_whole_out_of_its_flat_form() -> None:
    whole = ServerState({"a.b": torch.ones(1)}, {"v": torch.zeros(2)}, {"site-1": {"a.b": torch.full((1,), 3.0)}})
    again = unflat(whole.flat())
    assert again.shared.keys() == {"a.b"}
    assert again.memory.keys() == {"v"}
    assert again.model_of("site-1")["a.b"].item() == 3.0
    assert again.model_of("site-2")["a.b"].item() == 1.0


def test_extras_travel_exactly_in_every_number_format() -> None:
    config = from_dict({"wire": {"up": "int4", "down": "int8"}})
    kinds = {"w": Spec((7, 5), torch.float32), EXTRA + "c": Spec((100,), torch.float32, most=9)}
    begun = server.begin_state({"w": torch.randn(7, 5)}, kinds)
    assert begun.memory["c"].tolist() == [0.0] * 100
    begun.memory["c"].copy_(torch.randn(100))
    wire = server.message(begun, "a", config, kinds)
    assert wire["w"].dtype == torch.uint8
    assert torch.equal(wire[EXTRA + "c"], begun.memory["c"])
    up = server.contribution({**wire, "w": torch.zeros(2 + 18, dtype=torch.uint8)}, 2, {}, config=config, up=kinds)
    assert torch.equal(up.extras["c"], begun.memory["c"])
    assert up.update.keys() == {"w"}


def test_a_state_whose_tensors_are_one_in_memory_can_be_a_checkpoint() -> None:
    one = torch.ones(2)
    state = ServerState({"w": one}, {"core": one}, {"a": {"w": one}, "b": {"w": one}})
    again = unflat(unpack(pack(state.flat(), {}))[0])
    assert again.models.keys() == {"a", "b"}
    assert torch.equal(again.model_of("b")["w"], again.memory["core"])
