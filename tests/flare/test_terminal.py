"""What a user of FLARE's simulator sees, and what stands in its files."""

import copy
import logging
import logging.config
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from flare.test_simulator import job, simulate
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.utils.log_utils import logmode_config_dict

from pfedsam.flare.terminal import keep_calm
from pfedsam.layout import SIMULATED

pytestmark = pytest.mark.flare
OURS = re.compile(r"\d\d:\d\d:\d\d ")
BEFORE_OUR_CODE = 2 + 2  # FLARE's own word on its command, its selector's, and a line of each site's process


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The lines on the terminal of a run of one round, up to the table, and the workspace."""
    folder = tmp_path_factory.mktemp("t")
    told = simulate(job(folder / "job", rounds=1), folder / "ws", threads=2)
    return told.splitlines(), folder / "ws"


def test_a_run_shows_a_line_a_site_and_round_the_table_and_its_place(shown: tuple[list[str], Path]) -> None:
    lines, workspace = shown
    for site in ("site-1", "site-2"):
        (line,) = [line for line in lines if f"[{site}] round" in line]
        assert re.fullmatch(rf"{OURS.pattern}\[{site}\] round 1/1 step 2/2 loss .* about \d+ s left", line)
    assert lines[-1] == f"results: {workspace / 'server/simulate_job'}"
    assert any(line.startswith("site-2  before") for line in lines)


def test_of_flare_s_own_lines_the_terminal_has_those_alone_that_come_before_our_code(
    shown: tuple[list[str], Path],
) -> None:
    lines, _ = shown
    table = next(i for i, line in enumerate(lines) if "the run is done" in line)
    others = [line for line in lines[:table] if not OURS.match(line)]
    assert len(others) <= BEFORE_OUR_CODE, others
    assert max(map(len, lines)) <= 120


def test_log_txt_keeps_what_the_terminal_leaves_out(shown: tuple[list[str], Path]) -> None:
    lines, workspace = shown
    for party, told in (("server", "ServerRunner - INFO"), ("site-1", "ClientRunner - INFO")):
        log = (workspace / party / "log.txt").read_text()
        assert log.count(told) > 5
        assert not any(told in line for line in lines)
    assert "round 1 done" in (workspace / "server/log.txt").read_text()


@pytest.fixture
def console(tmp_path: Path) -> Iterator[dict[str, logging.Handler]]:
    """The root logger's handlers as FLARE sets them up in a mode; its own again afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    found: dict[str, logging.Handler] = {}
    for mode in ("concise", "full"):
        settings = copy.deepcopy(logmode_config_dict[mode])
        for handler in settings["handlers"].values():
            if "filename" in handler:
                handler["filename"] = str(tmp_path / f"{mode}_{handler['filename']}")
        logging.config.dictConfig(settings)
        found[mode] = root.handlers[0]
        found[f"{mode} file"] = root.handlers[1]
    root.handlers = [*found.values()]
    yield found
    for handler in found.values():
        handler.close()
    root.handlers, root.level = handlers, level


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
