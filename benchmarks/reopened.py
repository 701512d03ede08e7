"""The sites of an ended run of sweep.py, opened again to score what changed of their models predicts."""

from collections.abc import Iterator
from pathlib import Path

from sweep import Run, places, settings, sites

from pfedsam.errors import UserFault
from pfedsam.exchange.checkpoint import Checkpoints
from pfedsam.exchange.codec import decode
from pfedsam.exchange.server import messages
from pfedsam.exchange.store import LAST, Moment
from pfedsam.federation import RUN
from pfedsam.site import Site
from pfedsam.study import down_schema
from pfedsam.tensors import Tensors


def reopened(run: Run, out: Path) -> Iterator[tuple[Site, Tensors]]:
    """Each site of a run that ended, with its last model, and the server's tensors that `restored` takes.

    Raises:
        UserFault: the run has not ended, or its store is gone.
    """
    config, _ = settings(run, None)
    point = Checkpoints(run.folder(out) / "store", config.study).load(RUN) if run.ended(out) else None
    if point is None:
        where = f"an ended run with its store in {run.folder(out)}"
        raise UserFault(expected=where, came="none", do="run it with sweep.py, in a new folder")
    for name in sites(run, config):
        site = Site(name, config, places(run, out))
        sent = messages(point.state, [name], config, down_schema(config))[name]
        arrived = decode(sent, down_schema(config), config.wire.down)
        restored(site, arrived)
        yield site, arrived


def restored(site: Site, arrived: Tensors) -> None:
    """Give a site of `reopened` its last model again, whatever has been changed of it."""
    site.recall(arrived, Moment(RUN, LAST), trained=True)
