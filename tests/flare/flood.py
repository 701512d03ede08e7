"""A hospital with a changed installation: in its first round its update is far larger than the job's settings allow.

It is copied into a job, and floods at the site FLOODS alone, in the way that FLOOD names.
"""

import numpy
import torch
from nvflare.apis.dxo import from_shareable

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
        return dxo.to_shareable()
