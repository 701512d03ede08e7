"""Settings of masked sums, and a run in one process whose server sees only sums."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import tiny
from pfedsam import methods
from pfedsam.config import Config, to_dict
from pfedsam.data.synthetic import write_site
from pfedsam.errors import UserFault
from pfedsam.exchange.masks import steps_of
from pfedsam.exchange.server import mean
from pfedsam.federation import Plan, federate
from pfedsam.layout import Places
from pfedsam.methods.base import no_extras
from pfedsam.settings import check_sites, from_record
from pfedsam.tensors import Tensors

MASKS = {"rule": "mean", "secure": "masks"}
SITES = ("site-1", "site-2", "site-3")


@pytest.mark.parametrize("rule", ["clipped", "product", "trimmed", "median", "krum", "geometric"])
def test_a_rule_that_looks_at_single_updates_does_not_go_with_masks(rule: str) -> None:
    with pytest.raises(UserFault, match=f"server.rule mean with server.secure masks; came {rule}"):
        tiny(server={**MASKS, "rule": rule})


@pytest.mark.parametrize("number", ["bf16", "int8", "int4"])
def test_a_codec_whose_numbers_do_not_add_does_not_go_with_masks(number: str) -> None:
    with pytest.raises(UserFault, match=f"wire.up fp32 with server.secure masks; came {number}"):
        tiny(server=MASKS, wire={"up": number})


@pytest.mark.parametrize("method", methods.names())
def test_methods_go_with_masks_if_their_server_takes_a_mean_of_nothing_but_updates(method: str) -> None:
    found = methods.get(method)
    if found.rule is mean and found.up is no_extras:
        assert tiny(method=method, server=MASKS).server.secure == "masks"
    else:
        with pytest.raises(UserFault, match=f"with server.secure masks; came {method}"):
            tiny(method=method, server=MASKS)


@pytest.mark.parametrize(("sites", "every"), [(SITES[:2], {}), (SITES, {"site-3": 2})])
def test_fewer_than_three_sites_in_a_round_are_refused(sites: tuple[str, ...], every: dict[str, int]) -> None:
    with pytest.raises(UserFault, match="at least 3 sites for a masked sum; came 2"):
        check_sites(tiny(server=MASKS, every=every), sites, 2)
    check_sites(tiny(server={"rule": "mean"}, every=every), sites, 2)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hospitals")
    for number, site in enumerate(SITES):
        write_site(root / site, site, {"train": 2 + 2 * number, "val": 1, "test": 1}, seed=0)
    return root


def last(hospitals: Path, folder: Path, config: Config) -> tuple[Tensors, dict[str, Any]]:
    found = federate(Plan(config, dict.fromkeys(SITES, Places(hospitals, folder / "sites")), 1, folder))
    return load_file(next((folder / "store").rglob("round.000001.safetensors"))), found


def test_a_masked_run_has_the_model_of_the_plain_one_up_to_the_rounding_of_the_sites(
    hospitals: Path, tmp_path: Path
) -> None:
    plain, told = last(hospitals, tmp_path / "plain", tiny(server={"rule": "mean"}))
    hidden, hidden_told = last(hospitals, tmp_path / "hidden", tiny(server=MASKS))
    bound = len(SITES) / 2 / steps_of(100.0)
    for name, tensor in plain.items():
        ulp = torch.nextafter(tensor.abs(), torch.tensor(torch.inf)) - tensor.abs()
        assert bool(((tensor - hidden[name]).abs() <= bound + ulp).all()), name
    assert any(not torch.equal(tensor, hidden[name]) for name, tensor in plain.items())
    reports = [found["rounds"][0]["sites"] for found in (told, hidden_told)]
    for site in SITES:
        assert reports[0][site]["bytes_sent"] == reports[1][site]["bytes_sent"] > 0
        assert reports[0][site]["losses"] == reports[1][site]["losses"]


def test_an_update_longer_than_the_job_s_norm_is_shortened_at_its_site_and_told(
    hospitals: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short, _ = last(hospitals, tmp_path / "short", tiny(server={**MASKS, "norm": 0.001}))
    whole, _ = last(hospitals, tmp_path / "whole", tiny(server=MASKS))
    start = last(hospitals, tmp_path / "start", tiny(server=MASKS, train={"max_steps": 0}))[0]
    lengths = [float(sum((one[n] - start[n]).double().square().sum() for n in start)) ** 0.5 for one in (short, whole)]
    assert lengths[0] <= 0.0011 < lengths[1]
    assert "was shortened to 0.001 (server.norm)" in caplog.text


def test_a_job_without_masks_has_the_settings_and_the_digest_that_it_had_before_there_were_any() -> None:
    plain, hidden = tiny(), tiny(server=MASKS)
    assert not {"secure", "norm"} & to_dict(plain)["server"].keys()
    assert {"secure", "norm"} <= to_dict(hidden)["server"].keys()
    assert tiny(server={**MASKS, "norm": 3.0}).digest() != hidden.digest()
    assert plain.unlike(hidden) == {"server.secure": "masks", "server.rule": "mean"}
    for config in (plain, hidden):
        assert from_record(to_dict(config)) == config
