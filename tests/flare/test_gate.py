"""What a hostile member sends to other members' processes changes nothing there, and each kind is in the log."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedTopic, ServerCommandNames
from nvflare.apis.fl_context import FLContext
from nvflare.apis.utils.event import fire_event_to_components
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey, MessagePropKey
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import STREAM_CHANNEL, STREAM_DATA_TOPIC, StreamHeaderKey
from nvflare.private.admin_defs import Message as Order
from nvflare.private.defs import RequestHeader, SysCommandTopic, TrainingTopic
from nvflare.private.fed.app.utils import component_security_check
from test_simulator import job, results, simulate

from conftest import ROOT
from pfedsam.flare.executor import PFedSAMExecutor
from pfedsam.flare.gate import Gate, Request, Watch, allowed, refuse, refuse_unread

AUX, COMMAND = CellChannel.AUX_COMMUNICATION, CellChannel.SERVER_COMMAND
NEEDED = [  # who sends what to whom in a run
    ("server.1", AUX, ReservedTopic.END_RUN, "site-1"),
    ("server", CellChannel.CLIENT_MAIN, "train.start", "site-1"),
    ("site-1", CellChannel.CLIENT_COMMAND, "abort", "site-1"),
    ("site-1.1", AUX, ReservedTopic.SYNC_RUNNER, "server"),
    ("site-1.1", AUX, ReservedTopic.TASK_CHECK, "server"),
    ("site-1.1", COMMAND, ServerCommandNames.GET_TASK, "server"),
    ("site-1.1", COMMAND, ServerCommandNames.SUBMIT_UPDATE, "server"),
    ("site-1", CellChannel.SERVER_MAIN, "register", "server"),
    ("_admin_1", CellChannel.SERVER_MAIN, "challenge", "server"),
    ("_admin_1", CellChannel.HCI, "command", "server"),
    ("_admin_1", AUX, "ObjectStreamer.Request", "server"),
    ("_admin_1", CellChannel.CELLNET, "bye", "server"),
    ("server", COMMAND, ServerCommandNames.HANDLE_DEAD_JOB, "server"),
    ("server.1", CellChannel.SERVER_PARENT_LISTENER, "heartbeat", "server"),
]
HARMFUL = [
    ("server", CellChannel.CLIENT_COMMAND, "abort", "site-1"),
    ("server", CellChannel.HCI, "command", "site-1"),
    ("server", "any_other", "topic", "site-1"),
    ("site-2.1", AUX, "fed.event", "server"),
    ("server.1", AUX, "fed.event", "site-1"),
    ("site-2.1", AUX, ReservedTopic.END_RUN, "site-1"),
    ("server.1", AUX, ReservedTopic.DO_TASK, "site-1"),
    ("site-2", CellChannel.CLIENT_COMMAND, "abort", "site-1"),
    ("site-2", CellChannel.CLIENT_MAIN, "train.abort", "site-1"),
    ("site-2", "_net_manager", "stop_cell", "site-1"),
    ("site-2", CellChannel.CELLNET, "bye", "site-1"),
    ("site-2", "_net_manager", "stop", "server"),
    ("site-2.1", COMMAND, ServerCommandNames.HANDLE_DEAD_JOB, "server"),
    ("site-2.1", CellChannel.SERVER_PARENT_LISTENER, ServerCommandNames.UPDATE_RUN_STATUS, "server"),
    ("site-2", CellChannel.HCI, "command", "server"),
    ("site-2.1", AUX, "ObjectStreamer.Request", "server"),
    ("_admin_1", COMMAND, ServerCommandNames.SUBMIT_UPDATE, "server"),
    ("_admin_1", AUX, "fed.event", "server"),
    ("_admin_1", CellChannel.CELLNET, "bulk", "server"),  # its messages would have no certificate
    ("_admin_1", CellChannel.CLIENT_MAIN, "train.abort", "site-1"),
    ("site-22.1", AUX, "x", "site-2"),  # a longer name is not the site's own
    ("serverless", AUX, ReservedTopic.END_RUN, "site-1"),
    ("", "", "", "site-1"),
]


@pytest.mark.parametrize(("origin", "channel", "topic", "home"), NEEDED)
def test_what_a_run_needs_goes_through(origin: str, channel: str, topic: str, home: str) -> None:
    assert allowed(Request(origin, channel, topic), home)


@pytest.mark.parametrize(("origin", "channel", "topic", "home"), HARMFUL)
def test_what_no_run_needs_does_not(origin: str, channel: str, topic: str, home: str) -> None:
    assert not allowed(Request(origin, channel, topic), home)


@pytest.mark.parametrize(
    ("sender", "origin", "own"),
    [
        ("site-2", "site-2", True),
        ("site-2", "site-2.1", True),  # a site's process passes on what its jobs' processes send
        ("site-2.1", "site-2.1", True),
        ("server.1", "server.1", True),
        ("_admin_1", "_admin_1", True),
        ("site-2", "server", False),
        ("site-2.1", "server.1", False),
        ("site-2", "site-1.1", False),
        ("site-2", "site-22", False),
        ("site-2", "_admin_1", False),
        ("site-2", "", False),
        (None, "server", False),
    ],
)
def test_the_server_passes_on_nothing_in_another_s_name(
    sender: str | None, origin: str, own: bool, caplog: pytest.LogCaptureFixture
) -> None:
    message = Message({MessageHeaderKey.ORIGIN: origin, MessageHeaderKey.DESTINATION: "site-1"})
    message.set_prop(MessagePropKey.ENDPOINT, sender and Endpoint(sender))
    assert (refuse_unread(message, Watch("server", passes_on=True)) is None) == own
    assert any("in another's name" in line for line in caplog.messages) != own
    if not origin.startswith("_admin_"):
        assert refuse_unread(message, Watch("server")) is None  # a job's process hears all from its parent


@pytest.mark.parametrize("kind", ["req", "reply"])
def test_a_job_s_process_hears_no_person(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Persons write to the server's own process. There only names of their own choice would tell them apart."""
    head = {MessageHeaderKey.ORIGIN: "_admin_1", MessageHeaderKey.CHANNEL: AUX, MessageHeaderKey.TOPIC: "x"}
    message = Message({**head, MessageHeaderKey.MSG_TYPE: kind})
    message.set_prop(MessagePropKey.ENDPOINT, Endpoint("_admin_1"))
    assert refuse_unread(message, Watch("server", most=1000, passes_on=True)) is None
    assert not caplog.messages
    assert refuse_unread(message, Watch("server", most=1000)) is not None
    assert caplog.messages == [f"refused a request that no run needs: 'x' on '{AUX}' from '_admin_1'"]


