"""The server's aggregator, called as FLARE calls it."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.bcast_manager import BcastTaskManager
from nvflare.apis.shareable import Shareable, make_copy, make_reply
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector
from nvflare.app_common.widgets.metrics_artifact_writer import MetricsArtifactWriter

from pfedsam import methods
from pfedsam.exchange.checkpoint import Checkpoints
from pfedsam.exchange.guard import Rejected
from pfedsam.exchange.schema import REPORT, STAMP
from pfedsam.exchange.server import ServerState
from pfedsam.flare.aggregator import SharedAggregator
from pfedsam.flare.context import CLASSES_DIFFER, DIVERGED, REASON, REJECTED, certified, selected_by
from pfedsam.flare.evaluation import FinalEvaluation
from pfedsam.flare.filters import UpdateGuard, judge
from pfedsam.flare.persistor import SharedPersistor
from pfedsam.flare.rounds import Rounds
from pfedsam.flare.sends import SitesOwnModel, model_task
from pfedsam.settings import from_dict
from pfedsam.study import shared_schema
from pfedsam.tensors import facts_of

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
    shared = {name: torch.zeros(spec.shape) for name, spec in shared_schema(from_dict(SETTINGS)).items()}
    persistor = SimpleNamespace(base="base", run="run", results={}, state=ServerState(shared))
    engine = SimpleNamespace(
        get_workspace=lambda: workspace,
        get_component=lambda _: persistor,
        fire_event=lambda event, _: events.append(event),
    )
    context = FLContext()
    context.set_prop(ReservedKey.ENGINE, engine, private=True, sticky=False)
    context.set_prop(FLContextKey.CURRENT_RUN, "job", private=True, sticky=False)
    context.set_prop(AppConstants.CURRENT_ROUND, 2, private=True, sticky=False)
    context.set_prop(AppConstants.GLOBAL_MODEL, make_model_learnable({}, {STAMP: {}}), private=True, sticky=False)
    return context


ROW = {"dice": 0.5, "iou": 0.4, "hd95": 9.0, "assd": None, "unit": "mm"}
TOLD = {
    **{"losses": {"global": 0.7}, "seconds": 2.5, "scoring_seconds": 0.5, "samples": 4},
    **{"bytes_sent": 9, "bytes_received": 9, "val": {"global": ROW, "personal": ROW}, "before": ROW, "private": {}},
}

TESTED = {"global": ROW, "personal": ROW, "val": {"global": ROW, "personal": ROW}}  # a site's final test


def update(site: str, value: float, *, round_: int = 2, samples: int = 4, **said: Any) -> Shareable:
    config = from_dict(SETTINGS)
    tensors = {n: torch.full(s.shape, value, dtype=s.dtype) for n, s in shared_schema(config).items()}
    stamp = {"round": round_, "config": config.digest(), "base": "base"}
    chosen_by = {MetaKey.INITIAL_METRICS: {"val_dice": 0.5}}
    report = {**TOLD, "samples": samples}
    meta = {STAMP: stamp, MetaKey.NUM_STEPS_CURRENT_ROUND: samples, REPORT: report, **chosen_by, **said}
    message = DXO(DataKind.WEIGHT_DIFF, data=tensors, meta=meta).to_shareable()
    message.set_peer_props({ReservedKey.IDENTITY_NAME: site})
    return message


def test_the_mean_is_weighted_by_samples(fl_ctx: FLContext) -> None:
    mean = SharedAggregator()
    assert mean.accept(update("b", 4.0, samples=1), fl_ctx)
    assert mean.accept(update("a", 0.0, samples=3), fl_ctx)
    assert all((t == 1.0).all() for t in from_shareable(mean.aggregate(fl_ctx)).data.values())


def test_a_second_update_of_a_site_does_not_count(fl_ctx: FLContext) -> None:
    mean = SharedAggregator()
    assert mean.accept(update("a", 1.0), fl_ctx)
    assert not mean.accept(update("a", 9.0), fl_ctx)
    assert all((t == 1.0).all() for t in from_shareable(mean.aggregate(fl_ctx)).data.values())


def test_a_site_cannot_claim_more_samples_than_in_its_first_round(fl_ctx: FLContext) -> None:
    first = {"sites": {"a": {"samples": 4}, "b": {"samples": 9}}}
    fl_ctx.get_engine().get_component("results").results = {"rounds": [first]}
    mean = SharedAggregator()
    assert not mean.accept(update("a", 1.0, samples=9), fl_ctx)
    assert "expected 4 samples as in the site's first round" in fl_ctx.get_prop(REASON)
    assert mean.accept(update("a", 1.0, samples=4), fl_ctx)
    assert mean.accept(update("new", 1.0, samples=7), fl_ctx)


def test_an_update_of_an_old_round_does_not_count(fl_ctx: FLContext) -> None:
    assert not SharedAggregator().accept(update("a", 1.0, round_=1), fl_ctx)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({REPORT: {**TOLD, "picture": torch.ones(3)}}, "numbers and texts"),
        ({REPORT: {**TOLD, "note": "x" * 300}}, "at most 200 characters"),
        ({REPORT: None}, "an object as the report, came None"),
        ({REPORT: {**TOLD, "val": {"global": ROW}}}, "an object as val personal, came None"),
        ({REPORT: {**TOLD, "before": {k: v for k, v in ROW.items() if k != "iou"}}}, "iou of before from 0 to 1"),
        ({REPORT: {**TOLD, "private": {"run": "r"}}}, "a run and a round as private"),
        ({REPORT: {**TOLD, "experts": "many"}}, "an object as experts"),
        ({REPORT: {**TOLD, "experts": {"share": 7}}}, "experts' share from 0 to 1"),
        ({REPORT: {**TOLD, "experts": {"experts": [0.5, 1.5]}}}, "experts' experts from 0 to 1"),
        ({REPORT: {**TOLD, "before": {**ROW, "hd95": float("inf")}}}, "numbers and texts"),
        ({REPORT: {**TOLD, "before": {**ROW, "surface_dice": 1.5}}}, "surface_dice of before from 0 to 1"),
        ({REPORT: {**TOLD, "before": {**ROW, "unit": "<b>"}}}, "mm or px as unit of before"),
        ({REPORT: {**TOLD, "before": {**ROW, "by_unit": {"mm": {"assd": -1}}}}}, "assd of before in mm"),
        ({REPORT: {**TOLD, "losses": {"global": float("nan")}}}, "numbers and texts"),
        ({REPORT: {**TOLD, "losses": 3.0}}, "an object as losses, came 3.0"),
        ({REPORT: {**TOLD, "samples": "many"}}, "a whole number as samples"),
        ({REPORT: {k: v for k, v in TOLD.items() if k != "bytes_sent"}}, "a whole number as bytes_sent"),
        ({REPORT: {**TOLD, "seconds": "long"}}, "a number as seconds"),
        ({REPORT: {**TOLD, "patient": "Doe^John 1970-01-01"}}, "expected no 'patient' in the report"),
        ({REPORT: {**TOLD, "before": {**ROW, "note": 1.0}}}, "expected no 'note' in before"),
        ({REPORT: {**TOLD, "val": {"global": ROW, "personal": ROW, "doe": ROW}}}, "expected no 'doe' in val"),
        ({REPORT: {**TOLD, "experts": {"x": 0.5}}}, "expected no 'x' in experts"),
        ({REPORT: {**TOLD, "losses": {"\x1b[31mred": 1.0}}}, "losses named balance, global, personal"),
        ({REPORT: {**TOLD, "losses": {f"l{n}": 1.0 for n in range(99)}}}, "losses named balance"),
        ({REPORT: {**TOLD, "losses": {"global": 1e300}}}, "a number as loss global"),
        ({REPORT: {**TOLD, "private": {"run": "<b>", "round": 1}}}, "a run and a round as private"),
        ({REPORT: {**TOLD, "private": {"run": "r", "round": 0.5}}}, "a run and a round as private"),
        ({REPORT: {**TOLD, "bytes_sent": 9.5}}, "a whole number as bytes_sent"),
        ({MetaKey.NUM_STEPS_CURRENT_ROUND: 10_000_000}, "the 4 samples of the report as weight, came 10000000"),
        ({MetaKey.INITIAL_METRICS: {"val_dice": 1e9}}, "choosing the best model"),
    ],
)
def test_an_update_that_says_nonsense_beside_its_tensors_does_not_count(
    fl_ctx: FLContext, caplog: pytest.LogCaptureFixture, said: dict[str, Any], reason: str
) -> None:
    assert not SharedAggregator().accept(update("a", 1.0, **said), fl_ctx)
    assert reason in fl_ctx.get_prop(REASON)
    with pytest.raises(ContentBlockedException, match=reason):
        UpdateGuard().process(update("a", 1.0, **said), fl_ctx)
    assert UpdateGuard().process(update("a", 1.0), fl_ctx)


def best_of(dice: dict[str, float | None], fl_ctx: FLContext) -> float:
    """What FLARE's selector makes of a round of sites whose validation Dice was that."""
    selector = IntimeModelSelector(key_metric="val_dice")
    selector.handle_event(AppEventType.ROUND_STARTED, fl_ctx)
    for site, value in dice.items():
        told = {**TOLD, "val": {"global": {**ROW, "dice": value}, "personal": ROW}}
        message = update(site, 1.0, **{REPORT: told, MetaKey.INITIAL_METRICS: selected_by(told)})
        fl_ctx.set_peer_context(certified(site, UpdateGuard().process(message, fl_ctx)))
        selector.handle_event(AppEventType.BEFORE_CONTRIBUTION_ACCEPT, fl_ctx)
    selector.handle_event(AppEventType.BEFORE_AGGREGATION, fl_ctx)
    return float(selector.best_val_metric)


