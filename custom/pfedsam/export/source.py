"""What a run left, as one model: a site's files, its store, the server's folder, or a simulator's whole workspace."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam import methods
from pfedsam.config import Config, text_digest
from pfedsam.errors import UserFault
from pfedsam.exchange.store import LAST, Moment, SiteStore
from pfedsam.files import parsed, read_json
from pfedsam.inference.facts import ModelFacts, Origin, roles_of
from pfedsam.layout import MODELS, PRIVACY, RESULTS, servers_folders, sites_folders
from pfedsam.settings import from_record
from pfedsam.study import private_schema
from pfedsam.tensors import SETTINGS, Tensors, facts_of, unpack, unprefixed

GLOBAL = "branch.global."  # how the names of that branch's tensors begin

STORE = "PFEDSAM_STORE"
SHARED, PRIVATE = "shared.safetensors", "private.safetensors"


@dataclass(frozen=True)
class Place:
    """Where to look; what is None is found below `folder`.

    Attributes:
        folder: a site's run folder, the server's, a downloaded job, or a simulator's workspace.
        site: whose private part to take; empty: the folder's own, where it is a site's.
        shared: the file of shared tensors.
        store: the folder of the site store, to take the private part from instead of the run folder.
        settings: the job's pfedsam.json, or its results.json.
        alone: leave the private part out.
    """

    folder: Path
    site: str = ""
    shared: Path | None = None
    store: Path | None = None
    settings: Path | None = None
    alone: bool = False


@dataclass(frozen=True)
class RunModel:
    """One model's parts and what is known of them.

    Attributes:
        facts: for `inference.model_file.write_model`.
        shared, private: the tensors; None: no private part.
        results: the run's results.json; empty where the site has none.
        tested: whether the run's final test was of this shared part, as far as its file says.
    """

    facts: ModelFacts
    shared: Tensors
    private: Tensors | None
    results: dict[str, Any]
    tested: bool


def gather(place: Place) -> RunModel:
    """The model that lies at `place`.

    Raises:
        UserFault: something is missing, damaged, or of two runs.
    """
    written = (folder / RESULTS for folder in servers_folders(place.folder))
    results = next((read_json(path) for path in written if path.is_file()), {})
    shared, known = _shared(place)
    private, own = (None, {}) if place.alone else _private(place, known, results)
    settings = _settings(place, known or own, results)
    config, digest = from_record(parsed(settings)), text_digest(settings)
    _one_run(known, own, digest)
    roles = roles_of(config, private=private is not None)
    if private is None:
        _require_whole(config)
    else:
        _require_own(config, known)
    origin, tested = _origin(known, own, results)
    tested = tested and not (private is None and methods.get(config.method).own_models)
    return RunModel(ModelFacts(config, digest, origin, roles, settings=settings), shared, private, results, tested)


def _require_whole(config: Config) -> None:
    """Refuse a global branch without the tensors of it that each site keeps: it would predict with untrained ones.

    Raises:
        UserFault: the method keeps such tensors.
    """
    shares_all = not any(name.startswith(GLOBAL) for name in private_schema(config))
    if not shares_all or methods.get(config.method).global_ != "global":
        raise UserFault(
            expected=f"a site's private part: with {config.method} each site keeps some or all of the global branch",
            came="none",
            do="name the site with --site, on its own machine. Another site cannot use this model",
        )


def _require_own(config: Config, known: dict[str, str]) -> None:
    """Refuse the server's shared part where a site predicts with one of its own: its scores would be another model's.

    Raises:
        UserFault: it is not the file that the site tested.
    """
    method = methods.get(config.method)
    if (method.own_models or method.blends) and known and "site" not in known:
        raise UserFault(
            expected=f"the {SHARED} that the site tested: with {config.method} each site has one of its own",
            came="the server's",
            do=f"name the site's own folder of the run, which has {SHARED} and {PRIVATE}",
        )


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and facts of a file of a run.

    Raises:
        UserFault: it is missing or damaged.
    """
    try:
        return unpack(path.read_bytes())
    except (OSError, ValueError) as fault:
        came = "no such file" if isinstance(fault, FileNotFoundError) else str(fault)
        raise UserFault(expected=f"tensors of a run in {path}", came=came, do="name the run's file") from None


