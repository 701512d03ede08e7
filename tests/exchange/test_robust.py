"""The server's rules on updates that lie. Right values come from the dense products, or from honest sites alone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pfedsam.config import Config, ServerConfig
from pfedsam.errors import UserFault
from pfedsam.exchange.accept import require_near
from pfedsam.exchange.aggregate import apply, far
from pfedsam.exchange.bounded import clipped, fair, shares, sizes_of
from pfedsam.exchange.change import Layer, cosine
from pfedsam.exchange.robust import RULES
from pfedsam.exchange.schema import schema_of
from pfedsam.exchange.server import Contribution, ServerState, mean
from pfedsam.settings import from_dict

Update = dict[str, Tensor]
A, B, REST = "x.lora.a.weight", "x.lora.b.weight", "decoder.weight"
RANK, IN, OUT = 2, 6, 5


def sent() -> Update:
    draw = torch.Generator().manual_seed(0)
    return {
        A: torch.randn(RANK, IN, generator=draw),
        B: 0.1 * torch.randn(OUT, RANK, generator=draw),
        REST: torch.randn(7, generator=draw),
    }


def honest(seed: int, like: int = 0) -> Update:
    """An update of a small common direction and a smaller one of the site's own."""
    common, own = torch.Generator().manual_seed(100 + like), torch.Generator().manual_seed(1000 + seed)
    return {
        name: 0.01 * torch.randn(t.shape, generator=common) + 0.003 * torch.randn(t.shape, generator=own)
        for name, t in sent().items()
    }


def given(*updates: Update, samples: tuple[int, ...] = ()) -> dict[str, Contribution]:
    counts = samples or (10,) * len(updates)
    return {
        f"site-{n}": Contribution(count, lambda update=update: update)
        for n, (update, count) in enumerate(zip(updates, counts, strict=True))
    }


def config(rule: str, **more: float) -> Config:
    return replace(from_dict({"method": "fedavg"}), server=replace(ServerConfig(), rule=rule, **more))


def round_of(state: ServerState, contributions: dict[str, Contribution], rule: str, *, of: int = 0) -> ServerState:
    """The state after a round in a run of `of` sites."""
    names = [f"site-{n}" for n in range(of)]
    return apply(mean, state, contributions, config=config(rule), down=schema_of(sent()), sites=names)


def after(rule: str, contributions: dict[str, Contribution], **more: float) -> Update:
    state = ServerState(sent())
    return apply(mean, state, contributions, config=config(rule, **more), down=schema_of(sent())).shared


def product(shared: Update) -> Tensor:
    return shared[B].double() @ shared[A].double()


def apart(one: Update, other: Update) -> float:
    """How far two models are apart, in the product and the rest, in units of an honest update."""
    gap = (product(one) - product(other)).norm() + (one[REST].double() - other[REST].double()).norm()
    moved = {name: tensor + honest(0)[name] for name, tensor in sent().items()}
    return float(gap / ((product(moved) - product(sent())).norm() + honest(0)[REST].double().norm()))


HIDE = 1e4
HARM: dict[str, Callable[[Update], Update]] = {
    "sign flip x1": lambda u: {n: -t for n, t in u.items()},
    "sign flip x10": lambda u: {n: -10 * t for n, t in u.items()},
    "sign flip x100": lambda u: {n: -100 * t for n, t in u.items()},
    "noise x100": lambda u: {n: 100 * t.norm() * torch.randn(t.shape) / t.numel() ** 0.5 for n, t in u.items()},
    "largest values": lambda u: {n: torch.full_like(t, 3e37) for n, t in u.items()},
    "scale hidden in the factors": lambda u: (
        u | {A: sent()[A] * (HIDE - 1), B: sent()[B] * (1 / HIDE - 1)}  # the same product from far larger factors
    ),
    "scale hidden the other way": lambda u: u | {A: sent()[A] * (1 / HIDE - 1), B: sent()[B] * (HIDE - 1)},
    "all in one tensor": lambda u: u | {REST: 1e3 * u[REST]},
}
SCALED = [name for name in HARM if name != "sign flip x1"]


