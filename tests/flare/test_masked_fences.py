"""Masked sums at the fences of both sides, with real kits' certificates, and when sites are lost between two steps."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from federation import Federation
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import Task
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.bcast_manager import _KEY_MIN_RESPS, BcastTaskManager
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace

from pfedsam.config import ServerConfig
from pfedsam.errors import UserFault
from pfedsam.exchange.guard import Accepted
from pfedsam.exchange.masked_site import Identity, MaskedSite, Secret
from pfedsam.exchange.masked_sum import MaskedSum
from pfedsam.exchange.schema import STAMP, Stamp
from pfedsam.exchange.server import ServerState
from pfedsam.flare.context import REASON, ledger
from pfedsam.flare.executor import PFedSAMExecutor
from pfedsam.flare.filters import OnlyDeclaredEnters, OnlySharedLeaves, UpdateGuard
from pfedsam.flare.identity import CLIENT, Kit, identity_of
from pfedsam.flare.masking import TRIES, Masking
from pfedsam.flare.policy import SitePolicy
from pfedsam.flare.steps import ATTEMPT, THERE, step_dxo
from pfedsam.settings import from_dict
from pfedsam.study import initial_shared, up_schema
from pfedsam.umask import private_files

PLAIN: dict[str, Any] = {
    "model": {"image_size": 64, "experts": 2},
    "train": {"max_steps": 1, "precision": "fp32"},
    "data": {"source": "synthetic", "train": 2, "val": 1, "test": 1},
}
SETTINGS = {**PLAIN, "server": {"rule": "mean", "secure": "masks"}}
CONFIG = from_dict(SETTINGS)
RUN = "run/0/x"


def context_of(folder: Path, settings: dict[str, Any]) -> FLContext:
    for sub in ("startup", "local", "job/app_site-1/config"):
        (folder / sub).mkdir(parents=True)
    (folder / "job/app_site-1/config/pfedsam.json").write_text(json.dumps(settings))
    workspace = Workspace(str(folder), site_name="site-1")
    parts = SimpleNamespace(base="base", run="run", results={"rounds": []}, state=ServerState({}))
    parts.as_before = lambda *_: Accepted()
    engine = SimpleNamespace(get_workspace=lambda: workspace, get_component=lambda _: parts)
    context = FLContext()
    for key, value in (
        (ReservedKey.ENGINE, engine),
        (ReservedKey.IDENTITY_NAME, "site-1"),
        (FLContextKey.CURRENT_RUN, "job"),
        ("current_round", 0),
    ):
        context.set_prop(key, value, private=True, sticky=False)
    return context


@pytest.fixture
def fl_ctx(tmp_path: Path) -> FLContext:
    return context_of(tmp_path / "site-1", SETTINGS)


def asked(step: str, found: MaskedSum, there: tuple[str, ...] = (), **stamp: Any) -> Shareable:
    values = {"round": 0, "config": CONFIG.digest(), "base": "base", **stamp}
    task = step_dxo(step, found.question(step), Stamp(**values)).to_shareable()
    task.set_header("current_round", 0)
    task.set_header(ATTEMPT, found.attempt)
    task.set_header(THERE, list(there))
    return task


def model(**headers: str) -> Shareable:
    shared, base = initial_shared(CONFIG)
    task = DXO(DataKind.WEIGHTS, data=shared, meta={STAMP: {"config": CONFIG.digest(), "base": base}}).to_shareable()
    for name, value in {"current_round": 0, "num_rounds": 1, **headers}.items():
        task.set_header(name, value)
    return task


def served(step: str, task: Shareable, fl_ctx: FLContext) -> Any:
    """What site-1 answers: a task through all fences, and its tensors."""
    fl_ctx.set_prop(FLContextKey.TASK_NAME, step, private=True, sticky=False)
    entered = OnlyDeclaredEnters().process(task, fl_ctx)
    reply = PFedSAMExecutor().execute(step, entered, fl_ctx, Signal())
    return from_shareable(SitePolicy(64, 1, 1, masked=True).process(reply, fl_ctx)).data


def test_a_site_goes_through_all_steps_and_the_ledger_has_each(fl_ctx: FLContext, tmp_path: Path) -> None:
    """site-2 and site-3 are not behind FLARE, and send an update of zeros."""
    others = {name: MaskedSite(name, CONFIG.server, path=tmp_path / name) for name in ("site-2", "site-3")}
    found = MaskedSum(RUN, CONFIG.server)
    found.take("keys", "site-1", served("keys", asked("keys", found), fl_ctx))
    for name, other in others.items():
        found.take("keys", name, other.keys(RUN, 2))
    found.take("shares", "site-1", served("shares", asked("shares", found), fl_ctx))
    for name, other in others.items():
        found.take("shares", name, other.deal(RUN, found.question("shares")))
    words = {"site-1": served("train", model(**{ATTEMPT: RUN}), fl_ctx)}
    zeros = {name: torch.zeros(tensor.shape) for name, tensor in words["site-1"].items()}
    words |= {name: other.mask(RUN, zeros) for name, other in others.items()}
    there = ("site-1", "site-2", "site-3")
    found.take("open", "site-1", served("open", asked("open", found, there), fl_ctx))
    found.take("open", "site-2", others["site-2"].open(RUN, found.question("open"), there))
    given = {name: SimpleNamespace(update=one, samples=2) for name, one in words.items()}
    mean = found.contribution(given, up_schema(CONFIG)).update
    trained = max(float(tensor.abs().max()) for tensor in mean.values())
    assert 0 < trained < 0.01
    lines = list(ledger(fl_ctx, CONFIG).lines())
    tasks = ["keys", "shares", "train", "open"]
    assert [(line["task"], line["direction"]) for line in lines] == [(t, d) for t in tasks for d in ("in", "out")]
    assert lines[-2]["facts"]["there"] == list(there)


def test_a_model_and_an_update_without_its_mask_do_not_leave_a_masked_job(fl_ctx: FLContext) -> None:
    shared, _ = initial_shared(CONFIG)
    stamp = {"round": 0, "config": CONFIG.digest(), "base": "base"}
    plain = DXO(DataKind.WEIGHT_DIFF, data=shared, meta={STAMP: stamp}).to_shareable()
    bare = {name: torch.ones(tensor.shape, dtype=torch.int32) for name, tensor in shared.items()}
    unmasked = DXO(DataKind.WEIGHT_DIFF, data=bare, meta={STAMP: stamp}).to_shareable()
    whole = DXO(DataKind.WEIGHTS, data=shared, meta={STAMP: stamp}).to_shareable()
    for fence in (OnlySharedLeaves(), SitePolicy(64, 1, 1)):
        with pytest.raises(Exception, match=r"torch.int32 at .* came torch.float32"):
            fence.process(plain, fl_ctx)
        with pytest.raises(Exception, match="expected words that look random, came 100%"):
            fence.process(unmasked, fl_ctx)
        with pytest.raises(Exception, match=r"an update or metrics to leave, came .*WEIGHTS"):
            fence.process(whole, fl_ctx)


def test_a_site_that_wants_masks_lets_nothing_of_a_plain_job_out(tmp_path: Path) -> None:
    """A server with changed software could submit a job without masks."""
    context, config = context_of(tmp_path / "plain", PLAIN), from_dict(PLAIN)
    shared, _ = initial_shared(config)
    meta = {STAMP: {"round": 0, "config": config.digest(), "base": "base"}, "NUM_STEPS_CURRENT_ROUND": 2}
    message = DXO(DataKind.WEIGHT_DIFF, data=shared, meta=meta).to_shareable()
    assert SitePolicy(64, 1, 1).process(message, context)
    with pytest.raises(Exception, match=r"a job with server\.secure masks, came one with plain updates"):
        SitePolicy(64, 1, 1, masked=True).process(message, context)


def test_a_step_with_anything_else_in_it_neither_leaves_nor_enters(fl_ctx: FLContext, tmp_path: Path) -> None:
    member, found = MaskedSite("site-1", CONFIG.server, path=tmp_path / "secret"), MaskedSum(RUN, CONFIG.server)
    stamp = Stamp(0, CONFIG.digest(), "base")
    keys = member.keys(RUN, 2)
    assert OnlySharedLeaves().process(step_dxo("keys", keys, stamp).to_shareable(), fl_ctx)
    for tensors in ({**keys, "an.expert": torch.ones(3)}, {**keys, "agree": torch.ones(9)}):
        with pytest.raises(Exception, match=r"not declared|expected shape"):
            OnlySharedLeaves().process(step_dxo("keys", tensors, stamp).to_shareable(), fl_ctx)
    smuggled = step_dxo("keys", keys, stamp)
    smuggled.set_meta_prop("note", "x")
    assert "note" not in from_shareable(OnlySharedLeaves().process(smuggled.to_shareable(), fl_ctx)).get_meta_props()
    with pytest.raises(Exception, match="expected config"):
        OnlyDeclaredEnters().process(asked("keys", found, config="0" * 64), fl_ctx)
    long = asked("keys", found)
    long.set_header(THERE, ["x" * 300])
    with pytest.raises(Exception, match="texts of at most 200"):
        OnlyDeclaredEnters().process(long, fl_ctx)


def test_a_plain_job_knows_no_steps(tmp_path: Path) -> None:
    context = context_of(tmp_path / "plain", PLAIN)
    config = from_dict(PLAIN)
    keys = MaskedSite("site-1", ServerConfig(), path=tmp_path / "secret").keys(RUN, 2)
    message = step_dxo("keys", keys, Stamp(0, config.digest(), "base")).to_shareable()
    with pytest.raises(Exception, match="an update or metrics to leave"):
        OnlySharedLeaves().process(message, context)
    context.set_prop(FLContextKey.TASK_NAME, "keys", private=True, sticky=False)
    with pytest.raises(Exception, match="a message of step keys"):
        UpdateGuard().process(message, context)


def test_a_site_does_not_train_for_a_sum_that_it_has_not_agreed_on(
    fl_ctx: FLContext, caplog: pytest.LogCaptureFixture
) -> None:
    reply = PFedSAMExecutor().execute("train", model(**{ATTEMPT: RUN}), fl_ctx, Signal())
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "expected attempt run/0/x after dealt; came none" in caplog.text


def test_a_step_without_tensors_or_attempt_is_answered_with_an_error_in_words(
    fl_ctx: FLContext, caplog: pytest.LogCaptureFixture
) -> None:
    for step in ("keys", "shares", "open"):
        reply = PFedSAMExecutor().execute(step, Shareable(), fl_ctx, Signal())
        assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert caplog.text.count("expected a task with the server's tensors") == 3


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    found = Federation(tmp_path_factory.mktemp("kits") / "federation")
    found.prepare("provisioned", byoc=False)
    return found


@pytest.mark.flare
def test_keys_are_signed_with_a_kit_and_nobody_else_s_certificate_counts(kits: Federation) -> None:
    one, other = (Kit.read(kits.kit(site) / "startup") for site in ("hospital-a", "hospital-b"))
    signature, certificate = one.sign(b"text")
    assert other.fault("hospital-a", b"text", signature, certificate) is None
    assert "does not hold" in str(other.fault("hospital-a", b"other", signature, certificate))
    assert "does not hold" in str(other.fault("hospital-a", b"text", b"", b""))
    assert other.fault("hospital-b", b"text", signature, certificate) == "the certificate of hospital-a"
    server, person = kits.kit("fl-server") / "startup", next(kits.kit("hospital-a").parent.glob("*@*")) / "startup"
    forged = replace(one, key=server / "server.key", certificate=server / "server.crt").sign(b"text")
    assert other.fault("fl-server", b"text", *forged) == "the certificate of fl-server, a server"
    forged = replace(one, key=person / "client.key", certificate=person / "client.crt").sign(b"text")
    assert "a person" in str(other.fault(person.parent.name, b"text", *forged))


@pytest.mark.flare
def test_a_certificate_of_another_federation_does_not_count(kits: Federation, tmp_path: Path) -> None:
    stranger = Federation(tmp_path / "federation")
    stranger.prepare("provisioned", byoc=False)
    forged = Kit.read(stranger.kit("hospital-a") / "startup").sign(b"text")
    assert "does not hold" in str(Kit.read(kits.kit("hospital-b") / "startup").fault("hospital-a", b"text", *forged))


@pytest.mark.flare
def test_keys_that_a_site_has_not_signed_do_not_come_on_the_roster(
    kits: Federation, fl_ctx: FLContext, tmp_path: Path
) -> None:
    """Else all others refuse that roster, and look guilty."""
    startup = kits.kit("hospital-a") / "startup"
    shutil.copy(kits.kit("fl-server") / "startup/rootCA.pem", fl_ctx.get_workspace().get_startup_kit_dir())
    kit = Kit.read(startup)
    member = MaskedSite("hospital-a", CONFIG.server, path=tmp_path / "a", identity=Identity(kit.sign, kit.fault))
    found, refused = MaskedSum(RUN, CONFIG.server), []
    masking = Masking(Line(tmp_path), grace=0, timeout=0, refuse=lambda site, *_: refused.append(site))
    task = Task("keys", Shareable())
    BcastTaskManager(task, 3)
    keys = member.keys(RUN, 2)
    for site, told in (("hospital-a", {**keys, "signature": keys["seal"]}), ("hospital-b", keys), ("hospital-a", keys)):
        answer = step_dxo("keys", told, Stamp(0, CONFIG.digest(), "base")).to_shareable()
        masking._received("keys", found, SimpleNamespace(client=Client(site, ""), result=answer, task=task), fl_ctx)
    assert refused == ["hospital-a", "hospital-b"]
    assert "expected keys that hospital-b has signed, came a signature" in fl_ctx.get_prop(REASON)
    assert found.roster.keys() == {"hospital-a"}


def test_a_kit_without_its_key_is_refused_and_no_kit_is_told(
    fl_ctx: FLContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert identity_of(fl_ctx).sign(b"text") == (b"", b"")
    assert "no startup kit here" in caplog.text
    names = {"ssl_private_key": "client.key", "ssl_cert": "client.crt", "ssl_root_cert": "rootCA.pem"}
    (tmp_path / CLIENT).write_text(json.dumps({"client": names, "servers": []}))
    with pytest.raises(UserFault, match="a key and certificates in the startup kit"):
        Kit.read(tmp_path)


class Line:
    """Brings the tasks of a controller to sites in this process, and their answers back. `lost` says who is silent."""

    def __init__(self, folder: Path, lost: Callable[[str, str], bool] = lambda *_: False, *, answer: str = "") -> None:
        self.sites = {f"site-{i}": MaskedSite(f"site-{i}", CONFIG.server, path=folder / f"{i}") for i in range(1, 5)}
        self.lost, self.answer, self.asked, self.least = lost, answer, [], []
        self.waited: list[int] = []  # how many answers each task waited for at its end, before grace could begin

    def broadcast_and_wait(self, task: Any, fl_ctx: FLContext, targets: list[str], **limits: Any) -> None:
        self.asked.append((task.name, list(targets)))
        self.least.append(limits["min_responses"])
        BcastTaskManager(task, limits["min_responses"])
        for site in targets:
            if not self.lost(task.name, site):
                told = self.reply(task, site)
                task.result_received_cb(SimpleNamespace(client=Client(site, ""), result=told, task=task), fl_ctx)
        self.waited.append(task.props[_KEY_MIN_RESPS])

    def reply(self, task: Any, site: str) -> Shareable:
        if self.answer == site:
            return make_reply(ReturnCode.EXECUTION_EXCEPTION)
        member, attempt, tensors = self.sites[site], task.data.get_header(ATTEMPT), from_shareable(task.data).data
        if task.name == "keys":
            told = member.keys(attempt, 2)
        elif task.name == "shares":
            told = member.deal(attempt, tensors)
        else:
            told = member.open(attempt, tensors, task.data.get_header(THERE))
        return step_dxo(task.name, told, Stamp(0, CONFIG.digest(), "base")).to_shareable()


ALL = ["site-1", "site-2", "site-3", "site-4"]


def test_sites_agree_in_two_steps_and_open_in_one(fl_ctx: FLContext, tmp_path: Path) -> None:
    line = Line(tmp_path)
    masking = Masking(line, grace=0, timeout=0, refuse=lambda *_: None)
    found = masking.agree(ALL, 2, Signal(), fl_ctx)
    assert sorted(found.roster) == ALL
    for site in ALL[:3]:
        line.sites[site].mask(found.attempt, {"t": torch.ones(4)})
    assert masking.open(found, ALL[:3], Signal(), fl_ctx)
    assert line.asked == [("keys", ALL), ("shares", ALL), ("open", ALL[:3])]


def test_a_site_that_is_lost_before_its_shares_costs_the_others_fresh_keys(
    fl_ctx: FLContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = Line(tmp_path, lambda step, site: step == "shares" and site == "site-4")
    found = Masking(line, grace=0, timeout=0, refuse=lambda *_: None).agree(ALL, 2, Signal(), fl_ctx)
    assert sorted(found.roster) == ALL[:3]
    assert line.asked == [("keys", ALL), ("shares", ALL), ("keys", ALL[:3]), ("shares", ALL[:3])]
    assert line.least == [3, 3, 3, 3]  # so nobody waits for its shares until the timeout
    assert "site-4 sealed no shares in time" in caplog.text


@pytest.mark.parametrize("answer", [make_reply(ReturnCode.EXECUTION_EXCEPTION), Shareable()])
def test_a_step_waits_for_one_more_answer_for_each_that_is_refused(
    answer: Shareable, fl_ctx: FLContext, tmp_path: Path
) -> None:
    line = Line(tmp_path)
    line.reply = lambda task, site: answer if site == "site-1" else Line.reply(line, task, site)
    assert Masking(line, grace=0, timeout=0, refuse=lambda *_: None).agree(ALL, 2, Signal(), fl_ctx)
    assert line.least == [3, 3]
    assert line.waited == [4, 3]  # without site-1 there are no shares to wait for


def test_a_step_s_answer_that_raises_costs_no_other_site_the_step(fl_ctx: FLContext, tmp_path: Path) -> None:
    line, refused = Line(tmp_path), []
    code: list[Any] = []
    for _ in range(100_000):
        code = [code]
    line.reply = lambda task, site: make_reply(code) if site == "site-4" else Line.reply(line, task, site)
    masking = Masking(line, grace=0, timeout=0, refuse=lambda site, told, _: refused.append((site, told)))
    found = masking.agree(ALL, 2, Signal(), fl_ctx)
    assert refused == [("site-4", "no return code")]
    for site in ALL[:3]:
        line.sites[site].mask(found.attempt, {"t": torch.ones(4)})
    line.reply = lambda task, site: make_reply(code) if site == "site-3" else Line.reply(line, task, site)
    assert masking.open(found, ALL[:3], Signal(), fl_ctx)


def test_too_few_sites_with_keys_or_shares_or_one_more_lost_each_time_make_no_sum(
    fl_ctx: FLContext, tmp_path: Path
) -> None:
    for number, lost in enumerate(
        (
            lambda step, site: site in ("site-3", "site-4"),
            lambda step, site: step == "shares" and site in ("site-3", "site-4"),
        )
    ):
        line = Line(tmp_path / str(number), lost)
        assert Masking(line, grace=0, timeout=0, refuse=lambda *_: None).agree(ALL, 2, Signal(), fl_ctx) is None
        assert len(line.asked) <= 2 * TRIES


def test_a_site_whose_step_is_refused_stands_in_the_record_and_shares_of_too_few_do_not_open(
    fl_ctx: FLContext, tmp_path: Path
) -> None:
    refused: list[tuple[str, str]] = []
    line = Line(tmp_path, answer="site-4")
    masking = Masking(line, grace=0, timeout=0, refuse=lambda site, code, _: refused.append((site, code)))
    found = masking.agree(ALL, 2, Signal(), fl_ctx)
    assert refused == [("site-4", ReturnCode.EXECUTION_EXCEPTION)]
    assert sorted(found.roster) == ALL[:3]
    for site in ALL[:3]:
        line.sites[site].mask(found.attempt, {"t": torch.ones(4)})
    line.lost = lambda step, site: site != "site-1"
    assert not masking.open(found, ALL[:3], Signal(), fl_ctx)


def test_a_message_of_another_round_is_refused_by_the_guard_with_its_reason(fl_ctx: FLContext, tmp_path: Path) -> None:
    keys = MaskedSite("site-1", CONFIG.server, path=tmp_path / "secret").keys(RUN, 2)
    fl_ctx.set_prop(FLContextKey.TASK_NAME, "keys", private=True, sticky=False)
    good = step_dxo("keys", keys, Stamp(0, CONFIG.digest(), "base")).to_shareable()
    came = from_shareable(UpdateGuard().process(good, fl_ctx))
    assert (came.data.keys(), came.meta) == (from_shareable(good).data.keys(), from_shareable(good).meta)
    with pytest.raises(Exception, match="expected round 0, came 1"):
        UpdateGuard().process(step_dxo("keys", keys, Stamp(1, CONFIG.digest(), "base")).to_shareable(), fl_ctx)
    assert "expected round 0" in fl_ctx.get_prop(REASON)
    with pytest.raises(Exception, match="a message of step keys"):
        UpdateGuard().process(step_dxo("open", keys, Stamp(0, CONFIG.digest(), "base")).to_shareable(), fl_ctx)


def test_a_secret_of_a_site_is_readable_by_its_user_alone(fl_ctx: FLContext, tmp_path: Path) -> None:
    """The kit's processes begin with this umask; the executor closes its gate with it too."""
    private_files()
    MaskedSite("site-1", CONFIG.server, path=tmp_path / "secret").keys(RUN, 2)
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0
    assert set(json.loads((tmp_path / "secret").read_text())) == set(Secret.__dataclass_fields__)