def _shared(place: Place) -> tuple[Tensors, dict[str, str]]:
    """The shared part: the file that is named, else as the site tested it, else the server's last."""
    if place.shared is not None:
        return read(place.shared)
    own, servers = _site_paths(place, SHARED), [f / MODELS / SHARED for f in servers_folders(place.folder)]
    for path in (*servers, *own) if place.alone else (*own, *servers):
        if path.is_file():
            return read(path)
    if not place.alone and any(SETTINGS in facts_of(path) for path in _site_paths(place, PRIVATE)):
        return {}, {}  # a method that shares nothing
    raise UserFault(
        expected=f"a run's {SHARED} below {place.folder}",
        came="none",
        do="name a simulator's workspace, a run folder or a downloaded job, or the file with --shared",
    )


def _private(place: Place, known: dict[str, str], results: dict[str, Any]) -> tuple[Tensors | None, dict[str, str]]:
    """The private part: from the store where one is named, else as the site tested it, else from PFEDSAM_STORE."""
    found = [] if place.store else _site_paths(place, PRIVATE)
    if found:
        return read(found[0])
    tested = bool(_site_paths(place, SHARED))  # then the method keeps nothing private
    if folder := place.store or (os.environ.get(STORE) if place.site and not tested else None):
        return _stored(place, Path(folder), known, results)
    if place.site and not tested:
        raise UserFault(
            expected=f"files of site {place.site} below {place.folder}",
            came="none",
            do="correct --site, or name its store with --store, or leave --site out for the global branch",
        )
    return ({}, {"site": place.site}) if place.site else (None, {})


def _stored(
    place: Place, folder: Path, known: dict[str, str], results: dict[str, Any]
) -> tuple[Tensors, dict[str, str]]:
    study = from_record(parsed(_settings(place, known, results))).study
    run = known.get("run") or results.get("run")
    store = SiteStore(folder, study, place.site)
    found = store.load(Moment(str(run), LAST) if run else None) if place.site else None
    if found is None:
        raise UserFault(
            expected=f"a private part of study {study} and site {place.site or '?'} in {folder}",
            came="none",
            do=f"name the site with --site, and the folder that PFEDSAM_STORE or {PRIVACY} names",
        )
    return unprefixed(found[0]), {**found[1], "site": place.site}


def _settings(place: Place, facts: dict[str, str], results: dict[str, Any]) -> str:
    """The job's settings as one line of JSON: from the file that is named, a header, or results.json."""
    if place.settings is not None:
        values = read_json(place.settings)
        if "config" in values:
            return json.dumps(values["config"], sort_keys=True)
        named = from_record(values.get("settings", values))  # a settings file of jobs/ has them below
        own = facts.get(SETTINGS)  # the run's digest is of its own spelling
        return own if own and from_record(parsed(own)) == named else named.text()
    if SETTINGS in facts:
        return facts[SETTINGS]
    if "config" in results:
        return json.dumps(results["config"], sort_keys=True)
    raise UserFault(
        expected="the settings of the run", came="none in its files", do="name its pfedsam.json with --settings"
    )


def _one_run(known: dict[str, str], own: dict[str, str], digest: str) -> None:
    """Refuse parts that do not belong together.

    Raises:
        UserFault: other settings, another base or another run.
    """
    pairs = [("settings", facts.get("config"), digest) for facts in (known, own)]
    pairs += [(what, known.get(what), own.get(what, "")) for what in ("base", "run")]
    for what, one, other in pairs:
        if one and other and one != other:
            raise UserFault(
                expected=f"shared part, private part and settings of one run (same {what})",
                came=f"{one[:20]} and {other[:20]}",
                do="take all of them from one run",
            )


def _origin(known: dict[str, str], own: dict[str, str], results: dict[str, Any]) -> tuple[Origin, bool]:
    """Where both parts come from, and whether the run's final test was of this shared part."""
    base = known.get("base") or own.get("base") or str(results.get("base_hash", ""))
    run = known.get("run") or own.get("run") or str(results.get("run", ""))
    of_run = (results.get("run") or run) == run
    last = str(results["rounds"][-1]["round"]) if of_run and results.get("rounds") else None
    silent = None if "val_dice" in known else last  # what a site tested is the run's last; the best may be its first
    shared_round = known.get("round", silent)
    numbers = (int(text) if text else None for text in (shared_round, own.get("round")))
    tested = of_run and shared_round == last and "val_dice" not in known
    return Origin(base, own.get("site", ""), run, *numbers), tested


def _site_paths(place: Place, name: str) -> list[Path]:
    """Files of that name that are a site's: its header says whose."""
    paths = (folder / name for folder in sites_folders(place.folder, place.site))
    return [path for path in paths if (site := facts_of(path).get("site")) and site == (place.site or site)]