def test_inner_products_of_changes_are_those_of_the_dense_products() -> None:
    start = sent()
    layers = [
        Layer((start[A].double(), start[B].double()), tuple((start[n] + honest(seed)[n]).double() for n in (A, B)))
        for seed in (1, 2)
    ]
    dense = [layer.now[1] @ layer.now[0] - product(start) for layer in layers]
    assert layers[0].inner(layers[1]) == pytest.approx(float((dense[0] * dense[1]).sum()), rel=1e-9)


@pytest.mark.parametrize("rule", ["clipped", *RULES])
@pytest.mark.parametrize("harm", HARM)
def test_one_of_five_hostile_moves_the_model_no_further_than_an_honest_site_could(rule: str, harm: str) -> None:
    torch.manual_seed(0)
    good = [honest(seed) for seed in range(4)]
    alone, with_one = after(rule, given(*good), hostile=0), after(rule, given(*good, HARM[harm](honest(9))))
    if rule == "product":
        if harm in SCALED and "hidden" not in harm:
            assert apart(with_one, alone) > 2  # it bounds nothing, and is not said to
        return
    assert apart(with_one, alone) < 0.75


@pytest.mark.parametrize("harm", SCALED)
def test_a_scaled_update_is_left_out_by_default_and_the_round_is_that_of_the_honest_sites(harm: str) -> None:
    torch.manual_seed(0)
    good = [honest(seed) for seed in range(4)]
    contributions = given(*good, HARM[harm](honest(9)))
    (site,) = (found := far(ServerState(sent()), contributions, config("clipped")))
    assert site == "site-4"
    assert "times as long as their median" in found[site]
    alone = after("clipped", given(*good))
    assert all(torch.equal(tensor, alone[name]) for name, tensor in after("clipped", contributions).items())


def test_no_honest_site_is_left_out_because_of_many_or_few_images() -> None:
    """A site with 10 times the images takes 10 times the steps; with AdamW one step alone is long."""
    large = {name: 8 * tensor for name, tensor in honest(9).items()}
    small = {name: 0.9 * tensor for name, tensor in honest(8).items()}
    contributions = given(*(honest(seed) for seed in range(3)), large, small, samples=(40, 40, 40, 400, 4))
    assert far(ServerState(sent()), contributions, config("clipped")) == {}


def test_half_of_the_sites_are_never_left_out_and_the_round_has_a_model() -> None:
    """Three updates, each far too long in another kind: nobody knows which is honest."""
    long = [honest(n) | {name: 1e3 * honest(n)[name]} for n, name in enumerate((A, B, REST))]
    assert far(ServerState(sent()), given(*long), config("clipped")) == {}
    assert after("clipped", given(*long)).keys() == sent().keys()


def test_one_liar_with_half_of_the_weight_is_not_the_geometric_median() -> None:
    good = [honest(0), honest(1)]
    lie = {name: -tensor for name, tensor in honest(2).items()}
    found = after("geometric", given(*good, lie, samples=(10, 10, 10_000_000)))
    assert apart(found, {name: tensor + good[0][name] for name, tensor in sent().items()}) < 0.75


def test_of_two_sites_none_is_left_out() -> None:
    contributions = given(honest(0), HARM["sign flip x100"](honest(1)))
    assert far(ServerState(sent()), contributions, config("clipped")) == {}


@pytest.mark.parametrize("harm", SCALED)
def test_the_plain_mean_is_moved_by_each_of_them(harm: str) -> None:
    torch.manual_seed(0)
    good = [honest(seed) for seed in range(4)]
    assert apart(after("mean", given(*good, HARM[harm](honest(9)))), after("mean", given(*good))) > 2


def test_a_rescaled_lora_is_the_same_site_to_the_product_mean() -> None:
    good = [honest(seed) for seed in range(3)]
    hidden = HARM["scale hidden in the factors"](honest(9))
    same = honest(9) | {A: torch.zeros(RANK, IN), B: torch.zeros(OUT, RANK)}
    assert apart(after("product", given(*good, hidden)), after("product", given(*good, same))) < 1e-3