def test_a_part_of_a_longer_request_is_judged_by_the_request_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    head = {
        MessageHeaderKey.ORIGIN: "site-2.1",
        MessageHeaderKey.CHANNEL: STREAM_CHANNEL,
        MessageHeaderKey.TOPIC: STREAM_DATA_TOPIC,
        StreamHeaderKey.CHANNEL: AUX,
    }
    watch = Watch("server")
    good, bad = ({**head, StreamHeaderKey.TOPIC: topic} for topic in (ReservedTopic.TASK_CHECK, "fed.event"))
    assert refuse(Message(good), watch) is None
    assert all(refuse(Message(bad), watch) is not None for _ in range(3))
    assert sum("fed.event" in line and "site-2.1" in line for line in caplog.messages) == 1
    for n in range(1000):
        refuse(Message({**bad, StreamHeaderKey.TOPIC: f"\x1b[31m{n}"}), watch)
    assert len(caplog.messages) == len(watch.told) == 100
    assert not any("\x1b" in line for line in caplog.messages)


JOB = "0b7c2f0e-6d1f-4f0e-9a53-6a2f0f1f6a10"


@pytest.mark.parametrize(
    ("origin", "topic", "headers", "goes"),
    [
        ("server", TrainingTopic.DEPLOY, {RequestHeader.JOB_ID: JOB, RequestHeader.APP_NAME: "app"}, True),
        ("server", TrainingTopic.DELETE_RUN, {RequestHeader.JOB_ID: JOB}, True),
        ("server", TrainingTopic.CHECK_STATUS, {}, True),
        ("server", TrainingTopic.DELETE_RUN, {RequestHeader.JOB_ID: "pfedsam_store"}, False),
        ("server", TrainingTopic.DEPLOY, {RequestHeader.JOB_ID: JOB, RequestHeader.APP_NAME: "../../local"}, False),
        ("server", SysCommandTopic.SHELL, {}, False),
        ("server", SysCommandTopic.CONFIGURE_SITE_LOG, {}, False),
        ("server", TrainingTopic.CONFIGURE_JOB_LOG, {RequestHeader.JOB_ID: JOB}, False),
        (f"server.{JOB}", TrainingTopic.CHECK_STATUS, {}, False),  # where a lead's code may run
    ],
)
def test_the_server_commands_a_site_only_about_jobs(origin: str, topic: str, headers: dict, goes: bool) -> None:
    """FLARE's shell reads any file, and its authorisation is skipped where the message does not ask for it."""
    order = Order(topic, f"cat {ROOT}/README.md")
    for name, value in headers.items():
        order.set_header(name, value)
    head = {MessageHeaderKey.ORIGIN: origin, MessageHeaderKey.CHANNEL: CellChannel.CLIENT_MAIN}
    harmless = {**head, MessageHeaderKey.TOPIC: TrainingTopic.CHECK_STATUS}  # FLARE looks at the content's topic alone
    assert (refuse(Message(harmless, order), Watch("site-1")) is None) == goes
    stream = {**head, MessageHeaderKey.CHANNEL: STREAM_CHANNEL, MessageHeaderKey.TOPIC: STREAM_DATA_TOPIC}
    parts = {**stream, StreamHeaderKey.CHANNEL: CellChannel.CLIENT_MAIN, StreamHeaderKey.TOPIC: topic}
    assert refuse(Message(parts, b"part"), Watch("site-1")) is not None


