"""The executor's tasks, called as FLARE calls them, on a real workspace."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace
from nvflare.private.privacy_manager import Scope

from pfedsam import methods
from pfedsam.errors import UserFault
from pfedsam.exchange.schema import REPORT, STAMP
from pfedsam.flare.context import RUN, TRAINED, ledger, places, setting
from pfedsam.flare.executor import PFedSAMExecutor, _started
from pfedsam.flare.filters import OnlyDeclaredEnters, OnlySharedLeaves
from pfedsam.flare.policy import SitePolicy
from pfedsam.settings import from_dict
from pfedsam.study import initial_shared
from pfedsam.tensors import digest

SETTINGS = {
    "model": {"image_size": 64, "experts": 2},
    "train": {"max_steps": 1, "precision": "fp32"},
    "data": {"source": "synthetic", "train": 2, "val": 1, "test": 1},
}


@pytest.fixture
def fl_ctx(tmp_path: Path) -> FLContext:
    for sub in ("startup", "local", "job/app_site-1/config"):
        (tmp_path / sub).mkdir(parents=True)
    (tmp_path / "job/app_site-1/config/pfedsam.json").write_text(json.dumps(SETTINGS))
    workspace = Workspace(str(tmp_path), site_name="site-1")
    context = FLContext()
    engine = SimpleNamespace(get_workspace=lambda: workspace, get_component=lambda _: None)
    context.set_prop(ReservedKey.ENGINE, engine, private=True, sticky=False)
    context.set_prop(ReservedKey.IDENTITY_NAME, "site-1", private=True, sticky=False)
    context.set_prop(FLContextKey.CURRENT_RUN, "job", private=True, sticky=False)
    context.set_prop(FLContextKey.SIMULATE_MODE, True, private=True, sticky=False)
    return context


def message(round_: int = 0, **stamp: str) -> Shareable:
    config = from_dict(SETTINGS)
    shared, base = initial_shared(config)
    values = {"config": config.digest(), "base": base, **stamp}
    task = DXO(DataKind.WEIGHTS, data=shared, meta={STAMP: values}).to_shareable()
    task.set_header("current_round", round_)
    task.set_header("num_rounds", 2)
    return task


def test_a_site_submits_no_model_outside_the_rounds_and_its_fence_lets_none_out(fl_ctx: FLContext) -> None:
    """A whole model would leave without the noise, the floors and the masks that an update has."""
    assert PFedSAMExecutor().execute("train", message(), fl_ctx, Signal()).get_return_code() == ReturnCode.OK
    reply = PFedSAMExecutor().execute("submit_model", Shareable(), fl_ctx, Signal())
    assert reply.get_return_code() == ReturnCode.TASK_UNKNOWN
    for fence in (OnlySharedLeaves(), SitePolicy(64, 1, 1)):
        with pytest.raises(ContentBlockedException, match=r"an update or metrics to leave, came .*WEIGHTS"):
            fence.process(message(), fl_ctx)


def test_a_server_with_another_base_is_answered_with_an_error_and_nothing_is_trained(
    fl_ctx: FLContext, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The fence knows no base of the site's own: the message's base was once compared with itself."""
    for task in ("train", "validate"):
        reply = PFedSAMExecutor().execute(task, message(base="0" * 64), fl_ctx, Signal())
        assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "the server's base model" in caplog.text
    assert not list(tmp_path.rglob("private.*"))