@pytest.mark.parametrize("rule", ["mean", "clipped", *RULES])
def test_sites_that_agree_get_their_model(rule: str) -> None:
    model = {name: tensor + honest(3)[name] for name, tensor in sent().items()}
    assert apart(after(rule, given(*[honest(3)] * 5)), model) < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_before_anything_is_learned_a_stays_so_that_there_is_a_gradient(rule: str) -> None:
    start = sent() | {B: torch.zeros(OUT, RANK)}
    nothing = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    state = ServerState(start)
    shared = apply(mean, state, given(*[nothing] * 5), config=config(rule), down=schema_of(start)).shared
    assert torch.equal(shared[A], start[A])
    assert not shared[B].any()


def test_the_product_mean_is_the_nearest_of_lora_s_rank_to_the_dense_mean() -> None:
    updates, samples = [honest(seed) for seed in range(3)], (10, 20, 30)
    dense = sum(
        n / 60 * product({k: t + update[k] for k, t in sent().items()})
        for n, update in zip(samples, updates, strict=True)
    )
    u, s, v = torch.linalg.svd(dense)
    best = (u[:, :RANK] * s[:RANK]) @ v[:RANK]
    found = after("product", given(*updates, samples=samples), most_share=3.0)
    assert torch.allclose(product(found), best, atol=1e-6)


@pytest.mark.parametrize(("rule", "least"), [("krum", 5), ("geometric", 3), ("trimmed", 3), ("median", 3)])
def test_a_rule_with_too_few_sites_says_how_many_it_needs(rule: str, least: int) -> None:
    with pytest.raises(UserFault, match=rf"at least {least} sites for server.rule {rule}"):
        after(rule, given(*[honest(seed) for seed in range(least - 1)]))
    after(rule, given(*[honest(seed) for seed in range(least)]))


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_in_place_of_a_method_s_own_is_refused_when_the_job_is_read(rule: str) -> None:
    with pytest.raises(UserFault, match="a rule of its own"):
        from_dict({"method": "scaffold", "server": {"rule": rule}})
    with pytest.raises(UserFault, match="fca, which sends only some of LoRA's directions"):  # the rule turns them
        from_dict({"method": "fca", "server": {"rule": rule}})


@pytest.mark.parametrize(
    ("samples", "most", "shares"),
    [
        ((10, 10, 10), 1.5, (1 / 3, 1 / 3, 1 / 3)),
        ((1000, 10, 10), 1.5, (0.5, 0.25, 0.25)),
        ((10_000_000, 30, 10), 1.5, (0.5, 0.375, 0.125)),
        ((10_000_000, 10, 10, 10, 10), 1.5, (0.3, 0.175, 0.175, 0.175, 0.175)),
        ((1000, 1000, 10, 10), 1.2, (0.3, 0.3, 0.2, 0.2)),
        ((1000, 10, 10), 1.0, (1 / 3, 1 / 3, 1 / 3)),
        ((1000, 10), 1.5, (1000 / 1010, 10 / 1010)),
        ((1000, 10, 10), 3.0, (1000 / 1020, 10 / 1020, 10 / 1020)),
    ],
)
def test_no_site_has_more_than_its_share_of_three_or_more(
    samples: tuple[int, ...], most: float, shares: tuple[float, ...]
) -> None:
    capped = fair(given(*[honest(0)] * len(samples), samples=samples), most)
    total = sum(one.samples for one in capped.values())
    assert [one.samples / total for one in capped.values()] == pytest.approx(list(shares))


def test_two_sites_are_not_clipped_and_equal_ones_are_left_as_they_are() -> None:
    state = ServerState(sent())
    two = given(honest(1), HARM["sign flip x100"](honest(2)))
    assert clipped(state, two, sizes_of(state, two)) is two
    five = given(*[honest(3)] * 5)
    assert all(
        torch.equal(one.update[REST], honest(3)[REST]) for one in clipped(state, five, sizes_of(state, five)).values()
    )


