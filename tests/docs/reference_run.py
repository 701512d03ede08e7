"""Real runs that the reference pages are held against: through FLARE's parts in this process, and without FLARE."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from conftest import tiny
from pfedsam.exchange.server import begin_state
from pfedsam.federation import Plan, federate
from pfedsam.files import read_json
from pfedsam.flare.context import REJECTED, ledger
from pfedsam.flare.executor import PFedSAMExecutor
from pfedsam.flare.filters import OnlyDeclaredEnters
from pfedsam.flare.policy import SitePolicy
from pfedsam.flare.results import ResultsWriter
from pfedsam.flare.sends import model_task
from pfedsam.layout import Places
from pfedsam.record.scores import CaseScore, summary
from pfedsam.settings import from_dict
from pfedsam.study import down_schema, initial_shared

SETTINGS = {
    "begin_private": "latest",
    "model": {"image_size": 64, "experts": 2},
    "train": {"max_steps": 1, "precision": "fp32"},
    "wire": {"up": "int8"},
    "data": {"source": "synthetic", "train": 2, "val": 1, "test": 3},
}
CONFIG = from_dict(SETTINGS)


@dataclass(frozen=True)
class Run:
    """What a round and the final test of one site leave.

    Attributes:
        site: the site's workspace.
        ledger: the site's, and its lines of the run.
        task: the message that asks for the round, and its headers.
        update: the site's answer.
        results: the server's record.
    """

    site: Path
    ledger: Path
    lines: list[dict[str, Any]]
    task: DXO
    headers: dict[str, Any]
    update: DXO
    results: dict[str, Any]


def through_flare(folder: Path) -> Run:
    """One round and the final test, each message through the site's filters; before them an earlier run's round."""
    site, server, writer = context(folder / "site", "site-1"), context(folder / "server", "server"), ResultsWriter()
    shared, base = initial_shared(CONFIG)
    back = [{"run": "spoilt", "round": 0, "without": ["site-3"]}]
    past = SimpleNamespace(results={"jobs": ["job-0"], "planned": {"rounds": 1}, "rounds": [], "back": back})
    state = begin_state(shared, down_schema(CONFIG))
    parts = {
        "persistor": SimpleNamespace(run="run", runs={"run"}, base=base, begun={}, point=past, state=state),
        "results": writer,
    }
    server.get_engine().get_component = parts.get
    tell(writer, server, "", **{AppConstants.NUM_ROUNDS: 2, AppConstants.CURRENT_ROUND: 0})
    parts["persistor"].run = "earlier"
    exchange("train", site, server)
    (folder / "site/job/run.json").unlink()  # the earlier run had a job of its own
    parts["persistor"].run = "run"
    tell(writer, server, AppEventType.INITIAL_MODEL_LOADED)
    tell(writer, server, AppEventType.ROUND_STARTED)
    task, update = exchange("train", site, server)
    update.set_peer_props({ReservedKey.IDENTITY_NAME: "site-1"})
    given = {AppConstants.AGGREGATION_ACCEPTED: True, AppConstants.TRAINING_RESULT: update}
    tell(writer, server, AppEventType.AFTER_CONTRIBUTION_ACCEPT, **given)
    tell(writer, server, REJECTED, **{REJECTED: {"site": "site-2", "reason": "no update came"}})
    tell(writer, server, AppEventType.BEFORE_LEARNABLE_PERSIST)
    tell(writer, server, EventType.ABOUT_TO_END_RUN)  # as if the checkpoint could not be written
    assert not (folder / "server/job/results.json").exists()
    tell(writer, server, AppEventType.ROUND_DONE)
    _, tested = exchange("validate", site, server)
    for name, result in (("site-1", tested), ("site-2", in_two_units(tested))):
        given = {AppConstants.DATA_CLIENT: name, AppConstants.VALIDATION_RESULT: result}
        tell(writer, server, AppEventType.VALIDATION_RESULT_RECEIVED, **given)
    tell(writer, server, EventType.ABOUT_TO_END_RUN)
    results = read_json(folder / "server/job/results.json")
    book, headers = ledger(site, CONFIG), task["__headers__"]
    lines = [line for line in book.lines() if line["run"] != "earlier"]
    return Run(folder / "site", book.path, lines, from_shareable(task), headers, from_shareable(update), results)


def alone(hospital: Path, folder: Path) -> list[dict[str, Any]]:
    """The records of a run in one process, of a newcomer that begins with it, and of a run with privacy."""
    places = {name: Places(hospital, folder / "sites") for name in ("site-1", "site-2")}
    federate(Plan(tiny(), places, 2, folder / "first"))
    joins = tiny(study="joins", method="newcomer", every={"site-1": 0})
    federate(Plan(joins, places, 1, folder / "second", begin=folder / "first"))
    noise = {"unit": "site", "noise": 1.0, "epsilon": 1000}
    federate(Plan(tiny(study="hidden", method="fedavg", privacy=noise), places, 1, folder / "third"))
    return [read_json(folder / name / "results.json") for name in ("first", "second", "third")]


def context(folder: Path, name: str) -> FLContext:
    """FLARE's context of a party, on a workspace of its own."""
    for sub in ("startup", "local", f"job/app_{name}/config"):
        (folder / sub).mkdir(parents=True)
    (folder / f"job/app_{name}/config/pfedsam.json").write_text(json.dumps(SETTINGS))
    workspace, made = Workspace(str(folder), site_name=name), FLContext()
    engine = SimpleNamespace(
        get_workspace=lambda: workspace,
        get_component=lambda _: None,
        new_context=FLContext,
        fire_event=lambda *_: None,
    )
    for key, value in (
        (ReservedKey.ENGINE, engine),
        (ReservedKey.IDENTITY_NAME, name),
        (FLContextKey.CURRENT_RUN, "job"),
        (FLContextKey.SCOPE_PROPERTIES, {"threads": "1"}),  # two wait for each other where others work too
    ):
        made.set_prop(key, value, private=True, sticky=False)
    return made


def tell(writer: ResultsWriter, fl_ctx: FLContext, event: str, **facts: Any) -> None:
    """An event of the server's workflow."""
    for name, value in facts.items():
        fl_ctx.set_prop(name, value, private=True, sticky=False)
    writer.handle_event(event, fl_ctx)


def exchange(name: str, site: FLContext, server: FLContext) -> tuple[Shareable, Shareable]:
    """A task as the server sends it, and the answer as it leaves the site."""
    site.set_prop("__task_name__", name, private=True, sticky=False)
    round_ = server.get_prop(AppConstants.CURRENT_ROUND)
    task = OnlyDeclaredEnters().process(model_task(name, print, round_, timeout=0, fl_ctx=server).data, site)
    return task, SitePolicy(64, 1, 1).process(PFedSAMExecutor().execute(name, task, site, Signal()), site)


def in_two_units(tested: Shareable) -> Shareable:
    """A final test whose cases are measured in millimetres and in pixels, at a site that never trained."""
    cases = [CaseScore(1, 0.5, 0.4, 3.0, 1.0, True, 0.9, unit) for unit in ("mm", "px")]
    row = summary(cases)
    return DXO(DataKind.METRICS, {**from_shareable(tested).data, "global": row, "before": None}).to_shareable()
