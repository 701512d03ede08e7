"""What a site does when it is asked: a round, the final test. FLARE's executor and the in-process runner call it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pfedsam.exchange.codec import decode
from pfedsam.exchange.ledger import payload_bytes
from pfedsam.exchange.schema import shared_schema
from pfedsam.exchange.store import Moment
from pfedsam.files import Tensors
from pfedsam.report.site_files import write_site_files
from pfedsam.site import Site, Update
from pfedsam.train.loop import Progress
from pfedsam.train.metrics import summary

BEFORE = "before"  # name of the store's note: test metrics before training


def serve_round(
    site: Site,
    wire: Tensors,
    at: Moment,
    rounds: int,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Update, dict[str, Any]]:
    """One round at a site: receive, score what came, train, score the own branch.

    Args:
        wire: the server's shared tensors as they travel.
        at: the round of the run.
        rounds: of the whole run.
        progress, stop: as for `Site.train`.

    Returns:
        The update, and the numbers that go with it into results.json; none of a round that was stopped.
    """
    site.receive(decode(wire, shared_schema(site.config), site.config.wire.down), at)
    before, received = _before(site, at.run), site.as_received()
    update = site.train(at.round, rounds, progress=progress, stop=stop)
    if update.report.stopped:
        return update, {}
    personal = site.summary("val", "personal")
    return update, {
        "losses": update.report.losses,
        "seconds": update.report.seconds,
        "scoring_seconds": site.scoring_seconds,
        "samples": update.samples,
        "val": {"global": received, "personal": personal},
        "before": before,
        "bytes_received": payload_bytes(wire),
        "bytes_sent": payload_bytes(update.wire),
    }


def serve_test(site: Site, wire: Tensors, run: str, folder: Path) -> dict[str, Any]:
    """The final test: metrics by role, on both splits that were held back, and of how many patients the test split is.

    Distances are of the test split alone. The site's own files stay in `folder`.
    """
    stored = site.recall(decode(wire, shared_schema(site.config), site.config.wire.down), run)
    scores, val = site.scores("test"), site.scores("val")
    write_site_files(site, scores, folder, {"run": run, **{k: v for k, v in stored.items() if k == "round"}})
    return {
        **{role: summary(cases) for role, cases in scores.items()},
        BEFORE: site.store.remembered(BEFORE, run),
        "val": {role: summary(cases) for role, cases in val.items()},
        "patients": len({one.group for one in site.data["test"].slices}),
    }


def _before(site: Site, run: str) -> dict[str, Any]:
    """Test metrics of the model as this site first received it in this run; kept for its last task."""
    found: dict[str, Any] | None = site.store.remembered(BEFORE, run)
    if found is None:
        found = site.summary("test", "global")
        site.store.remember(BEFORE, run, found)
    return found