def test_a_site_that_could_score_nothing_takes_no_part_in_choosing_the_best_model(fl_ctx: FLContext) -> None:
    assert best_of({"a": 0.8, "b": 0.6}, fl_ctx) == pytest.approx(0.7)
    assert best_of({"a": 0.8, "b": None}, fl_ctx) == pytest.approx(0.8)
    assert best_of({"a": None, "b": None}, fl_ctx) == float("-inf")


def rounds() -> Rounds:
    """The controller in its third round, waiting for three sites of which two suffice."""
    controller = Rounds(rounds=3, min_sites=2, grace=3600, timeout=7200)
    controller.aggregator, controller.round = SharedAggregator(), 2
    controller._asked, controller._least = 3, 2
    return controller


class Asked:
    """A task of FLARE's. It ends as soon as the least number of sites has answered, and without them does not."""

    def __init__(self, least: int = 2, sites: str = "abcdefgh") -> None:
        self.task = Task("train", Shareable())
        self.task.targets = list(sites)
        self._manager = BcastTaskManager(self.task, least, wait_time_after_min_received=0)

    def answer(self, controller: Rounds | FinalEvaluation, site: str, result: Shareable, fl_ctx: FLContext) -> bool:
        """Whether the task has ended after a site's result. FLARE marks it as received after the callback."""
        client_task = ClientTask(Client(site, ""), self.task)
        self.task.client_tasks.append(client_task)
        client_task.result = result
        controller._received(client_task, fl_ctx)
        client_task.result_received_time = 1.0
        return bool(self._manager.check_task_exit(self.task)[0])


