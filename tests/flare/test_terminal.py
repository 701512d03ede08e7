"""Which lines FLARE's simulator shows while our job runs in it; test_simulator.py looks at a real run."""

import logging

import pytest
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.utils.log_utils import ConciseLogFilter

from pfedsam.flare.terminal import keep_calm
from pfedsam.layout import SIMULATED

pytestmark = pytest.mark.flare


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> dict[str, logging.Handler]:
    """Handlers of the root logger: as FLARE makes one of a concise terminal, and any other."""
    found: dict[str, logging.Handler] = {"concise": logging.StreamHandler(), "full": logging.StreamHandler()}
    found["concise"].addFilter(ConciseLogFilter(["nvflare.app_common"]))
    monkeypatch.setattr(logging.getLogger(), "handlers", [*found.values()])
    return found


def context(job_id: str) -> FLContext:
    found = FLContext()
    found.set_prop(FLContextKey.CURRENT_RUN, job_id)
    return found


def passes(handler: logging.Handler, name: str, level: int) -> bool:
    return bool(handler.filter(logging.LogRecord(name, level, "", 0, "", (), None)))


def test_only_the_simulator_s_concise_terminal_is_calmed(console: dict[str, logging.Handler]) -> None:
    keep_calm(context(SIMULATED))
    for kind, handler in console.items():
        assert passes(handler, "nvflare.app_common.x", logging.INFO) is (kind != "concise"), kind
        assert passes(handler, "nvflare.private.x", logging.WARNING)
        assert passes(handler, "pfedsam.site", logging.INFO)


def test_a_deployment_logs_as_it_is_set_up_to(console: dict[str, logging.Handler]) -> None:
    keep_calm(context("7d4ba4a9"))
    for handler in console.values():
        assert passes(handler, "nvflare.app_common.x", logging.INFO)