def test_a_server_that_writes_the_site_s_own_name_is_not_obeyed() -> None:
    """FLARE's shell then read any of the site's files: it asks for no permission where the message does not."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    run = [sys.executable, str(Path(__file__).with_name("forger.py"))]
    with subprocess.Popen([*run, "site", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as site:
        try:
            subprocess.run([*run, "server", url], check=True, capture_output=True, timeout=60)
        finally:
            site.kill()
        heard, told = site.communicate()
    assert set(heard.split()) == {"own", TrainingTopic.CHECK_STATUS}, told  # a process may write to itself
    assert told.count("in this site's own name") == 3


@pytest.mark.parametrize(
    ("size", "origin", "goes"), [(2000, "site-2.1", True), (20_000, "site-2.1", False), (20_000, "server.1", True)]
)
def test_a_message_that_is_no_stream_is_bounded_before_it_is_read(size: int, origin: str, goes: bool) -> None:
    head = {MessageHeaderKey.ORIGIN: origin, MessageHeaderKey.CHANNEL: COMMAND, MessageHeaderKey.TOPIC: "submit_update"}
    assert (refuse_unread(Message(head, bytes(size)), Watch("server", most=1000)) is None) == goes
    assert refuse_unread(Message(head, bytes(size)), Watch("server")) is None


def test_a_process_whose_umask_is_mistyped_does_not_start_and_its_gate_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FLARE goes on after nearly any fault of a component."""
    filters, fl_ctx = [], FLContext()

    def note(*filter_: object) -> None:
        filters.append(filter_)

    cell = SimpleNamespace(add_incoming_filter=note, add_incoming_request_filter=note)
    monkeypatch.setattr(CoreCell, "ALL_CELLS", {"site-1": cell})
    monkeypatch.setenv("PFEDSAM_UMASK", "O27")
    fire_event_to_components(EventType.SYSTEM_BOOTSTRAP, [Gate()], fl_ctx)
    assert len(filters) == 2
    with pytest.raises(RuntimeError, match="PFEDSAM_UMASK"):
        component_security_check(fl_ctx)


def test_the_gate_of_a_job_s_process_is_closed_while_its_parts_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile site began a second too early in one run of many, and ended another site's run."""
    closed: list[tuple[str, str]] = []
    cells = {}
    for name in ("server", "server.job", "site-1", "site-1.job"):
        note = lambda *of, name=name: closed.append((name, of[-1].home))  # noqa: E731
        cells[name] = SimpleNamespace(add_incoming_filter=note, add_incoming_request_filter=note)
    monkeypatch.setattr(CoreCell, "ALL_CELLS", cells)
    PFedSAMExecutor()
    assert closed == [("server.job", "server")] * 2 + [("site-1.job", "site-1")] * 2  # all messages, and requests


