"""Whether a file of a run or an exported model is whole, is of the run it names, and fits the base at hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam.certificates import Certificate, now
from pfedsam.config import Config, text_digest
from pfedsam.errors import UserFault
from pfedsam.exchange.schema import misfits
from pfedsam.export.signature import check
from pfedsam.files import parsed, read_json
from pfedsam.inference.facts import FORMAT, VERSION, sealed
from pfedsam.inference.model_file import BASE, PRIVATE, SHARED, base_schema, check_tensors, read_model
from pfedsam.inference.predictor import load_model
from pfedsam.layout import RESULTS, servers_folders
from pfedsam.model import build
from pfedsam.model.prepared import assemble
from pfedsam.settings import from_record
from pfedsam.tensors import PAYLOAD, SETTINGS, Tensors, below, facts_of, unpack, unprefixed


@dataclass(frozen=True)
class Check:
    """One answer.

    Attributes:
        name: what was checked.
        ok: None: it could not be.
        why: what fits, what does not, or what was missing.
    """

    name: str
    ok: bool | None
    why: str


@dataclass(frozen=True)
class Subject:
    """What is checked, and what it is held against.

    Attributes:
        kind: "model", "shared" or "private".
        lines: its header.
        tensors: by name; None: they cannot be read, or do not fit their checksum.
        config: its settings; None: they cannot be known.
        results: the run's results.json; empty: none at hand.
        weights: folder of pretrained weight files; None: PFEDSAM_WEIGHTS.
    """

    kind: str
    lines: dict[str, str]
    tensors: Tensors | None
    config: Config | None
    results: dict[str, Any]
    weights: Path | None


def verify(path: Path, results: Path | None = None, weights: Path | None = None) -> list[Check]:
    """Every check of the file at `path`; it is in order if none is False.

    Args:
        results: the run's results.json or its folder; None: that of the run folder that the file lies in, if it does.
        weights: folder of pretrained weight files; None reads PFEDSAM_WEIGHTS.

    Raises:
        UserFault: there is no such file, or the results cannot be read.
    """
    if not path.is_file():
        raise UserFault(expected=f"a file at {path}", came="none", do="name an exported model or a run's tensors")
    lines = facts_of(path)
    known = _results(path, results)
    tensors, fault = _tensors(path)
    kind = _kind(lines)
    checks = [_format(lines, kind), Check("tensors", not fault, fault or f"{len(tensors or {})}, as written (sha256)")]
    if not kind:
        return checks
    subject = Subject(kind, lines, tensors, _config(lines, known), known, weights)
    checks += [ask(subject) for ask in (_header, _settings, _round, _parts, _base)]
    return [*checks, _loads(path, checks, weights)] if kind == "model" else checks


def signature(path: Path, root: Certificate | None, signer: str = "") -> Check:
    """Whether the file at `path` has a good signature.

    Args:
        root: the root certificate that the caller trusts; None: the signature is not checked.
        signer: the name that the signer must have; empty: any party of the project.
    """
    if root is None:
        return Check("signature", None, "not checked: --by ROOT checks who signed the file")
    try:
        return Check("signature", True, str(check(path, root, now(), signer=signer)))
    except UserFault as fault:
        return Check("signature", False, str(fault))


def _format(lines: dict[str, str], kind: str) -> Check:
    if kind == "model" and lines.get("version") != str(VERSION):
        return Check("format", False, f"version {lines.get('version')}, this software knows {VERSION}")
    return Check("format", bool(kind), f"{kind} file" if kind else "no file of pfedsam, or its beginning is damaged")


def _header(subject: Subject) -> Check:
    if subject.kind != "model":
        return Check("header", None, "a run's own files have no seal on it; export seals it")
    fits = sealed(subject.lines)
    return Check("header", fits, "as written" if fits else "a line of it was changed after export")


def _settings(subject: Subject) -> Check:
    said, theirs = subject.lines.get("config", ""), subject.results.get("config_hash")
    if SETTINGS in subject.lines and text_digest(subject.lines[SETTINGS]) != said:
        return Check("settings", False, f"they do not have the digest {said[:12]} that stands beside them")
    if theirs and theirs != said:
        return Check("settings", False, f"{said[:12]}, those of the run are {theirs[:12]}")
    if subject.config is None:
        fits = False if SETTINGS in subject.lines else None
        return Check("settings", fits, "cannot be read from file or results")
    return Check("settings", True, f"{said[:12]}" + (", as in results.json" if theirs else ""))


def _round(subject: Subject) -> Check:
    """Against results.json: of its run, and its last round, or for the best or an exported one any that it did."""
    number = subject.lines.get("round", "")
    rounds = [str(entry["round"]) for entry in subject.results.get("rounds", [])]
    run, theirs = subject.lines.get("run"), subject.results.get("run")
    if run and theirs and run != theirs:
        return Check("round", False, f"of run {run}, results.json is of {theirs}")
    if not rounds or not number:
        return Check("round", None, f"{number or 'not in the file'}" + ("" if rounds else "; no results.json at hand"))
    last = subject.kind == "shared" and "val_dice" not in subject.lines
    allowed = rounds[-1:] if last else rounds
    theirs = "as in results.json" if number in allowed else f"the run's rounds end with {rounds[-1]}"
    why = f"{number}, counted from 0, {theirs}"
    return Check("round", number in allowed, why)


def _parts(subject: Subject) -> Check:
    tensors, config = subject.tensors, subject.config
    if tensors is None or config is None:
        return Check("names and shapes", None, "needs whole tensors and settings")
    shared: Tensors | None = tensors if subject.kind == "shared" else None
    private: Tensors | None = unprefixed(tensors) if subject.kind == "private" else None
    if subject.kind == "model":
        shared = below(SHARED, tensors)
        private = below(PRIVATE, tensors) if "personal" in subject.lines.get("branches", "") else None
    try:
        check_tensors(config, shared, private)
    except UserFault as fault:
        return Check("names and shapes", False, str(fault))
    return Check("names and shapes", True, "as the method's partition asks")


def _base(subject: Subject) -> Check:
    said, theirs = subject.lines.get("base", ""), str(subject.results.get("base_hash") or "")
    if said and theirs and said != theirs:
        return Check("base", False, f"{said[:12]}, that of the run in results.json is {theirs[:12]}")
    if subject.config is None:
        return Check("base", None, "needs the settings")
    if subject.tensors and (state := below(BASE, subject.tensors)):
        if odd := misfits(state, base_schema(subject.config)):
            return Check("base", False, f"in the file {len(odd)} tensor(s) differ from the backbone's, e.g. {odd[0]}")
        found, where = build.base_digest(assemble(subject.config.model, state)), "the base in the file"
    else:
        try:
            found = build.base_digest(build.backbone(subject.config.model, subject.weights))
        except UserFault as fault:
            return Check("base", None, f"no base at hand: {fault}")
        where = "the weights at hand"
    fits = found == said
    return Check("base", fits, f"{said[:12]}, as {where}" if fits else f"{said[:12]}, {where}: {found[:12]}")


def _loads(path: Path, before: list[Check], weights: Path | None) -> Check:
    """The last check: what `pfedsam.load` does. Without a base at hand it is all but putting the parts together."""
    base = before[-1]
    if any(check.ok is False for check in before):
        return Check("loading", None, "not tried, because another check failed")
    try:
        load_model(path, weights, device="cpu") if base.ok else read_model(path)
    except UserFault as fault:
        return Check("loading", False, str(fault))
    return Check("loading", True if base.ok else None, "as pfedsam.load does it" if base.ok else "all but the base")


def _kind(lines: dict[str, str]) -> str:
    """What the header says the file is; empty: nothing that is known here."""
    if lines.get("format") == FORMAT:
        return "model"
    if PAYLOAD not in lines or "base" not in lines:
        return ""
    return str(
        lines.get("part") or ("shared" if {"done", SETTINGS} & {*lines} else "private")
    )  # a site's store says neither


def _config(lines: dict[str, str], results: dict[str, Any]) -> Config | None:
    try:
        return from_record(parsed(lines[SETTINGS]) if SETTINGS in lines else results["config"])
    except (KeyError, ValueError):
        return None


def _tensors(path: Path) -> tuple[Tensors | None, str]:
    try:
        return unpack(path.read_bytes())[0], ""
    except ValueError as fault:
        return None, str(fault)


def _results(path: Path, named: Path | None) -> dict[str, Any]:
    beside = path.resolve().parent.parent / RESULTS  # RUN/models/shared.safetensors
    if named is not None and named.is_dir():
        files = [folder / RESULTS for folder in servers_folders(named)]
        if not (there := [file for file in files if file.is_file()]):
            raise UserFault(
                expected=f"a run's results in the folder {named}", came="none there", do=f"name its {RESULTS}"
            )
        named = there[0]
    return read_json(named or beside) if named or beside.is_file() else {}