def test_sites_without_any_weight_share_what_a_capped_one_leaves() -> None:
    assert shares({"a": 1.0, "b": 0.0, "c": 0.0}, most=1.5) == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.25})
    assert shares({"a": 0.0, "b": 0.0}, most=1.5) == {"a": 0.5, "b": 0.5}


def moved(state: ServerState) -> float:
    """How far a model is from the one that was sent, in units of an honest update."""
    return apart(state.shared, sent())


LIE, MANY = HARM["sign flip x100"](honest(9)), 10_000_000


def test_one_of_two_answers_in_a_run_of_three_owns_nothing() -> None:
    """The first round has no earlier lengths: the shorter of two counts. A later one has those of its last round."""
    two = given(honest(0), LIE, samples=(10, MANY))
    first = round_of(ServerState(sent()), two, "clipped", of=3)
    assert moved(first) < 1
    whole = round_of(ServerState(sent()), given(*map(honest, range(3))), "clipped", of=3)
    long = {name: 5 * tensor for name, tensor in honest(0).items()}
    later = ServerState(sent(), sites=whole.sites, usual=whole.usual)
    both = given(long, LIE, samples=(10, MANY))
    assert moved(round_of(later, both, "clipped")) < 1
    assert moved(round_of(later, both, "mean")) > 10  # no lengths are bounded there
    assert round_of(later, both, "clipped").usual == whole.usual


def test_one_of_two_that_are_left_after_another_was_left_out_has_half_of_the_weight() -> None:
    far_one = {name: 4 * tensor for name, tensor in honest(1).items()}
    flip = HARM["sign flip x1"](honest(0))
    three = given(honest(0), far_one, flip, samples=(10, 10, MANY))
    assert set(far(ServerState(sent()), three, config("clipped"))) == {"site-1"}
    assert moved(round_of(ServerState(sent()), three, "clipped")) < 0.1  # the flip takes back the honest step


def test_no_number_of_samples_explains_an_update_a_hundred_times_as_long() -> None:
    contributions = given(*map(honest, range(4)), LIE, samples=(10, 10, 10, 10, MANY))
    assert set(far(ServerState(sent()), contributions, config("clipped"))) == {"site-4"}


def test_two_sites_of_a_run_of_two_weigh_by_their_samples() -> None:
    two = given(honest(0), honest(1), samples=(30, 10))
    kept = round_of(ServerState(sent()), two, "clipped", of=2)
    plain = round_of(ServerState(sent()), two, "mean", of=2)
    assert all(torch.equal(kept.shared[name], plain.shared[name]) for name in sent())
    assert (kept.sites, kept.usual) == (2, {})


def test_a_site_that_never_trains_does_not_make_a_run_of_three() -> None:
    never = replace(config("clipped"), every={"site-2": 0})
    names = ["site-0", "site-1", "site-2"]
    two = given(honest(0), honest(1))
    assert apply(mean, ServerState(sent()), two, config=never, down=schema_of(sent()), sites=names).sites == 2


@pytest.mark.parametrize("begun", [0.0, 0.1])
@pytest.mark.parametrize("rule", RULES)
def test_lora_s_ends_stay_where_they_were_so_that_sites_can_tell_the_next_model_from_another(
    rule: str, begun: float
) -> None:
    """One product has many factors. With any of them, each site refused the model after the first round."""
    state = ServerState(sent() | {B: 10 * begun * sent()[B]})
    for number in range(3):
        updates = [honest(10 * number + site) for site in range(5)]
        after_it = apply(mean, state, given(*updates), config=config(rule), down=schema_of(sent())).shared
        require_near(after_it, state.shared, 1, {}, ends=(A[1:],) if begun == number == 0 else (A[1:], B[1:]))
        assert cosine({A: after_it[A]}, {A: state.shared[A]}) > 0.5
        state = ServerState(after_it)