def answer(controller: Rounds | FinalEvaluation, site: str, result: Shareable, fl_ctx: FLContext) -> None:
    """As FLARE hands in a site's result."""
    Asked().answer(controller, site, result, fl_ctx)


def late(controller: Rounds, site: str, result: Shareable, fl_ctx: FLContext) -> None:
    """As FLARE hands in a result whose task is gone."""
    controller.process_result_of_unknown_task(Client(site, ""), AppConstants.TASK_TRAIN, "", result, fl_ctx)


@pytest.mark.parametrize(("round_", "stated"), [(0, None), (3, "2")])
def test_the_best_model_states_the_round_that_made_it(
    fl_ctx: FLContext, tmp_path: Path, round_: int, stated: str | None
) -> None:
    """Sites score the model that a round begins with. The first one was made by no round."""
    persistor = SharedPersistor()
    persistor.state, persistor.base = ServerState({"w": torch.zeros(1)}), "base"
    persistor.run, persistor._checkpoints = "run", Checkpoints(tmp_path / "store", "study")
    persistor._checkpoints.begin("run")
    fl_ctx.set_prop(AppConstants.CURRENT_ROUND, round_, private=True, sticky=False)
    fl_ctx.set_prop(AppConstants.VALIDATION_RESULT, 0.5, private=True, sticky=False)
    persistor._note_best(fl_ctx)
    persistor._save_best(fl_ctx)
    kept = persistor._checkpoints.load_best("run")
    assert kept
    [file] = tmp_path.rglob("shared.best.safetensors")
    assert [facts.get("round") for facts in (kept[1], facts_of(file))] == [stated, stated]


