"""The server's aggregator, called as FLARE calls it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.workspace import Workspace
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants

from pfedsam.config import from_dict
from pfedsam.exchange.schema import shared_schema
from pfedsam.flare.aggregator import MeanOfSites
from pfedsam.flare.context import STAMP

SETTINGS = {"model": {"image_size": 64, "experts": 2}}


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def fl_ctx(tmp_path: Path, events: list[str]) -> FLContext:
    for sub in ("startup", "local", "job/app_server/config"):
        (tmp_path / sub).mkdir(parents=True)
    (tmp_path / "job/app_server/config/pfedsam.json").write_text(json.dumps(SETTINGS))
    workspace = Workspace(str(tmp_path), site_name="server")
    engine = SimpleNamespace(
        get_workspace=lambda: workspace,
        get_component=lambda _: SimpleNamespace(base="base"),
        fire_event=lambda event, _: events.append(event),
    )
    context = FLContext()
    context.set_prop(ReservedKey.ENGINE, engine, private=True, sticky=False)
    context.set_prop(FLContextKey.CURRENT_RUN, "job", private=True, sticky=False)
    context.set_prop(AppConstants.CURRENT_ROUND, 2, private=True, sticky=False)
    context.set_prop(AppConstants.GLOBAL_MODEL, make_model_learnable({}, {STAMP: {}}), private=True, sticky=False)
    return context


def update(site: str, value: float, *, round_: int = 2, samples: int = 4) -> Shareable:
    config = from_dict(SETTINGS)
    tensors = {n: torch.full(s.shape, value, dtype=s.dtype) for n, s in shared_schema(config).items()}
    stamp = {"round": round_, "config": config.digest(), "base": "base"}
    meta = {STAMP: stamp, MetaKey.NUM_STEPS_CURRENT_ROUND: samples}
    message = DXO(DataKind.WEIGHT_DIFF, data=tensors, meta=meta).to_shareable()
    message.set_peer_props({ReservedKey.IDENTITY_NAME: site})
    return message


def test_the_mean_is_weighted_by_samples(fl_ctx: FLContext) -> None:
    mean = MeanOfSites(min_sites=2)
    assert mean.accept(update("b", 4.0, samples=1), fl_ctx)
    assert mean.accept(update("a", 0.0, samples=3), fl_ctx)
    assert all((t == 1.0).all() for t in from_shareable(mean.aggregate(fl_ctx)).data.values())


def test_a_second_update_of_a_site_does_not_count(fl_ctx: FLContext) -> None:
    mean = MeanOfSites()
    assert mean.accept(update("a", 1.0), fl_ctx)
    assert not mean.accept(update("a", 9.0), fl_ctx)
    assert all((t == 1.0).all() for t in from_shareable(mean.aggregate(fl_ctx)).data.values())


def test_an_update_of_an_old_round_does_not_count(fl_ctx: FLContext) -> None:
    assert not MeanOfSites().accept(update("a", 1.0, round_=1), fl_ctx)


def test_a_round_without_enough_valid_updates_stops_the_job(fl_ctx: FLContext, events: list[str]) -> None:
    mean = MeanOfSites(min_sites=2)
    mean.accept(update("a", 1.0), fl_ctx)
    mean.accept(update("b", float("nan")), fl_ctx)
    assert from_shareable(mean.aggregate(fl_ctx)).data == {}
    assert EventType.FATAL_SYSTEM_ERROR in events
    assert "expected valid updates of 2 sites, came 1" in fl_ctx.get_prop(FLContextKey.EVENT_DATA)
