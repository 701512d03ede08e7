"""A masked sum from its keys to its mean: with all sites, without some, and against a server or a site that lies."""

import json
from collections.abc import Collection
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import pytest
import torch

from pfedsam.config import ServerConfig
from pfedsam.errors import UserFault
from pfedsam.exchange.masked_round import MaskedRound
from pfedsam.exchange.masked_site import Identity, MaskedSite, Secret
from pfedsam.exchange.masked_sum import MaskedSum
from pfedsam.exchange.masks import steps_of
from pfedsam.exchange.roster import (
    Keys,
    keys_of,
    keys_tensors,
    least_open,
    new_attempt,
    roster_of,
    roster_tensors,
    step_fault,
    threshold,
    weights,
)
from pfedsam.exchange.schema import schema_of
from pfedsam.exchange.server import Contribution
from pfedsam.exchange.shamir import SHARE
from pfedsam.tensors import Tensors

SERVER = ServerConfig(rule="mean", secure="masks")
SAMPLES = {f"site-{i}": 10 + 40 * i for i in range(6)}


def updates(sites: Collection[str]) -> dict[str, Tensors]:
    return {site: {"a": torch.randn(3, 40) * 0.1, "b": torch.randn(70)} for site in sites}


def given(hidden: MaskedRound, sent: dict[str, Tensors]) -> dict[str, Contribution]:
    words = {site: hidden.masked(site, update) for site, update in sent.items()}
    return {site: Contribution(SAMPLES[site], lambda one=one: one) for site, one in words.items()}


def agreed(count: int) -> MaskedRound:
    return MaskedRound(new_attempt("run", 0), SERVER, dict(list(SAMPLES.items())[:count]))


CASES = [(n, lost) for n in range(3, 7) for k in range(n - threshold(n) + 1) for lost in combinations(range(n), k)]


@pytest.mark.parametrize(("count", "lost"), CASES)
def test_the_sum_is_the_weighted_mean_of_the_sites_that_are_there(count: int, lost: tuple[int, ...]) -> None:
    hidden, sent = agreed(count), updates([f"site-{i}" for i in range(count) if i not in lost])
    (found,) = hidden.opened(given(hidden, sent), schema_of(sent[min(sent)])).values()
    share = weights(hidden.sum.roster, SERVER.most_share)
    total = sum(share[site] for site in sent)
    for name, tensor in found.update.items():
        exact = sum(share[site] / total * update[name].double() for site, update in sent.items())
        assert float((tensor.double() - exact).abs().max()) <= len(sent) / 2 / steps_of(SERVER.norm) / total + 2e-7
    assert found.samples == sum(SAMPLES[site] for site in sent)


def test_more_lost_sites_than_the_shares_allow_are_refused_in_words() -> None:
    hidden, sent = agreed(5), updates(["site-0", "site-1"])
    with pytest.raises(UserFault, match="at least 3 updates in the sum; came 2"):
        hidden.opened(given(hidden, sent), schema_of(sent["site-0"]))


def test_weights_are_the_capped_shares_of_the_samples() -> None:
    roster = {site: Keys(b"", b"", samples) for site, samples in (("a", 1), ("b", 1), ("c", 98))}
    assert weights(roster, 1.5) == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5})
    assert weights(roster, 3.0) == pytest.approx({"a": 0.01, "b": 0.01, "c": 0.98})


def test_a_sum_with_its_masks_or_with_one_left_in_is_not_the_mean() -> None:
    """So the tests above cannot pass with the masks off."""
    hidden, sent = agreed(3), updates(["site-0", "site-1", "site-2"])
    words = given(hidden, sent)
    (found,) = hidden.opened(words, schema_of(sent["site-0"])).values()
    del words["site-2"]
    with pytest.raises(UserFault, match="right shares of the secret of site-2"):
        hidden.sum.contribution(words, schema_of(sent["site-0"]))
    assert float(found.update["a"].abs().max()) < 1


def members(folder: Path, count: int = 4, identity: Identity | None = None) -> dict[str, MaskedSite]:
    more = {"identity": identity} if identity else {}
    return {f"site-{i}": MaskedSite(f"site-{i}", SERVER, path=folder / f"{i}.json", **more) for i in range(count)}


