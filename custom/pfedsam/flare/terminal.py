"""What FLARE's simulator shows on the terminal while our job runs in it: our own lines, and everybody's warnings."""

import logging

from nvflare.apis.fl_context import FLContext
from nvflare.fuel.utils.log_utils import ConciseLogFilter

from pfedsam.flare.context import simulated
from pfedsam.quiet import ours

CLOCK = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")


def keep_calm(fl_ctx: FLContext) -> None:
    """In the simulator show from now on this package's lines, and the warnings of all; log.txt keeps all lines.

    Only a terminal that FLARE itself keeps concise is changed, which is the simulator's default. With `-l full` or
    `-l verbose` it shows everything, and a deployment's processes log as they are set up to.
    """
    if simulated(fl_ctx):
        for handler in logging.getLogger().handlers:
            if any(isinstance(one, ConciseLogFilter) for one in handler.filters):
                handler.addFilter(ours_or_a_warning)
                handler.setFormatter(CLOCK)


def ours_or_a_warning(record: logging.LogRecord) -> bool:
    """Whether a user of the simulator wants to see the line."""
    return ours(record) or record.levelno >= logging.WARNING
