"""The header of an exported model: its facts, with a seal that shows any change."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from pfedsam import methods
from pfedsam.config import Config
from pfedsam.data.readable import hindrance
from pfedsam.errors import UserFault
from pfedsam.files import parsed
from pfedsam.record import results
from pfedsam.settings import from_record
from pfedsam.study import private_schema
from pfedsam.tensors import PAYLOAD, SETTINGS, facts_of

FORMAT = "pfedsam.model"
VERSION = 1
SEAL = "facts_sha256"
NOT_ONE = "a model file written by pfedsam export"


@dataclass(frozen=True)
class Origin:
    """Where the tensors of a model come from.

    Attributes:
        base: digest of the frozen base.
        site: the site of the private part. Empty: there is none.
        run: the run's name. Empty: unknown.
        round: the shared part is the one after this round, counted from 0. None: unknown.
        private_round: the round in which the site last trained its private part. None: unknown, or no private part.
    """

    base: str
    site: str = ""
    run: str = ""
    round: int | None = None
    private_round: int | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What a model file says about itself.

    Attributes:
        config: the job's settings.
        config_hash: the settings' digest in the job.
        origin: run, round, site and base.
        branches: the branches that can predict: "global", "personal", or both.
        with_base: whether the frozen base is in the file.
        versions: of the software that wrote it.
        sha256: of the tensors.
        settings: the settings as the job wrote them, one line of JSON. Empty: as `config` writes them.
    """

    config: Config
    config_hash: str
    origin: Origin
    branches: tuple[str, ...]
    with_base: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    sha256: str = ""
    settings: str = ""


def roles_of(config: Config, *, private: bool) -> tuple[str, ...]:
    """The roles that a model file of `config` can have, with or without a site's private part."""
    if private or not private_schema(config):
        return ("global", "personal")
    method = methods.get(config.method)
    return ("global",) if method.global_ == "global" else ()


def require_branch(branches: tuple[str, ...], branch: str) -> None:
    """Refuse a branch that a model file does not hold.

    Raises:
        UserFault: the file does not hold it.
    """
    if branch not in branches:
        do = "name one of these, or export with --site for the personal branch"
        raise UserFault(expected=f"a branch that the model file holds ({', '.join(branches)})", came=branch, do=do)


def header(facts: ModelFacts, payload: str) -> dict[str, str]:
    """The facts as a safetensors header, sealed together with the payload's digest."""
    lines = {
        "format": FORMAT,
        "version": str(VERSION),
        **source_lines(facts),
        SETTINGS: facts.settings or facts.config.text(),
        "branches": " ".join(facts.branches),
        "whole": str(facts.with_base).lower(),
        "versions": json.dumps(results.versions(), sort_keys=True),
    }
    return {**lines, SEAL: seal(lines, payload)}


def source_lines(facts: ModelFacts) -> dict[str, str]:
    """Method, study, settings' digest and `Origin` as texts. Unknown ones are empty."""
    origin = {key: "" if value is None else str(value) for key, value in vars(facts.origin).items()}
    return {"method": facts.config.method, "study": facts.config.study, "config": facts.config_hash, **origin}


def read_facts(path: Path) -> ModelFacts:
    """What the file at `path` says about itself. Its tensors are neither read nor checked.

    Raises:
        UserFault: there is no such file, it is another kind of file or a newer format, its header was changed, or
            this version does not know its settings.
    """
    lines = facts_of(path)
    if path.is_file() and (hindered := hindrance(path)):
        raise UserFault(expected=f"{NOT_ONE} at {path}", came=hindered[0], do=hindered[1])
    if not path.is_file() or lines.get("format") != FORMAT or not {SEAL, PAYLOAD} <= lines.keys():
        came = "another kind of file, or a file with a damaged header" if path.is_file() else "no such file"
        raise UserFault(expected=f"{NOT_ONE} at {path}", came=came, do="name the file that pfedsam export wrote")
    if lines.get("version") != str(VERSION):
        raise UserFault(
            expected=f"a model file of format {VERSION}",
            came=f"format {lines.get('version')} in {path.name}",
            do="install the version of pfedsam that wrote it, or a newer version",
        )
    if not sealed(lines):
        raise UserFault(
            expected=f"the header of {path.name} as pfedsam wrote it",
            came="a header that was changed afterwards",
            do="export the model again, or run: pfedsam verify FILE",
        )
    try:
        return _told(lines)
    except UserFault:
        raise
    except (KeyError, ValueError) as fault:  # the seal fits, so a program wrote it so
        raise UserFault(
            expected=f"a header of {path.name} with all that a model file says",
            came=f"one in which {fault} is missing" if isinstance(fault, KeyError) else str(fault),
            do="export the model again",
        ) from None


def _told(lines: dict[str, str]) -> ModelFacts:
    """The facts in a header's lines. KeyError if a line is missing, ValueError if one cannot be read."""
    rounds = (int(lines[key]) if lines[key] else None for key in ("round", "private_round"))
    if not isinstance(versions := parsed(lines["versions"]), dict):
        raise ValueError("versions that are no object")
    return ModelFacts(
        config=from_record(parsed(lines[SETTINGS])),
        config_hash=lines["config"],
        origin=Origin(lines["base"], lines["site"], lines["run"], *rounds),
        branches=tuple(lines["branches"].split()),
        with_base=lines["whole"] == "true",
        versions={name: str(value) for name, value in versions.items()},
        sha256=lines[PAYLOAD],
        settings=lines[SETTINGS],
    )


def sealed(lines: dict[str, str]) -> bool:
    """Whether a file's header is unchanged, as far as its seal shows."""
    rest = {key: value for key, value in lines.items() if key not in (SEAL, PAYLOAD)}
    return lines.get(SEAL) == seal(rest, lines.get(PAYLOAD, ""))


def seal(lines: dict[str, str], payload: str) -> str:
    """sha256 over a header's lines and the payload's digest. It finds accidents, but not forgeries."""
    return hashlib.sha256(json.dumps([sorted(lines.items()), payload]).encode()).hexdigest()