def test_a_site_that_lost_its_private_part_goes_on_as_drawn_only_where_it_says_so_itself(
    fl_ctx: FLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = message(1)
    task.set_header(RUN, "run")
    task.set_header(TRAINED, ["site-1", "site-2"])
    assert PFedSAMExecutor().execute("train", task, fl_ctx, Signal()).get_return_code() != ReturnCode.OK
    monkeypatch.setenv("PFEDSAM_FRESH", "run")
    assert PFedSAMExecutor().execute("train", task, fl_ctx, Signal()).get_return_code() == ReturnCode.OK


def test_a_private_tensor_put_into_a_message_is_blocked_at_the_site(fl_ctx: FLContext) -> None:
    reply = PFedSAMExecutor().execute("train", message(), fl_ctx, Signal())
    from_shareable(reply).data["encoder.units.1.attn.qkv.lora.mix.gate.score.weight"] = torch.ones(2, 4)
    with pytest.raises(Exception, match="not declared"):
        OnlySharedLeaves().process(reply, fl_ctx)


def test_anything_but_tensors_and_metrics_is_blocked(fl_ctx: FLContext) -> None:
    with pytest.raises(Exception, match="an update or metrics"):
        OnlySharedLeaves().process(DXO(DataKind.APP_DEFINED, data={"x": 1}).to_shareable(), fl_ctx)
    with pytest.raises(Exception, match="DXO"):
        OnlySharedLeaves().process(Shareable({"images": b"..."}), fl_ctx)


def test_a_message_of_another_job_s_settings_does_not_enter(fl_ctx: FLContext) -> None:
    assert OnlyDeclaredEnters().process(message(), fl_ctx) is not None
    with pytest.raises(Exception, match="expected config"):
        OnlyDeclaredEnters().process(message(config="0" * 64), fl_ctx)


def test_an_aborted_round_answers_so(fl_ctx: FLContext) -> None:
    stop = Signal()
    stop.trigger("admin")
    reply = PFedSAMExecutor().execute("train", message(), fl_ctx, stop)
    assert reply.get_return_code() == ReturnCode.TASK_ABORTED


def test_an_unknown_task_answers_so(fl_ctx: FLContext) -> None:
    assert (
        PFedSAMExecutor().execute("dance", Shareable(), fl_ctx, Signal()).get_return_code() == ReturnCode.TASK_UNKNOWN
    )


def test_the_site_s_policy_wins_over_the_environment(fl_ctx: FLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFEDSAM_DATA", "/from/environment")
    config = from_dict({})
    assert places(fl_ctx, "site-1", config).data == Path("/from/environment")
    fl_ctx.set_prop(FLContextKey.SCOPE_PROPERTIES, {"data": "/from/policy"}, private=True, sticky=False)
    assert places(fl_ctx, "site-1", config).data == Path("/from/policy")


def test_a_variable_that_flare_left_unresolved_is_refused(fl_ctx: FLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFEDSAM_DATA", "{$HOSPITAL}/site-1")
    with pytest.raises(UserFault, match="variable"):
        setting(fl_ctx, "data")


def test_the_fence_lets_a_legal_update_out_up_to_its_size(fl_ctx: FLContext) -> None:
    reply = PFedSAMExecutor().execute("train", message(), fl_ctx, Signal())
    out, before = from_shareable(SitePolicy(8, 1, 1).process(reply, fl_ctx)), from_shareable(reply)
    assert all(torch.equal(out.data[n], t) for n, t in before.data.items())
    assert out.get_meta_props() == before.get_meta_props()
    with pytest.raises(Exception, match=r"at most 0.1 MB to leave at once, came \d"):
        SitePolicy(0.1, 1, 1).process(reply, fl_ctx)


def test_a_site_that_asks_for_privacy_sends_nothing_in_a_job_without_it(fl_ctx: FLContext) -> None:
    reply = PFedSAMExecutor().execute("train", message(), fl_ctx, Signal())
    with pytest.raises(Exception, match=r"privacy\.epsilon of at most 8 and .*, came unit none"):
        SitePolicy(8, 1, 1, most_epsilon=8).process(reply, fl_ctx)
    fence = SitePolicy(most_epsilon=8)
    with pytest.raises(Exception, match="came unit patient, epsilon 9"):
        fence.require_privacy(from_dict({"model": {"experts": 0}, "privacy": {"unit": "patient", "epsilon": 9.0}}))
    fence.require_privacy(from_dict({"model": {"experts": 0}, "privacy": {"unit": "patient", "epsilon": 8.0}}))


def test_the_fence_is_asked_before_a_round_trains_and_pays(fl_ctx: FLContext, caplog: pytest.LogCaptureFixture) -> None:
    scope = Scope()
    scope.task_result_filters[FilterKey.OUT].append(SitePolicy(64, 1, 1, most_epsilon=8))
    fl_ctx.set_prop(FLContextKey.SCOPE_OBJECT, scope, private=True, sticky=False)
    reply = PFedSAMExecutor().execute("train", message(), fl_ctx, Signal())
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "privacy.epsilon of at most 8 and privacy.delta of at most 1e-05, came unit none" in caplog.text
    assert "round 1" not in caplog.text
    large = from_dict({"model": {"experts": 0}, "privacy": {"unit": "patient", "epsilon": 8.0, "delta": 1e-4}})
    with pytest.raises(ContentBlockedException, match=r"and delta 0\.0001"):
        SitePolicy(most_epsilon=8).require_privacy(large)


@pytest.mark.parametrize(("privacy", "came"), [({"epsilon": 50.1}, "epsilon 50.1"), ({"delta": 1e-3}, "delta 0.001")])
def test_a_job_whose_rounds_draw_their_patients_needs_a_small_budget_in_the_place_of_the_floors(
    privacy: dict[str, float], came: str
) -> None:
    """Half of such rounds saw fewer than eight images, and to refuse these would tell what chance drew."""
    job = {"model": {"experts": 0}, "train": {"batch_size": 1, "max_steps": 8}}
    drawn = from_dict({**job, "privacy": {"unit": "patient", "epsilon": 50.0, **privacy}})
    with pytest.raises(ContentBlockedException, match=rf"unit patient, .* at most 50 and .* at most 1e-05, .*{came}"):
        SitePolicy().require(drawn, 60)
    SitePolicy(most_epsilon=60, most_delta=1e-3).require(drawn, 60)  # the administrator's choice
    SitePolicy().require(from_dict({**job, "privacy": {"unit": "patient", "epsilon": 50.0}}), 60)
    SitePolicy().require(from_dict({**job, "privacy": {"unit": "site", "epsilon": 1e6}}), 60)  # the floors hold there


def fenced(fl_ctx: FLContext, fence: SitePolicy) -> None:
    """Put the site behind a fence of its own."""
    scope = Scope()
    scope.task_result_filters[FilterKey.OUT].append(fence)
    fl_ctx.set_prop(FLContextKey.SCOPE_OBJECT, scope, private=True, sticky=False)


def test_an_update_of_one_patient_does_not_leave_however_many_images_it_saw(
    fl_ctx: FLContext, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job can limit a site to one image, which may be a volume of many slices, and a seed says which."""
    executor = PFedSAMExecutor()
    train = executor._open(fl_ctx).data["train"]
    fenced(fl_ctx, SitePolicy(64, 1, 1))
    assert executor.execute("train", message(), fl_ctx, Signal()).get_return_code() == ReturnCode.OK
    train.slices[:] = [replace(one, group="one") for one in train.slices]
    assert executor.execute("train", message(), fl_ctx, Signal()).get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "expected an update of at least 2 patients, came 1" in caplog.text
    fenced(fl_ctx, SitePolicy(64, 1, 1, least_patients=1))
    assert executor.execute("train", message(), fl_ctx, Signal()).get_return_code() == ReturnCode.OK


def test_scores_of_fewer_patients_than_the_fence_says_do_not_leave(
    fl_ctx: FLContext, caplog: pytest.LogCaptureFixture
) -> None:
    executor = PFedSAMExecutor()
    fenced(fl_ctx, SitePolicy(64, 1, 1, least_tested=2))
    for task in ("train", "validate"):
        assert executor.execute(task, message(), fl_ctx, Signal()).get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert caplog.text.count("expected scores of at least 2 patients with each class in each split, came 1") == 2


def test_a_job_asks_a_site_for_few_final_tests(
    fl_ctx: FLContext, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer shows how one more model sees the same patients. Noise that no run ever made was scored too."""
    asked: list[int] = []
    monkeypatch.setattr("pfedsam.flare.executor.serve_test", lambda *_: asked.append(1) or {})
    codes = [PFedSAMExecutor().execute("validate", message(), fl_ctx, Signal()).get_return_code() for _ in range(5)]
    assert codes == [ReturnCode.OK] * 3 + [ReturnCode.EXECUTION_EXCEPTION] * 2
    assert len(asked) == 3
    assert caplog.text.count("expected at most 3 final tests in a job; came one more; to mend it: ask") == 2


def numbers(value: object) -> list[float]:
    """All numbers within a report."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [*filter(lambda one: isinstance(one, float), [value]), *(found for one in inner for found in numbers(one))]


def test_scores_leave_a_site_with_four_digits(fl_ctx: FLContext) -> None:
    """With all digits an IoU of one case was a whole number of pixels over those of the image."""
    report = from_shareable(PFedSAMExecutor().execute("train", message(), fl_ctx, Signal())).get_meta_prop(REPORT)
    tested = from_shareable(PFedSAMExecutor().execute("validate", message(), fl_ctx, Signal())).data
    told = numbers([tested, *(report[key] for key in ("val", "before", "experts"))])
    assert len(told) > 20
    assert told == [round(one, 4) for one in told]


def test_what_a_method_makes_of_images_leaves_only_if_the_fence_permits_it(
    fl_ctx: FLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = PFedSAMExecutor().execute("train", message(), fl_ctx, Signal())
    made = replace(methods.get("pfedsam"), derived=frozenset({"spectra"}))
    monkeypatch.setattr(methods, "get", lambda _: made)
    with pytest.raises(Exception, match="nothing made of images, came pfedsam with spectra"):
        SitePolicy(8, 1, 1).process(reply, fl_ctx)
    with pytest.raises(ContentBlockedException, match=r"a method that limits .*; came pfedsam"):
        SitePolicy(8, 1, 1, derived=True).process(reply, fl_ctx)
    own = type(from_dict(SETTINGS).method_settings)
    monkeypatch.setattr(own, "hold_derived", lambda _own, _config: None, raising=False)
    assert from_shareable(SitePolicy(8, 1, 1, derived=True).process(reply, fl_ctx)).data


@pytest.mark.parametrize(("images", "steps", "leaves"), [(1, 1, True), (3, 1, False), (1, 2, False)])
def test_an_update_of_too_few_images_or_steps_does_not_leave_whatever_the_job_says(
    fl_ctx: FLContext, images: int, steps: int, leaves: bool
) -> None:
    """The job here trains one step on two images."""
    reply, fence = PFedSAMExecutor().execute("train", message(), fl_ctx, Signal()), SitePolicy(64, images, steps)
    if leaves:
        assert from_shareable(fence.process(reply, fl_ctx)).data
        return
    with pytest.raises(Exception, match=rf"at least {images} training images and {steps} steps, came 2 and 1"):
        fence.process(reply, fl_ctx)
    assert [line["direction"] for line in ledger(fl_ctx, from_dict(SETTINGS)).lines()] == ["in"]


@pytest.mark.parametrize("task", ["train", "validate"])
@pytest.mark.parametrize("filtered", [True, False])
def test_what_enters_is_checked_and_has_one_line_in_the_ledger_also_if_the_job_left_the_filter_out(
    fl_ctx: FLContext, caplog: pytest.LogCaptureFixture, task: str, filtered: bool
) -> None:
    def execute(sent: Shareable) -> str:
        enter = OnlyDeclaredEnters().process if filtered else lambda came, _: came
        return str(PFedSAMExecutor().execute(task, enter(sent, fl_ctx), fl_ctx, Signal()).get_return_code())

    assert execute(message()) == ReturnCode.OK
    assert [line["direction"] for line in ledger(fl_ctx, from_dict(SETTINGS)).lines()] == ["in"]
    if not filtered:
        wide = message()
        dxo = from_shareable(wide)
        dxo.data = {name: tensor.double() for name, tensor in dxo.data.items()}
        assert execute(dxo.update_shareable(wide)) == ReturnCode.EXECUTION_EXCEPTION
        assert "torch.float32 at" in caplog.text


def test_the_images_of_a_round_are_those_that_its_steps_see(fl_ctx: FLContext) -> None:
    job = from_dict({**SETTINGS, "model": {"experts": 0}, "train": {"max_steps": 4, "batch_size": 1}})
    SitePolicy(least_images=4).require(job, 1000)
    with pytest.raises(ContentBlockedException, match="at least 5 training images and 4 steps, came 4 and 4"):
        SitePolicy(least_images=5).require(job, 1000)


def test_images_without_a_label_do_not_raise_an_update_over_the_floor(
    fl_ctx: FLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**SETTINGS, "method": "fedsemidg", "model": {"image_size": 64, "experts": 0, "experts_rank": 0}}
    config["data"] = {**SETTINGS["data"], "train": 4, "unlabelled": {"site-1": 0.75}}
    path = Path(fl_ctx.get_workspace().get_app_config_dir("job")) / "pfedsam.json"
    path.write_text(json.dumps(config))
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("pfedsam.flare.executor.ask_fences", lambda _ctx, _config, **seen: asked.append(seen))
    shared, base = initial_shared(from_dict(config))
    task = DXO(DataKind.WEIGHTS, data=shared, meta={STAMP: {"config": from_dict(config).digest(), "base": base}})
    PFedSAMExecutor().execute("train", task.to_shareable(), fl_ctx, Signal())
    assert asked[0].pop("tested")() == 1
    assert asked == [{"images": 1, "seen": 1, "patients": 1}]
    fence = SitePolicy(least_images=8, least_patients=1)
    fence.require_seen(8, 1)
    with pytest.raises(ContentBlockedException, match="at least 8 training images, came 4 that the round's steps see"):
        fence.require_seen(4, 1)  # as where every other view has no label


def test_all_tasks_of_a_job_are_of_one_run(fl_ctx: FLContext, caplog: pytest.LogCaptureFixture) -> None:
    task = message()
    task.set_header(RUN, "first")
    assert PFedSAMExecutor().execute("train", task, fl_ctx, Signal()).get_return_code() == ReturnCode.OK
    task.set_header(RUN, "other")
    for name in ("train", "validate"):
        assert PFedSAMExecutor().execute(name, task, fl_ctx, Signal()).get_return_code() != ReturnCode.OK
    assert caplog.text.count("expected run first in all tasks of the job; came other") == 2


@pytest.mark.parametrize(("name", "value"), [(RUN, "r" * 200), (RUN, "../x"), ("current_round", "1" * 200)])
def test_what_a_message_says_of_itself_is_checked_before_the_ledger_has_it(
    fl_ctx: FLContext, name: str, value: str
) -> None:
    task = message()
    task.set_header(name, value)
    with pytest.raises(ContentBlockedException):
        OnlyDeclaredEnters().process(task, fl_ctx)
    assert not ledger(fl_ctx, from_dict(SETTINGS)).path.exists()


def test_the_fence_stops_what_is_not_declared(fl_ctx: FLContext) -> None:
    reply = PFedSAMExecutor().execute("train", message(), fl_ctx, Signal())
    from_shareable(reply).data["an.expert"] = torch.ones(3)
    with pytest.raises(Exception, match="not declared"):
        SitePolicy().process(reply, fl_ctx)
    with pytest.raises(Exception, match="an update or metrics"):
        SitePolicy().process(DXO(DataKind.APP_DEFINED, data={"images": b"..."}).to_shareable(), fl_ctx)
    refusal = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    refusal["images"] = b"..."
    passed = SitePolicy().process(refusal, fl_ctx)
    assert passed.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "images" not in passed


def test_the_fence_lets_nothing_out_beside_what_it_has_checked(fl_ctx: FLContext) -> None:
    reply = PFedSAMExecutor().execute("train", message(), fl_ctx, Signal())
    reply["more"] = torch.ones(3)
    assert "more" not in SitePolicy(64, 1, 1).process(reply, fl_ctx)
    smuggled = DXO(DataKind.METRICS, data={"dice": torch.ones(9)}).to_shareable()
    with pytest.raises(Exception, match="numbers and texts"):
        SitePolicy().process(smuggled, fl_ctx)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"dice": "x" * 201}, "texts of at most 200 characters"),
        ({"x" * 201: 0.5}, "texts of at most 200 characters"),
        ({"dice": ["x" * 100] * 400}, "characters beside the tensors"),
        ({"dice": [0.123456789] * 4000}, "characters beside the tensors"),
    ],
)
@pytest.mark.parametrize("fence", [SitePolicy, OnlySharedLeaves])
def test_metrics_that_carry_a_picture_s_bytes_do_not_leave(fl_ctx: FLContext, fence: type, data: dict, reason: str):
    with pytest.raises(Exception, match=reason):
        fence().process(DXO(DataKind.METRICS, data=data).to_shareable(), fl_ctx)


def ledger_lines(fl_ctx: FLContext) -> list[dict]:
    """The lines of what left."""
    return [line for line in ledger(fl_ctx, from_dict(SETTINGS)).lines() if line["direction"] == "out"]


def test_the_hospital_s_fence_writes_the_ledger_whatever_the_job_s_filters_and_each_message_once(
    fl_ctx: FLContext,
) -> None:
    reply = PFedSAMExecutor().execute("train", message(), fl_ctx, Signal())
    sent = SitePolicy(64, 1, 1).process(reply, fl_ctx)
    (line,) = ledger_lines(fl_ctx)
    assert (line["direction"], line["round"]) == ("out", 0)
    assert line["sha256"] == digest(from_shareable(sent).data)
    assert "samples" in line["facts"][REPORT]
    OnlySharedLeaves().process(sent, fl_ctx)
    assert len(ledger_lines(fl_ctx)) == 1
    OnlySharedLeaves().process(reply, fl_ctx)
    assert len(ledger_lines(fl_ctx)) == 2


def test_what_cannot_be_noted_does_not_leave(fl_ctx: FLContext, caplog: pytest.LogCaptureFixture) -> None:
    reply = PFedSAMExecutor().execute("train", message(), fl_ctx, Signal())
    path = ledger(fl_ctx, from_dict(SETTINGS)).path
    path.unlink()
    path.symlink_to("/dev/full")
    for fence in (SitePolicy(64, 1, 1), OnlySharedLeaves()):
        blocked = fence.process(reply, fl_ctx)
        assert blocked.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
        assert "DXO" not in blocked
    with pytest.raises(Exception, match="free space"):
        OnlyDeclaredEnters().process(message(), fl_ctx)
    assert caplog.text.count("free space") == 3


@pytest.mark.parametrize("task", ["train", "validate"])
def test_a_message_of_a_run_whose_name_leads_elsewhere_is_not_served(fl_ctx: FLContext, task: str) -> None:
    harmful = message()
    harmful.set_header(RUN, "x/../../../../outside")
    reply = PFedSAMExecutor().execute(task, harmful, fl_ctx, Signal())
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION


def test_a_damaged_note_of_the_job_s_start_costs_an_estimate_and_no_round(tmp_path: Path) -> None:
    """A full disk had left it empty, and each later round failed."""
    begun = _started(tmp_path, 3)
    assert _started(tmp_path, 5) == begun
    for text in ("", "[1.0", "[1.0]", "{}", "null"):
        (tmp_path / "started.json").write_text(text)
        assert _started(tmp_path, 5)[1] == 5


def test_nor_does_a_disk_that_takes_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pfedsam.files.os.fsync", full)
    monkeypatch.setattr(Path, "write_text", full)
    assert _started(tmp_path, 3)[1] == 3
    assert list(tmp_path.iterdir()) == []