def dealt(sites: dict[str, MaskedSite], attempt: str = "run/0/x") -> MaskedSum:
    found = MaskedSum(attempt, SERVER)
    for name, site in sites.items():
        found.take("keys", name, site.keys(attempt, SAMPLES[name]))
    for name, site in sites.items():
        found.take("shares", name, site.deal(attempt, found.question("shares")))
    return found


def masked(sites: dict[str, MaskedSite], found: MaskedSum) -> tuple[dict[str, Tensors], dict[str, Contribution]]:
    sent = updates(sites)
    words = {name: site.mask(found.attempt, sent[name]) for name, site in sites.items()}
    return sent, {name: Contribution(SAMPLES[name], lambda one=one: one) for name, one in words.items()}


def test_one_wrong_share_or_a_missing_one_does_not_stop_the_sum_and_too_many_do(tmp_path: Path) -> None:
    sites = members(tmp_path)
    found = dealt(sites)
    sent, words = masked(sites, found)
    schema = schema_of(sent["site-0"])
    asked = found.question("open")
    for name, site in sites.items():
        found.take("open", name, site.open(found.attempt, asked, list(sites)))
    right = dict(found.opened)
    whole = found.contribution(words, schema).update
    found.opened["site-0"] = torch.zeros_like(right["site-0"])
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.contribution(words, schema).update.items())
    del found.opened["site-0"]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.contribution(words, schema).update.items())
    found.opened["site-1"] = torch.zeros_like(right["site-1"])
    with pytest.raises(UserFault, match="3 right shares of the secret of site-0; came 3 shares that give none"):
        found.contribution(words, schema)