@pytest.mark.flare
@pytest.mark.parametrize(
    ("flood", "told"),
    [
        ("tensors", "expected a message of at most 4.8 MB, came more"),
        pytest.param("arrays", "expected tensors, came a NumPy array", marks=pytest.mark.long),
        pytest.param("text", "", marks=pytest.mark.long),
        pytest.param("one tensor", "", marks=pytest.mark.long),
    ],
)
def test_a_site_that_sends_far_more_than_the_job_needs_is_out_for_the_round_and_ends_nobody_s_run(
    tmp_path: Path, flood: str, told: str
) -> None:
    folder = job(tmp_path / "job", sites="site-1,site-2,site-3", grace=5)
    bring(folder, "flood", 'FLOODS, FLOOD = "site-3", "FLOOD"', f'FLOODS, FLOOD = "site-3", "{flood}"')
    simulate(folder, tmp_path / "ws", threads=3)
    found = results(tmp_path / "ws")
    assert set(found["rounds"][0]["sites"]) == {"site-1", "site-2"}
    assert found["rounds"][0]["rejected"].get("site-3", "") == told
    assert len(found["rounds"]) == 2
    log = (tmp_path / "ws/server/log.txt").read_text()
    assert told or "expected a message of at most 4.8 MB, came 40.0 MB" in log


@pytest.mark.long
@pytest.mark.flare
def test_nor_does_a_site_that_sends_as_its_update_what_is_no_message(tmp_path: Path) -> None:
    folder = job(tmp_path / "job", sites="site-1,site-2,site-3")
    bring(folder, "flood", '"FLOOD"', '"noise"')
    simulate(folder, tmp_path / "ws", threads=3)
    assert "in decode_payload" in (tmp_path / "ws/server/log.txt").read_text()
    assert [set(r["sites"]) for r in results(tmp_path / "ws")["rounds"]] == [{"site-1", "site-2", "site-3"}] * 2


def bring(folder: Path, module: str, old: str, new: str) -> None:
    """Give a rendered job's sites the executor of a file beside this one, without the filter of what leaves."""
    source = (ROOT / f"tests/flare/{module}.py").read_text()
    assert old in source
    (folder / "app/custom").mkdir(exist_ok=True)
    (folder / f"app/custom/{module}.py").write_text(source.replace(old, new))
    path = folder / "app/config/config_fed_client.json"
    config = json.loads(path.read_text())
    config["executors"][0]["executor"]["path"] = f"{module}.{module.capitalize()}"
    config["task_result_filters"] = []
    path.write_text(json.dumps(config))


def hostile(folder: Path, site: str) -> None:
    """Make a rendered job's executor hostile at one site."""
    source = (ROOT / "tests/flare/hostile.py").read_text()
    (folder / "app/custom").mkdir(exist_ok=True)
    (folder / "app/custom/hostile.py").write_text(source.replace('HOSTILE = "site-3"', f'HOSTILE = "{site}"'))
    path = folder / "app/config/config_fed_client.json"
    config = json.loads(path.read_text())
    config["executors"][0]["executor"]["path"] = "hostile.Hostile"
    path.write_text(json.dumps(config))


@pytest.mark.flare
def test_a_hostile_site_ends_nobody_s_run_and_forges_no_record(tmp_path: Path) -> None:
    hostile(job(tmp_path / "job", sites="site-1,site-2,site-3"), "site-3")
    simulate(tmp_path / "job", tmp_path / "ws", threads=3)
    found = results(tmp_path / "ws")
    assert json.loads(next((tmp_path / "ws/site-3").rglob("tried.json")).read_text())["events"] > 80
    assert [set(r["sites"]) for r in found["rounds"]] == [{"site-1", "site-2"}, {"site-1", "site-2", "site-3"}]
    assert "TASK_UNKNOWN" in found["rounds"][0]["rejected"]["site-3"]
    assert set(found["final"]["sites"]) == {"site-1", "site-2", "site-3"}
    for party, kinds in (
        ("server", ("fed.event", "handle_dead_job", "update_run_status", "stop_cell", "change_root")),
        ("site-1", ("fed.event", "abort")),
    ):
        log = (tmp_path / "ws" / party / "log.txt").read_text()
        assert [f"refused a request that no run needs: '{kind}'" in log for kind in kinds] == [True] * len(kinds)
