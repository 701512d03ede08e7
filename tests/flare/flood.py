"""A hospital with a changed installation: in its first round its update is far larger than the job's settings allow, or
no message at all.

It is copied into a job, and floods at the site FLOODS alone, in the way that FLOOD names.
"""

import numpy
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.fuel.f3.cellnet.utils import Encoding
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey

from pfedsam.flare.executor import PFedSAMExecutor

FLOODS, FLOOD = "site-3", "FLOOD"


class Flood(PFedSAMExecutor):
    """Our executor, which sends too much at one site."""

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        reply = super().execute(task_name, shareable, fl_ctx, abort_signal)
        if fl_ctx.get_identity_name() != FLOODS or task_name != "train" or shareable.get_header("current_round"):
            return reply
        dxo = from_shareable(reply)
        if FLOOD == "tensors":
            dxo.data |= {f"more{i}": torch.rand(250_000) for i in range(40)}
        elif FLOOD == "one tensor":
            dxo.data |= {"more": torch.rand(10_000_000)}
        elif FLOOD == "text":
            dxo.set_meta_prop("more", "x" * 40_000_000)
        elif FLOOD == "arrays":
            dxo.data |= {"more": numpy.zeros(10_000_000)}
        elif FLOOD == "noise":
            noise(fl_ctx)
        return dxo.to_shareable()


def noise(fl_ctx):
    """Send as this round's update what is no message, and then wait too long with the update itself."""
    cell, job = fl_ctx.get_engine().get_cell(), fl_ctx.get_job_id()
    message = Message({StreamHeaderKey.PAYLOAD_ENCODING: Encoding.FOBS}, b"\xc1 no message")
    cell.send_request(
        channel="server_command", topic="submit_update", target=f"server.{job}", request=message, timeout=20
    )