@pytest.mark.parametrize("count", [6, 21])
def test_a_site_whose_share_is_wrong_is_named_whatever_the_number_of_sites(
    caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """With more sites than can be tried in all ways, the first two thousand ways all had the first sites in them."""
    names = [f"site-{i:02d}" for i in range(count)]
    hidden, update = MaskedRound("run/0/x", SERVER, dict.fromkeys(names, 4)), {"a": torch.ones(5)}
    words = {name: hidden.masked(name, update) for name in names}
    given = {name: Contribution(4.0, lambda one=one: one) for name, one in words.items()}
    asked = hidden.sum.question("open")
    for name in names:
        told = hidden._sites[name].open("run/0/x", asked, names)
        wrong = {"opened": torch.zeros_like(told["opened"])} if name == "site-01" else told
        hidden.sum.take("open", name, wrong)
    mean = hidden.sum.contribution(given, schema_of(update)).update
    assert torch.allclose(mean["a"], update["a"], atol=1e-4)
    assert hidden.sum.wrong == {"site-01"}
    assert [line for line in caplog.messages if "site-01 opened a wrong share" in line]
    assert "site-00" not in caplog.text


def test_a_site_opens_no_sum_of_fewer_sites_than_hide_it(tmp_path: Path) -> None:
    """As where the noise of four sites together hides each (`privacy.sites`)."""
    sites = {f"site-{i}": MaskedSite(f"site-{i}", SERVER, path=tmp_path / f"{i}.json", least=4) for i in range(5)}
    found = dealt(sites)
    masked(sites, found)
    asked = found.question("open")
    with pytest.raises(UserFault, match="at least 4 updates in the sum; came 3"):
        sites["site-0"].open(found.attempt, asked, ["site-0", "site-1", "site-2"])
    assert sites["site-0"].open(found.attempt, asked, ["site-0", "site-1", "site-2", "site-3"])


def test_a_sum_that_no_site_would_open_is_refused_before_a_site_trains_for_it(tmp_path: Path) -> None:
    """With privacy.sites 4 and three sites connected, each job's training was paid for and lost."""
    sites = {f"site-{i}": MaskedSite(f"site-{i}", SERVER, path=tmp_path / f"{i}.json", least=4) for i in range(3)}
    with pytest.raises(UserFault, match="at least 4 sites for a masked sum; came 3"):
        dealt(sites)


def test_a_name_that_is_told_twice_counts_once(tmp_path: Path) -> None:
    """Else a server could make each site believe that enough are there, and have all masks of one update opened."""
    sites = members(tmp_path)
    found = dealt(sites)
    masked(sites, found)
    asked = found.question("open")
    with pytest.raises(UserFault, match="at least 3 updates in the sum; came 2"):
        sites["site-0"].open(found.attempt, asked, ["site-0", "site-3", "site-3", "site-3"])


@pytest.mark.parametrize(("count", "hide"), [(3, 1), (3, 3), (5, 4), (6, 4), (7, 5), (10, 1), (10, 8), (12, 9)])
def test_whatever_a_server_tells_enough_sites_to_hide_each_are_in_what_it_opens(count: int, hide: int) -> None:
    """It needs the shares of `threshold` sites for each that it takes out, and each site lets it take out so many."""
    least = least_open(count, hide)
    assert max(hide, threshold(count)) <= least <= count
    shares = count * (count - least)
    assert count - shares // threshold(count) >= hide


def test_a_site_gives_out_one_secret_of_each_and_answers_once(tmp_path: Path) -> None:
    sites = members(tmp_path)
    found = dealt(sites)
    masked(sites, found)
    asked = found.question("open")
    opened = sites["site-0"].open(found.attempt, asked, ["site-0", "site-1", "site-2"])["opened"]
    assert opened.shape == (4, SHARE)
    with pytest.raises(UserFault, match="after masked; came attempt run/0/x after opened"):
        sites["site-0"].open(found.attempt, asked, ["site-0", "site-1", "site-3"])
    with pytest.raises(UserFault, match="a sum with site-1"):
        sites["site-1"].open(found.attempt, asked, ["site-0", "site-2", "site-3"])
    kept = json.loads((tmp_path / "0.json").read_text())
    assert {kept[name] for name in ("agree", "seal", "own")} == {""}


def test_a_site_masks_once_in_an_attempt_and_never_with_the_masks_of_another(tmp_path: Path) -> None:
    sites = members(tmp_path)
    found, update = dealt(sites), updates(["site-0"])["site-0"]
    first = sites["site-0"].mask(found.attempt, update)
    with pytest.raises(UserFault, match="after dealt; came attempt run/0/x after masked"):
        sites["site-0"].mask(found.attempt, update)
    again = dealt(sites)  # the same name of an attempt, as a lying server may choose it
    second = sites["site-0"].mask(again.attempt, update)
    assert float((first["b"] == second["b"]).float().mean()) < 0.05
    with pytest.raises(UserFault, match="expected attempt run/1/y"):
        sites["site-0"].ready("run/1/y")


def test_a_process_that_begins_anew_goes_on_with_the_attempt_of_the_last(tmp_path: Path) -> None:
    found = MaskedSum("run/0/x", SERVER)
    for step in ("keys", "shares"):
        for name, site in members(tmp_path).items():
            asked = found.question(step)
            told = site.keys("run/0/x", 10) if step == "keys" else site.deal("run/0/x", asked)
            found.take(step, name, told)
    sent, words = masked(members(tmp_path), found)
    for name, site in members(tmp_path).items():
        found.take("open", name, site.open("run/0/x", found.question("open"), list(sent)))
    mean = found.contribution(words, schema_of(sent["site-0"])).update["a"]
    assert torch.allclose(mean, torch.stack([one["a"] for one in sent.values()]).mean(0), atol=1e-6)


@pytest.mark.parametrize("change", ["fewer", "own", "samples"])
def test_a_roster_with_too_few_sites_or_other_keys_is_refused(tmp_path: Path, change: str) -> None:
    sites = members(tmp_path)
    found = MaskedSum("run/0/x", SERVER)
    for name, site in sites.items():
        found.take("keys", name, site.keys("run/0/x", 10))
    roster = dict(found.roster)
    if change == "fewer":
        roster = {name: roster[name] for name in ("site-0", "site-1")}
    else:
        changed = {"own": {"agree": bytes(32)}, "samples": {"samples": 999}}[change]
        roster["site-0"] = replace(roster["site-0"], **changed)
    with pytest.raises(UserFault, match="at least 3 sites" if change == "fewer" else "keys that site-0 has sent"):
        sites["site-0"].deal("run/0/x", roster_tensors(roster))


def test_keys_that_another_did_not_sign_are_refused(tmp_path: Path) -> None:
    """A server with keys of its own in the middle could open every share."""
    signed = Identity(
        lambda text: (text[-8:], b"paper"), lambda _, text, sign, __: None if sign == text[-8:] else "none"
    )
    sites = members(tmp_path, identity=signed)
    found = MaskedSum("run/0/x", SERVER)
    for name, site in sites.items():
        found.take("keys", name, site.keys("run/0/x", 10))
    asked = found.question("shares")
    sites["site-0"].deal("run/0/x", asked)
    forged = replace(found.roster["site-2"], agree=found.roster["site-3"].agree, signature=b"")
    with pytest.raises(UserFault, match=r"keys that site-2 has signed; came none; to mend it: tell the federation"):
        sites["site-1"].deal("run/0/x", roster_tensors({**found.roster, "site-2": forged}))


def test_a_share_for_another_site_is_not_opened_and_its_sender_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sites = members(tmp_path)
    found = dealt(sites)
    masked(sites, found)
    asked = found.question("open")["sealed"]
    swapped = asked.clone()
    swapped[1, 0] = asked[1, 2]
    opened = sites["site-0"].open(found.attempt, {"sealed": swapped}, list(sites))["opened"]
    assert [bool(row.any()) for row in opened] == [True, False, True, True]
    assert "[site-0] expected shares that site-1 sealed for it, came others" in caplog.text


def test_a_site_that_seals_nothing_is_named_and_the_others_open_theirs(tmp_path: Path) -> None:
    sites = members(tmp_path, 5)
    found = dealt(sites)
    sealed = found._sealed["site-2"]
    found._sealed["site-2"] = torch.randint(0, 256, sealed.shape, dtype=torch.uint8)
    sent, words = masked(sites, found)
    for name, site in sites.items():
        assert found.take("open", name, site.open(found.attempt, found.question("open"), list(sites))) is None
    for name in ("site-0", "site-1", "site-3", "site-4"):
        assert found._secret(name, words)
    with pytest.raises(UserFault, match="3 right shares of the secret of site-2; came 5 shares that give none"):
        found.contribution(words, schema_of(sent["site-0"]))


def test_a_site_without_a_right_share_hides_nobody(tmp_path: Path) -> None:
    """It may have another roster, and no mask in this sum. Else a server could open a sum of fewer than `least`."""
    sites = {f"site-{i}": MaskedSite(f"site-{i}", SERVER, path=tmp_path / f"{i}.json", least=4) for i in range(5)}
    found = dealt(sites)
    masked(sites, found)
    asked, there = found.question("open"), ["site-0", "site-1", "site-2", "site-3"]
    asked["sealed"][3] = 0
    with pytest.raises(UserFault, match="at least 4 updates in the sum, with right shares; came 3"):
        sites["site-0"].open(found.attempt, asked, there)
    assert sites["site-0"].open(found.attempt, asked, [*there, "site-4"])["opened"][0].any()


@pytest.mark.parametrize("change", ["one key for both", "another's key", "a key of low order"])
def test_keys_that_all_others_would_refuse_do_not_come_on_the_roster(tmp_path: Path, change: str) -> None:
    """Else one site could make all others look guilty."""
    found = MaskedSum("run/0/x", SERVER)
    honest, other = (site.keys("run/0/x", 10) for site in members(tmp_path, 2).values())
    assert found.take("keys", "site-0", honest) is None
    told = {
        "one key for both": {**other, "seal": other["agree"]},
        "another's key": {**other, "agree": honest["agree"]},
        "a key of low order": {**other, "seal": torch.zeros(32, dtype=torch.uint8)},
    }[change]
    reason = "public keys of X25519" if "order" in change else "keys that no two sites have in common"
    assert reason in str(found.take("keys", "site-1", told))
    assert found.roster.keys() == {"site-0"}
    assert found.take("keys", "site-1", other) is None


def test_a_share_of_another_roster_does_not_open(tmp_path: Path) -> None:
    """A server that shows sites different rosters cannot use what it gets with one for the other."""
    sites = members(tmp_path)
    found = MaskedSum("run/0/x", SERVER)
    for name, site in sites.items():
        found.take("keys", name, site.keys("run/0/x", SAMPLES[name]))
    few = {name: found.roster[name] for name in ("site-0", "site-1", "site-2")}
    alone = sites["site-0"].deal("run/0/x", roster_tensors(few))["sealed"]
    for name in ("site-1", "site-2", "site-3"):
        found.take("shares", name, sites[name].deal("run/0/x", found.question("shares")))
    found.take(
        "shares", "site-0", {"sealed": torch.cat([alone, alone[:1]]), "commitment": torch.zeros(32, dtype=torch.uint8)}
    )
    sites["site-1"].mask("run/0/x", updates(["site-1"])["site-1"])
    opened = sites["site-1"].open("run/0/x", found.question("open"), list(sites))["opened"]
    assert [bool(row.any()) for row in opened] == [False, True, True, True]


def test_a_key_of_another_site_is_refused(tmp_path: Path) -> None:
    """Two sites with one key would have masks that cancel each other."""
    sites = members(tmp_path)
    found = MaskedSum("run/0/x", SERVER)
    for name, site in sites.items():
        found.take("keys", name, site.keys("run/0/x", 10))
    copied = {**found.roster, "site-2": replace(found.roster["site-2"], agree=found.roster["site-1"].agree)}
    with pytest.raises(UserFault, match="keys that no two sites have in common"):
        sites["site-0"].deal("run/0/x", roster_tensors(copied))


def test_a_key_of_low_order_is_refused_in_words(tmp_path: Path) -> None:
    sites = members(tmp_path)
    found = MaskedSum("run/0/x", SERVER)
    for name, site in sites.items():
        found.take("keys", name, site.keys("run/0/x", 10))
    weak = {**found.roster, "site-2": replace(found.roster["site-2"], seal=bytes(32))}
    with pytest.raises(UserFault, match="public keys of X25519"):
        sites["site-0"].deal("run/0/x", roster_tensors(weak))


@pytest.mark.parametrize("count", [3, 4, 5])
def test_a_server_that_tells_sites_different_things_never_gets_one_update_alone(count: int) -> None:
    """All that it may tell each site, by the rules that `open` holds. For one update it needs the own mask of its site
    and the keys of all others."""
    names, least = range(count), threshold(count)
    told = [
        [set(there) for size in range(least, count + 1) for there in combinations(names, size) if site in there]
        for site in names
    ]
    for views in product(*told):
        there = [sum(site in view for view in views) for site in names]
        alone = [site for site in names if there[site] >= least]
        assert not any(all(count - there[other] >= least for other in names if other != site) for site in alone)


def test_messages_of_the_steps_are_exactly_what_they_say(tmp_path: Path) -> None:
    sites = members(tmp_path)
    keys = sites["site-0"].keys("run/0/x", 10)
    found = dealt(members(tmp_path / "more"))
    shares = {"sealed": found.question("open")["sealed"][0], "commitment": torch.zeros(32, dtype=torch.uint8)}
    opened = {"opened": torch.zeros(4, SHARE, dtype=torch.uint8)}
    for step, tensors in (("keys", keys), ("shares", shares), ("open", opened)):
        assert step_fault(step, tensors, up=True) is None
        assert "not declared" in str(step_fault(step, {**tensors, "expert": torch.ones(3)}, up=True))
        assert step_fault(step, {**tensors, min(tensors): torch.ones(3)}, up=True)
        assert step_fault("other", tensors, up=True)
    for step in ("keys", "shares", "open"):
        assert step_fault(step, found.question(step), up=False) is None
        assert step_fault(step, {**found.question(step), "site-9/x": torch.ones(3)}, up=False)
    assert "samples" in str(step_fault("keys", {**keys, "samples": torch.tensor([0])}, up=True))
    assert step_fault("keys", {**keys, "signature": torch.zeros(99_999, dtype=torch.uint8)}, up=True)


def test_keys_and_rosters_come_back_from_their_messages() -> None:
    keys = Keys(b"a" * 32, b"b" * 32, 48, b"signature", b"certificate")
    assert keys_of(keys_tensors(keys)) == keys
    assert roster_of(roster_tensors({"site-1": keys, "site-2": keys})) == {"site-1": keys, "site-2": keys}


def test_shares_for_another_number_of_sites_do_not_count(tmp_path: Path) -> None:
    found = dealt(members(tmp_path))
    few = {"opened": torch.zeros(3, SHARE, dtype=torch.uint8)}
    assert "shares for the 4 sites" in str(found.take("open", "site-0", few))
    assert "a site of the roster" in str(found.take("open", "site-9", few))
    assert found.opened == {}


def test_no_secret_is_in_a_message(tmp_path: Path) -> None:
    sites = members(tmp_path)
    found = dealt(sites)
    _, words = masked(sites, found)
    secret = json.loads((tmp_path / "0.json").read_text())
    assert Secret.__dataclass_fields__.keys() == secret.keys()
    messages = {**found.question("shares"), **found.question("open"), **words["site-0"].update}
    for name in ("agree", "seal", "own"):
        needle = bytes.fromhex(secret[name])
        assert len(needle) == 32
        assert not any(needle in tensor.numpy().tobytes() for tensor in messages.values())