def test_an_update_is_booked_under_the_name_of_the_certificate(fl_ctx: FLContext) -> None:
    controller = rounds()
    answer(controller, "a", update("b", 1.0), fl_ctx)
    answer(controller, "a", update("c", 1.0), fl_ctx)
    answer(controller, "b", update("b", 1.0), fl_ctx)
    assert controller.aggregator.given.keys() == {"a", "b"}
    assert "expected one update a round" in fl_ctx.get_prop(REASON)
    assert not controller._failed


@pytest.mark.parametrize("key", ["client_name", "site_name", MetaKey.SITE_NAME])
def test_flare_s_metrics_name_a_site_by_its_certificate_whatever_its_message_says(fl_ctx: FLContext, key: str) -> None:
    """FLARE's writer of metrics takes the name from the message, else from what the site says of its process."""
    writer, engine, said = MetricsArtifactWriter(), fl_ctx.get_engine(), FLContext()
    engine.fire_event = lambda event, context: writer.handle_event(event, context)
    said.set_prop(ReservedKey.IDENTITY_NAME, "a", private=False, sticky=False)
    fl_ctx.set_peer_context(said)
    message = update("a", 1.0, **{key: "a", "note": "Doe^John " * 9})
    message.set_header(AppConstants.CURRENT_ROUND, 77)
    message["more"] = "Doe^John"
    answer(rounds(), "liar", UpdateGuard().process(message, fl_ctx), fl_ctx)
    assert {round_: [one["name"] for one in sites] for round_, sites in writer._round_sites.items()} == {2: ["liar"]}


def test_the_guard_lets_nothing_through_beside_what_it_has_judged(fl_ctx: FLContext) -> None:
    message = update("a", 1.0, note="Doe^John", **{STAMP: {**from_shareable(update("a", 1.0)).meta[STAMP], "x": 1}})
    message["more"], kept = "Doe^John", from_shareable(update("a", 1.0))
    message.set_header("more", "Doe^John")
    message.set_cookie_jar({"more": "Doe^John"})
    came = UpdateGuard().process(message, fl_ctx)
    assert "Doe^John" not in str({**came, "DXO": from_shareable(came).meta})
    assert from_shareable(came).meta == kept.meta
    assert all(torch.equal(from_shareable(came).data[name], tensor) for name, tensor in kept.data.items())
    assert came.get_cookie(AppConstants.CONTRIBUTION_ROUND) == 2
    assert SharedAggregator().accept(came, fl_ctx)


