"""Fixtures that several rooms' tests have in common."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedsam.config import Config
from pfedsam.data.datalist import read
from pfedsam.data.synthetic import write_site
from pfedsam.exchange.server import begin_state, message
from pfedsam.inference.facts import ModelFacts, Origin, roles_of
from pfedsam.inference.model_file import write_model
from pfedsam.layout import Places
from pfedsam.model import build
from pfedsam.settings import from_dict
from pfedsam.site import Site
from pfedsam.study import down_schema, initial_shared

ROOT = Path(__file__).parent.parent
NEEDS: dict[str, dict[str, object]] = {  # what of the model a method needs and the demo backbone lacks
    "fedbn": {"backbone": "tiny_vit", "pretrained": False},
    "iscos": {"pretrained": False},
}
TINY = ("train.max_steps=2", "train.epochs=1", "data.train=4", "data.val=2", "data.test=2", "model.image_size=64")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder with real data and weights; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("PFEDSAM_SHARED", ROOT.parent / "shared"))
    if not (folder / "weights").is_dir():
        pytest.skip("needs real data and weights: set PFEDSAM_SHARED")
    return folder


def tiny(**changes: object) -> Config:
    """A configuration of seconds: demo backbone, two steps a round, fp32; `own`: the method's own settings."""
    method = {"name": changes.pop("method", "pfedsam"), **changes.pop("own", {})}
    model = {"backbone": "demo", "image_size": 64, "experts": 3, **changes.pop("model", {})}
    train = {"max_steps": 2, "lr": 1e-3, "precision": "fp32", **changes.pop("train", {})}
    return from_dict({"method": method, "model": model, "train": train, **changes})


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two synthetic sites, site-1 and site-2."""
    root = tmp_path_factory.mktemp("hospital")
    for site in ("site-1", "site-2"):
        write_site(root / site, site, {"train": 6, "val": 2, "test": 3}, seed=0)
    return root


def in_one(hospital: Path, folder: Path, sites: Iterable[str]) -> Path:
    """The folder, with one datalist for these sites of `hospital`, whose files it names where they are."""
    lines = ["image,mask,split,group,site"]
    for site in sites:
        rows = [row for of in read(hospital / site / "datalist.csv").values() for row in of]
        lines += [
            f"{hospital / site / r.image},{hospital / site / r.mask},{r.split},{site}/{r.group},{site}" for r in rows
        ]
    folder.mkdir()
    (folder / "datalist.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def open_site(hospital: Path, tmp_path: Path):
    """Builds a `Site` on the synthetic data, its store in a folder of its own."""

    def build(config: Config, name: str = "site-1") -> Site:
        return Site(name, config, Places(hospital, tmp_path / "store"))

    return build


def after_a_round(open_site: Callable[[Config], Site], config: Config) -> Site:
    """A site after one round of two steps, its model as it predicts."""
    site = open_site(config)
    down = down_schema(config)
    site.receive(message(begin_state(initial_shared(config)[0], down), site.name, config, down))
    site.train(0, 2)
    site.recall(site.shared())
    return site


def model_facts(site: Site, *, private: bool = True) -> ModelFacts:
    """What the model file of `site` says."""
    origin = Origin(site.base, site.name if private else "", "run", 1, 1 if private else None)
    return ModelFacts(site.config, site.config.digest(), origin, roles_of(site.config, private=private))


def save_model(site: Site, path: Path, *, base: bool = False) -> Path:
    """The model file of `site`, written to `path`."""
    whole = build.backbone(site.config.model) if base else None
    write_model(path, model_facts(site), site.shared(), site.private(), base=whole)
    return path


@pytest.fixture(scope="session")
def model_file(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model of site-1; not to be changed."""
    folder = tmp_path_factory.mktemp("model")
    torch.set_num_threads(1)
    site = after_a_round(lambda config: Site("site-1", config, Places(hospital, folder / "store")), tiny())
    return save_model(site, folder / "model.safetensors")


@pytest.fixture(scope="session")
def trained_site(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site on synthetic data after some steps, so that its masks are neither empty nor full."""
    config = tiny(data={"scale": "percentile"}, train={"max_steps": 12, "epochs": 6})
    site = Site("site-1", config, Places(hospital, tmp_path_factory.mktemp("store")))
    site.receive(initial_shared(config)[0])
    site.train(0, 1)
    site.recall(site.shared())
    return site


@pytest.fixture(scope="session")
def trained_model(trained_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained site's model, exported."""
    return save_model(trained_site, tmp_path_factory.mktemp("trained") / "model.safetensors")


def let_little_leave(federation: Any) -> None:
    """Jobs of tests train on four images: each site's administrator lets that leave."""
    for site in federation.facts["sites"]:
        policy = federation.kit(site) / "local/privacy.json"
        text = policy.read_text()
        for floor, least in (("images", 8), ("steps", 4), ("patients", 2)):
            assert f'"least_{floor}": {least}' in text
            text = text.replace(f'"least_{floor}": {least}', f'"least_{floor}": 1')
        policy.write_text(text)
