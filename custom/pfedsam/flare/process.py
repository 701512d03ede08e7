"""What a job's process does before all else, at a site and at the server."""

from nvflare.apis.fl_context import FLContext

from pfedsam import certificates, log
from pfedsam.errors import UserFault
from pfedsam.flare.context import job_config, kit
from pfedsam.flare.gate import close
from pfedsam.flare.intake import FIXED, limit, most_bytes
from pfedsam.flare.terminal import keep_calm


def set_up(fl_ctx: FLContext, *, at_server: bool = False) -> None:
    """Close the gate, limit what comes in, and warn of certificates that end soon.

    It also registers the tensor codec. Without it FLARE cannot read a message and waits.
    """
    most = _most(fl_ctx)
    close(fl_ctx, most)
    keep_calm(fl_ctx)
    limit(most, at_server=at_server)
    for line in certificates.warnings(kit(fl_ctx), certificates.now()):
        log.warning("[%s] %s", fl_ctx.get_identity_name(), line)


def _most(fl_ctx: FLContext) -> int:
    """The bytes of the job's largest message.

    A job whose settings cannot be read ends before its first message. Its server says why.
    """
    try:
        return most_bytes(job_config(fl_ctx))
    except UserFault:
        return FIXED
