"""Two parties by FLARE's own network: a site behind its gate, and a server that writes the site's name on its orders.

    python forger.py site|server URL

The site prints the topic of each order that reaches it.
"""

import os
import sys
import time

from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey, MessageType
from nvflare.fuel.f3.cellnet.utils import encode_payload
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.sfm.constants import Types
from nvflare.private.admin_defs import Message as Order
from nvflare.private.defs import TrainingTopic

from pfedsam.flare.gate import LONG_LIVED, close

SITE, AS_JOB = "site-1", "site-1.0b7c2f0e-6d1f-4f0e-9a53-6a2f0f1f6a10"


def site(url: str) -> None:
    """Wait for orders, as a site's long-lived process does."""
    cell = CoreCell(SITE, url, False, {})
    close(FLContext(), LONG_LIVED)
    cell.register_request_cb(CellChannel.CLIENT_MAIN, "*", lambda order: print(order.payload.topic, flush=True))
    cell.start()
    cell.fire_and_forget(CellChannel.CLIENT_MAIN, "own", SITE, Message({}, Order("own", "")))
    time.sleep(30)


def server(url: str) -> None:
    """Send an order that the gate lets through, and the shell's in the site's name and in its job's.

    At last one over a connection that bears the name of the site's job: FLARE lets a server say so.
    """
    cell = CoreCell("server", url, False, {})
    cell.start()
    while SITE not in cell.agents:
        time.sleep(0.05)
    manager, to = cell.communicator.conn_manager, cell.agents[SITE].endpoint
    send(cell, to, "server", TrainingTopic.CHECK_STATUS)
    send(cell, to, SITE, "shell")
    send(cell, to, AS_JOB, "shell")
    manager.local_endpoint.name = AS_JOB
    (connection,) = manager.sfm_conns.values()
    connection.send_handshake(Types.READY)
    time.sleep(0.5)
    send(cell, to, SITE, "shell again")


def send(cell: CoreCell, to: object, origin: str, topic: str) -> None:
    """One order."""
    message = Message({}, Order(topic, "cat /etc/hostname"))
    encode_payload(message)
    head = {"ORIGIN": origin, "FROM_CELL": "server", "TO_CELL": SITE, "DESTINATION": SITE, "TOPIC": topic}
    head |= {"CHANNEL": CellChannel.CLIENT_MAIN, "MSG_TYPE": MessageType.REQ, "REQ_ID": "1", "REPLY_EXPECTED": True}
    message.add_headers({getattr(MessageHeaderKey, key): value for key, value in head.items()})
    cell._send_to_endpoint(to, message)
    time.sleep(0.5)


if __name__ == "__main__":
    {"site": site, "server": server}[sys.argv[1]](sys.argv[2])
    os._exit(0)  # FLARE's threads would go on