def test_a_late_update_does_not_count(fl_ctx: FLContext) -> None:
    controller = rounds()
    late(controller, "a", update("a", 1.0), fl_ctx)
    assert not controller.aggregator.given


def test_each_site_is_sent_the_model_that_the_rule_made_for_it(fl_ctx: FLContext) -> None:
    persistor = fl_ctx.get_engine().get_component("persistor")
    own = {name: torch.full_like(t, 3.0) for name, t in persistor.state.shared.items()}
    persistor.state = replace(persistor.state, models={"a": own})
    task = model_task("train", lambda *_: None, 2, timeout=0, fl_ctx=fl_ctx)
    for site, value in (("a", 3.0), ("b", 0.0), ("a", 3.0)):
        task.before_task_sent_cb(SimpleNamespace(client=Client(site, "")), fl_ctx)
        sent = from_shareable(SitesOwnModel().process(make_copy(task.data), fl_ctx))
        assert all(bool((t == value).all()) for t in sent.data.values())
        assert sent.get_meta_prop(STAMP)["base"] == "base"


def test_a_rule_that_forgets_what_sites_are_sent_stops_the_job(
    fl_ctx: FLContext, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forgets = replace(methods.get("pfedsam"), rule=lambda state, *_: replace(state, shared={}))
    monkeypatch.setattr("pfedsam.flare.aggregator.methods.get", lambda _: forgets)
    SharedAggregator().aggregate(fl_ctx)
    assert EventType.FATAL_SYSTEM_ERROR in events


def test_a_site_without_an_update_stands_in_the_record_with_the_reason(fl_ctx: FLContext) -> None:
    controller, told = rounds(), {}

    def book(event: str, context: FLContext) -> None:
        if event == REJECTED:
            told[context.get_prop(REJECTED)["site"]] = context.get_prop(REJECTED)["reason"]

    fl_ctx.get_engine().fire_event = book
    late(controller, "late", make_reply(ReturnCode.TASK_ABORTED), fl_ctx)
    assert told == {}
    answer(controller, "a", make_reply(ReturnCode.EXECUTION_EXCEPTION), fl_ctx)
    assert "EXECUTION_EXCEPTION; the site's own log" in told["a"]
    with pytest.raises(ContentBlockedException):
        UpdateGuard().process(update("b", float("nan")), fl_ctx)
    answer(controller, "b", make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR), fl_ctx)
    assert "NaN or infinite" in told["b"]
    late(controller, "late", make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR), fl_ctx)
    assert "late" in told


def test_the_job_stops_as_soon_as_too_few_sites_are_left_for_the_round(fl_ctx: FLContext, events: list[str]) -> None:
    controller = rounds()
    answer(controller, "a", make_reply(ReturnCode.EXECUTION_EXCEPTION), fl_ctx)
    assert EventType.FATAL_SYSTEM_ERROR not in events
    answer(controller, "b", make_reply(ReturnCode.EXECUTION_EXCEPTION), fl_ctx)
    assert EventType.FATAL_SYSTEM_ERROR in events
    assert "b: no update came" in fl_ctx.get_prop(FLContextKey.EVENT_DATA)


@pytest.mark.parametrize(("asked", "stops"), [(2, True), (3, False)])
def test_one_site_of_three_with_other_classes_is_left_out_and_one_of_two_stops_the_job(
    fl_ctx: FLContext, events: list[str], asked: int, stops: bool
) -> None:
    """With two sites nobody knows which one is right. Of three, one that lies must not end the job of all."""
    controller = rounds()
    controller.round, controller._asked, controller._least = 0, asked, 1
    answer(controller, "a", make_reply(CLASSES_DIFFER), fl_ctx)
    assert (EventType.FATAL_SYSTEM_ERROR in events) == stops
    answer(controller, "b", make_reply(CLASSES_DIFFER), fl_ctx)
    assert EventType.FATAL_SYSTEM_ERROR in events
    assert "b: its masks use other class numbers" in fl_ctx.get_prop(FLContextKey.EVENT_DATA)


