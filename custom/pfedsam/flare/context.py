"""FLARE's context in this project's terms: the job's settings, the site's places, the message."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DXO
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from pfedsam.bounds import Bounds, parse_count
from pfedsam.config import Config
from pfedsam.data.synthetic import drawn
from pfedsam.errors import UserFault
from pfedsam.exchange.checkpoint import KEEP, LEAST, Checkpoints
from pfedsam.exchange.ledger import LEDGER, Ledger
from pfedsam.exchange.schema import STAMP, Stamp
from pfedsam.layout import SETTINGS, SIMULATED, Places
from pfedsam.settings import read_config

REJECTED = "pfedsam_rejected"
REASON = "pfedsam_reason"  # in the server's context: why the guard refused the update at hand
CLASSES_DIFFER = "PFEDSAM_CLASSES_DIFFER"  # the return code of a site whose masks use other class numbers
DIVERGED = "PFEDSAM_DIVERGED"  # that of a site that cannot train on from the server's model
RUN = "pfedsam_run"
BACK = "pfedsam_back"  # in a task: the runs that the run went back from, oldest first, each with its round
TRAINED = "pfedsam_trained"  # in a task: the sites of which the server has an update in an earlier round of the run
_settings = lru_cache(maxsize=8)(read_config)


def job_config(fl_ctx: FLContext) -> Config:
    """The job's settings: app/config/pfedsam.json, the same file on server and sites."""
    folder = fl_ctx.get_workspace().get_app_config_dir(fl_ctx.get_job_id())
    return _settings(str(Path(folder) / SETTINGS.name))


def run_dir(fl_ctx: FLContext) -> Path:
    """This job's run folder on this computer's disk."""
    return Path(fl_ctx.get_workspace().get_run_dir(fl_ctx.get_job_id()))


def setting(fl_ctx: FLContext, name: str) -> str | None:
    """A setting of this site or server: scope property `name` of local/privacy.json, else the variable PFEDSAM_NAME.

    Raises:
        UserFault: FLARE did not resolve a variable in it, e.g. "{$HOME}/x".
    """
    scope = fl_ctx.get_prop(FLContextKey.SCOPE_PROPERTIES) or {}
    value = str(scope.get(name) or os.environ.get(f"PFEDSAM_{name.upper()}", ""))
    if "{" in value:
        raise UserFault(expected=f"a value for {name}", came=value, do="set the variable named in it")
    return value or None


def places(fl_ctx: FLContext, site: str, config: Config) -> Places:
    """The folders of this site: data, weights, store, cache and run.

    Unless the site sets another folder, the store is in its own workspace, beside the jobs' run
    folders. Synthetic data are drawn into the run folder at first use.
    """
    return Places(_data(fl_ctx, site, config), store(fl_ctx), weights(fl_ctx), cache(fl_ctx), run_dir(fl_ctx))


def ledger(fl_ctx: FLContext, config: Config) -> Ledger:
    """This site's ledger for the job's study."""
    return Ledger(store(fl_ctx) / config.study / str(fl_ctx.get_identity_name()) / LEDGER)


def stamp_of(dxo: DXO, round_: int) -> Stamp:
    """The stamp in a message. A missing field is empty, and the guard then rejects it."""
    values: Any = dxo.get_meta_prop(STAMP)
    values = values if isinstance(values, dict) else {}
    return Stamp(values.get("round", round_), str(values.get("config", "")), str(values.get("base", "")))


def model_meta(fl_ctx: FLContext, base: str) -> dict[str, Any]:
    """The facts in a message with the server's model: the digests of the settings and of the frozen base."""
    return {STAMP: {"config": job_config(fl_ctx).digest(), "base": base}}


def selected_by(report: dict[str, Any]) -> dict[str, float]:
    """The metric for FLARE's selector of the best model: the server's model's Dice on the site's validation split.

    It is empty if nothing in that split could be scored. The selector then leaves the site out of its mean.
    """
    dice = report["val"]["global"]["dice"]
    return {} if dice is None else {"val_dice": dice}


def certified(site: str, result: Shareable) -> FLContext:
    """What FLARE's widgets read of the sender of an answer: the name in its certificate, and the answer as judged.

    The context that FLARE makes has what the site's own message says of itself.
    """
    peer = FLContext()
    peer.set_prop(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
    peer.set_prop(FLContextKey.SHAREABLE, result, private=True, sticky=False)
    return peer


def simulated(fl_ctx: FLContext) -> bool:
    """Whether this runs in FLARE's simulator, where all sites are on one machine.

    The job's id tells, which server and sites know. FLARE sets its own mark only at the sites.
    """
    return bool(fl_ctx.get_job_id() == SIMULATED)


def store(fl_ctx: FLContext) -> Path:
    """The folder of the site store, or of the server's checkpoints. It outlives every job."""
    return Path(setting(fl_ctx, "store") or _root(fl_ctx) / "pfedsam_store")


def checkpoints(fl_ctx: FLContext) -> Checkpoints:
    """The server's checkpoints of the job's study, as many of each run as the server's setting `keep` says.

    Raises:
        UserFault: the setting is no such number.
    """
    said = setting(fl_ctx, "keep")
    keep = parse_count(said, "keep (PFEDSAM_KEEP)") if said else KEEP
    Bounds(LEAST, 100_000).hold("keep (PFEDSAM_KEEP)", keep)
    return Checkpoints(store(fl_ctx), job_config(fl_ctx).study, keep)


def kit(fl_ctx: FLContext) -> Path:
    """The startup kit of this site or server, which is also FLARE's workspace. The simulator has none."""
    return _root(fl_ctx)


def weights(fl_ctx: FLContext) -> Path | None:
    """The folder of pretrained weight files, or None if this site or server names none."""
    folder = setting(fl_ctx, "weights")
    return Path(folder) if folder else None


def cache(fl_ctx: FLContext) -> Path:
    """The folder of prepared base models: this site's or server's own. In the simulator all have one in common."""
    common = _root(fl_ctx).parent / "pfedsam_cache" if simulated(fl_ctx) else store(fl_ctx) / "prepared"
    return Path(setting(fl_ctx, "cache") or common)


def _root(fl_ctx: FLContext) -> Path:
    return Path(fl_ctx.get_workspace().get_root_dir())


def _data(fl_ctx: FLContext, site: str, config: Config) -> Path:
    if config.data.source == "synthetic":
        return drawn(run_dir(fl_ctx) / "synthetic_data", site, config)
    folder_name = setting(fl_ctx, "data")
    if folder_name is None:
        raise UserFault(
            expected=f"the data folder of site {site}",
            came="no setting",
            do='set PFEDSAM_DATA, or "data" in the scope properties of local/privacy.json',
        )
    return Path(folder_name)