def nested(depth: int = 100_000) -> Shareable:
    """An answer whose return code is lists within lists: FLARE decodes it, and no text can be made of it."""
    code: list[Any] = []
    for _ in range(depth):
        code = [code]
    return make_reply(code)


def test_a_return_code_of_lists_within_lists_costs_no_other_site_the_task(
    fl_ctx: FLContext, events: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """FLARE ends a task for all sites if its callback raises."""
    controller = rounds()
    answer(controller, "a", nested(), fl_ctx)
    late(controller, "late", nested(), fl_ctx)
    evaluation = FinalEvaluation(grace=1, timeout=1)
    answer(evaluation, "b", nested(), fl_ctx)
    assert controller._failed == {"a": "no return code"}
    assert EventType.FATAL_SYSTEM_ERROR not in events
    assert "update of a not counted: no update came: no return code" in caplog.text
    assert "final test of b failed: 'no return code'" in caplog.text


def test_an_answer_that_nobody_can_judge_is_refused_by_the_name_of_what_it_raised(
    fl_ctx: FLContext, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RecursionError

    controller, evaluation = rounds(), FinalEvaluation(grace=1, timeout=1)
    answer(controller, "b", update("b", 1.0), fl_ctx)
    monkeypatch.setattr("pfedsam.flare.aggregator.from_shareable", fail)
    evaluation.fire_event = fail
    answer(controller, "a", update("a", 1.0), fl_ctx)
    answer(evaluation, "c", DXO(DataKind.METRICS, data=TESTED).to_shareable(), fl_ctx)
    assert controller._failed.keys() == {"a"}
    assert controller.aggregator.given.keys() == {"b"}
    told = "expected an answer that can be judged, came one with RecursionError"
    assert caplog.messages == [f"update of a not counted: {told}", f"final test of c failed: {told}"]


def test_a_refused_update_takes_no_part_in_choosing_the_best_model(fl_ctx: FLContext) -> None:
    first = {"sites": {"a": {"samples": 4}}}
    fl_ctx.get_engine().get_component("results").results = {"rounds": [first]}
    selector = IntimeModelSelector(key_metric="val_dice")
    selector.handle_event(EventType.START_RUN, fl_ctx)
    fl_ctx.get_engine().fire_event = selector.handle_event
    controller = rounds()
    for samples, votes in (([9], 0.0), ([4, 4], 1.0)):  # a lie, then an update and a second one
        for said in samples:
            message = update("a", 1.0, samples=said)
            message.add_cookie(AppConstants.CONTRIBUTION_ROUND, 2)
            answer(controller, "a", message, fl_ctx)
        controller._vote(fl_ctx)
        assert selector.validation_metric_sum_of_weights == votes


def guarded(site: str, value: float, fl_ctx: FLContext, dice: float = 0.5) -> Shareable:
    """A site's update as the server's filter lets it through."""
    told = {**TOLD, "val": {"global": {**ROW, "dice": dice}, "personal": ROW}}
    said = {REPORT: told, MetaKey.INITIAL_METRICS: selected_by(told)}
    return UpdateGuard().process(update(site, value, **said), fl_ctx)


LENGTHS = {"a": 1.0, "b": 1.0, "c": 1.1, "far": 100.0}


def gathering(sites: Iterable[str], least: int, fl_ctx: FLContext) -> Rounds:
    """The controller, whose round each of these sites answers."""
    controller, asked = Rounds(rounds=3, min_sites=least, grace=3600, timeout=7200), Asked(least)
    controller.aggregator, controller.round = SharedAggregator(), 2
    controller.persistor = fl_ctx.get_engine().get_component("persistor")
    controller.persistor.left_out = frozenset()
    fl_ctx.get_engine().get_clients = lambda: [Client(site, "") for site in sites]

    def broadcast(**_: object) -> None:
        for site in sites:
            dice = 0.9 if site == "far" else 0.5
            asked.answer(controller, site, guarded(site, LENGTHS[site], fl_ctx, dice), fl_ctx)

    controller.broadcast_and_wait = broadcast
    return controller


def test_an_update_that_is_left_out_for_its_length_takes_no_part_in_choosing_the_best_model(
    fl_ctx: FLContext, caplog: pytest.LogCaptureFixture
) -> None:
    selector, controller = IntimeModelSelector(key_metric="val_dice"), gathering(LENGTHS, 2, fl_ctx)
    fl_ctx.get_engine().fire_event = selector.handle_event
    controller.persistor.model = lambda _: make_model_learnable({}, {})
    controller.persistor.save = lambda *_: None
    assert controller._gather(2, Signal(), fl_ctx)
    controller._end(Signal(), fl_ctx)
    assert selector.best_val_metric == pytest.approx(0.5)
    assert sum("update of far not counted: expected an update of about" in line for line in caplog.messages) == 1
    assert fl_ctx.get_peer_context() is None  # it would hold an update


def test_nor_does_it_count_towards_the_quorum(
    fl_ctx: FLContext, events: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert not gathering(["a", "b", "far"], 3, fl_ctx)._gather(2, Signal(), fl_ctx)
    assert EventType.FATAL_SYSTEM_ERROR in events
    assert "expected valid updates of 3 sites, came 2" in caplog.text
    assert "update of far not counted" in caplog.text


def test_grace_begins_after_so_many_valid_updates_however_many_others_came(fl_ctx: FLContext) -> None:
    """FLARE counts each answer. One that failed at once would give the others less time."""
    controller, asked = rounds(), Asked(least=2)
    assert not asked.answer(controller, "x", make_reply(ReturnCode.EXECUTION_EXCEPTION), fl_ctx)
    assert not asked.answer(controller, "a", guarded("a", 1.0, fl_ctx), fl_ctx)
    assert not asked.answer(controller, "y", update("y", 1.0, round_=1), fl_ctx)
    assert asked.answer(controller, "b", guarded("b", 1.0, fl_ctx), fl_ctx)


def test_one_that_is_left_out_for_its_length_does_not_begin_it_either(fl_ctx: FLContext) -> None:
    controller, asked = rounds(), Asked(least=3)
    controller._least = 3
    ended = [asked.answer(controller, site, guarded(site, LENGTHS[site], fl_ctx), fl_ctx) for site in sorted(LENGTHS)]
    assert ended == [False, False, True, True]
    controller, asked = rounds(), Asked(least=3)
    controller._least = 3
    ended = [asked.answer(controller, site, guarded(site, LENGTHS[site], fl_ctx), fl_ctx) for site in ("a", "far", "b")]
    assert ended == [False, False, False]
    assert asked.answer(controller, "c", guarded("c", 1.0, fl_ctx), fl_ctx)


def test_the_final_test_s_grace_begins_after_as_many_valid_reports(
    fl_ctx: FLContext, caplog: pytest.LogCaptureFixture
) -> None:
    evaluation, asked = FinalEvaluation(grace=0, timeout=0), Asked(least=2)
    good, bad = (DXO(DataKind.METRICS, data=data).to_shareable() for data in (TESTED, {"global": "Doe^John"}))
    assert not asked.answer(evaluation, "x", make_reply(ReturnCode.EXECUTION_EXCEPTION), fl_ctx)
    assert not asked.answer(evaluation, "a", make_copy(good), fl_ctx)
    assert not asked.answer(evaluation, "y", bad, fl_ctx)
    assert asked.answer(evaluation, "b", make_copy(good), fl_ctx)
    assert "final test of y failed: expected" in caplog.text


FORGED = "x\n2026-01-01 10:00:00,000 - pfedsam - ERROR - [server] expected a disk, came none"


def test_no_text_of_a_site_begins_a_line_of_the_log_or_the_record(
    fl_ctx: FLContext, caplog: pytest.LogCaptureFixture
) -> None:
    """The watcher obeys the lines of the server's log."""
    message = update("a", 1.0)
    message["DXO"]["kind"] = FORGED
    verdict = judge(message, fl_ctx)
    assert isinstance(verdict, Rejected)
    assert "WEIGHT_DIFF, came 'x\\n2026" in verdict.reason
    controller, evaluation = rounds(), FinalEvaluation(grace=1, timeout=1)
    for workflow in (controller, evaluation):
        workflow.process_result_of_unknown_task(Client("d", ""), FORGED * 9_999, "", update("d", 1.0), fl_ctx)
    answer(evaluation, "c", make_reply(FORGED), fl_ctx)
    answer(controller, "b", make_reply(f"{FORGED} [x=1]: y"), fl_ctx)
    answer(controller, "a", message, fl_ctx)
    assert len(caplog.messages) == 5
    for line in caplog.messages:
        assert len(line) < 400
        assert "\n" not in line
        assert "]: " not in line


@pytest.mark.parametrize(("trained", "bad"), [("", True), ("c", True), ("bc", False)])
def test_a_model_is_bad_if_the_training_diverges_at_more_sites_than_it_goes_well(
    fl_ctx: FLContext, events: list[str], trained: str, bad: bool
) -> None:
    """All answers are waited for, because one site's images may be at fault."""
    controller = rounds()
    for site in "abc":
        answer(controller, site, update(site, 1.0) if site in trained else make_reply(DIVERGED), fl_ctx)
    assert EventType.FATAL_SYSTEM_ERROR not in events
    assert bool(controller._diverged()) == bad
    if bad:
        assert f"{3 - len(trained)} of 3 sites where the training diverged: a, b" in controller._diverged()


def test_the_quorum_is_lower_only_where_sites_do_not_have_their_turn() -> None:
    controller = Rounds(3, 2, 0, 0)
    assert controller._quorum(asked=1, connected=3) == 1  # two sites train in other rounds
    assert controller._quorum(asked=1, connected=1) == 2  # one site alone is no federation of two
    assert controller._quorum(asked=3, connected=3) == 2
    assert Rounds(3, 3, 0, 0)._quorum(asked=1, connected=2) == 3  # too few are connected to wait for others' turn


def test_a_site_that_left_or_never_trains_does_not_lower_the_quorum(fl_ctx: FLContext, events: list[str]) -> None:
    controller = rounds()
    controller.persistor = fl_ctx.get_engine().get_component("persistor")
    controller.persistor.left_out = frozenset({"gone"})
    fl_ctx.get_engine().get_clients = lambda: [Client(name, "") for name in ("a", "gone")]
    controller.broadcast_and_wait = lambda **_: answer(controller, "a", update("a", 1.0), fl_ctx)
    assert not controller._gather(2, Signal(), fl_ctx)
    assert EventType.FATAL_SYSTEM_ERROR in events


def test_the_final_test_states_how_many_rounds_are_finished(fl_ctx: FLContext) -> None:
    """A site that missed the last round was told one round too few, and judged the model by that."""
    engine = fl_ctx.get_engine()
    engine.get_component("results").results = {"rounds": [{"round": round_, "sites": {}} for round_ in range(3)]}
    engine.get_component("persistor").left_out = frozenset()
    engine.get_clients = lambda: []
    test, told = FinalEvaluation(0, 0), []
    test.broadcast_and_wait = lambda task, **_: told.append(task.data.get_header(AppConstants.CURRENT_ROUND))
    test.control_flow(Signal(), fl_ctx)
    assert told == [3]
