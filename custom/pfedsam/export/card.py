"""The model card beside an exported file: what it is for, what it learned from, how good it was, what is in it."""

import json
from pathlib import Path
from typing import Any

from pfedsam.config import Config
from pfedsam.data.planes import described
from pfedsam.export.source import RunModel
from pfedsam.inference.facts import ModelFacts
from pfedsam.layout import CASES, sites_folders
from pfedsam.methods.pfedsam import Settings
from pfedsam.model.weights import PROVENANCE
from pfedsam.record.cards import USE
from pfedsam.record.measures import DISTANCES_SAY, METRICS, TITLES, measure, unit
from pfedsam.record.results import ROLES
from pfedsam.record.scores import CaseScore, summary

Row = dict[str, Any]
COUNTS = {"scored": "scored", "empty": "empty", "false_alarms": "false alarms"}
READINGS = {
    "R1": "the site's own LoRA, decoder and experts, begun from the shared ones",
    "R2": "the shared LoRA and decoder with the site's experts",
    "R3": "the shared LoRA and decoder taken over each round, trained on at the site, with its experts",
    "post": "as R3, LoRA behind the encoder, with its experts",
}


def card(source: RunModel, facts: ModelFacts, file: Path, folder: Path | None = None) -> str:
    """The card as Markdown; it holds counts and means, never the name of a case, a file or a patient.

    Args:
        facts: of the file as it was written.
        file: the exported file; its name alone enters.
        folder: the run's, where a site keeps the scores of its final test.
    """
    parts = (
        _title(facts, file),
        _use(facts),
        _data(source, facts),
        _scores(source, facts, folder),
        _how(source, facts),
        _inside(facts),
        _licences(facts),
    )
    return "\n".join(line for part in parts for line in (*part, "")) + "\n"


def means(source: RunModel, site: str, folder: Path | None = None) -> dict[str, Row]:
    """Means on the test split by role: of the site, of all sites where it is none's; empty where unknown."""
    final = source.results.get("final", {})
    if not site:
        return {role: row for role, row in final.get("mean", {}).items() if _any(row)}
    rows: dict[str, Row] = final.get("sites", {}).get(site) or (
        _own(folder, site, source.facts.origin.run) if folder else {}
    )
    return {role: rows[role] for role in ROLES if rows.get(role) and _any(rows[role])}


def _title(facts: ModelFacts, file: Path) -> tuple[str, ...]:
    whose = f"site {facts.origin.site}, personal and global branch" if facts.origin.site else "global branch, all sites"
    return (
        f"# Model of study {facts.config.study}: {whose}",
        "",
        f"File: `{file.name}`. sha256 of its tensors: `{facts.sha256}`.",
    )


def _use(facts: ModelFacts) -> tuple[str, ...]:
    return (
        "## Use",
        "",
        f"- For: masks of {', '.join(facts.config.class_names)} on 2-D images like those it was trained on, without a"
        " prompt; a person who can judge them corrects them.",
        "- Not for: diagnosis or treatment without review; other organs, modalities, scanners or populations than"
        " those it was tested on; images for which nobody has checked it.",
        f"- {USE}",
    )


def _data(source: RunModel, facts: ModelFacts) -> tuple[str, ...]:
    kind = "synthetic images" if facts.config.data.source == "synthetic" else "the sites' own images"
    slices = _slices(source.results)
    lines = ["## Data", "", f"- Trained on: {kind}, which stayed at the sites."]
    if slices:
        lines.append(f"- {len(slices)} site(s), {sum(slices.values())} training slices in all.")
    if facts.origin.site in slices:
        lines.append(f"- Of these {slices[facts.origin.site]} at this site.")
    return (
        *lines,
        f"- Slices: {described(facts.config.data.plane)}.",
        f"- Intensity: {facts.config.data.scale} to 0..1. Patients, ages, devices: [the sites fill this in].",
    )


def _scores(source: RunModel, facts: ModelFacts, folder: Path | None) -> tuple[str, ...]:
    if not source.tested:
        return (
            "## Test",
            "",
            "- This model was not tested, as the run's final test was of another shared part: test it.",
        )
    rows = means(source, facts.origin.site, folder)
    if not rows:
        return "## Test", "", "- No scores at hand: test it on your own images before you use it."
    where = "this site's test split" if facts.origin.site else "test split, mean over sites"
    head = ("branch", *(TITLES[metric] for metric in METRICS), "unit", *COUNTS.values())
    table = (f"| {role} | " + " | ".join(_cells(row)) + " |" for role, row in rows.items())
    return (
        f"## Test ({where})",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *table,
        "",
        f"{_patients(source, facts)}{DISTANCES_SAY} `before`: the model as first received.",
    )


def _reading(config: Config) -> str:
    """Which of pFedSAM's readings it was; empty for another method."""
    if config.method != "pfedsam":
        return ""
    reading, none = config.own(Settings).reading, "" if config.model.experts else " (none in this run)"
    return f", reading {reading}: {READINGS[reading]}{none}"


def _how(source: RunModel, facts: ModelFacts) -> tuple[str, ...]:
    config, origin, m = facts.config, facts.origin, facts.config.model
    rounds = "unknown" if origin.round is None else str(origin.round + 1)
    own = "" if origin.private_round is None else f"; private part last trained in round {origin.private_round}"
    return (
        "## How it was made",
        "",
        f"- Method: {config.method}{_reading(config)}; seed {config.seed}.",
        f"- Rounds done: {rounds} (counted from 0 in the files){own}. Run: {origin.run or 'unknown'}.",
        f"- Base: {PROVENANCE[m.backbone][0]}, at {m.image_size} px; its digest `{origin.base}`.",
        f"- Settings: `{facts.config_hash}`, in full in the file's header.",
        "- Software: " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + ".",
    )


def _inside(facts: ModelFacts) -> tuple[str, ...]:
    lines = ["## What is in the file", ""]
    lines.append("- The shared part, as every site of the study has it.")
    if facts.origin.site:
        lines.append(
            f"- **The private part of site {facts.origin.site}, trained on its images alone. It must not be published"
            " or leave the site:** a model can give away what it was trained on. For others: `--global-only`."
        )
    base = "The frozen base too." if facts.with_base else "Not the frozen base: loading needs its weight file."
    return (*lines, f"- {base}")


def _licences(facts: ModelFacts) -> tuple[str, ...]:
    source, licence = PROVENANCE[facts.config.model.backbone]
    return (
        "## Licences",
        "",
        f"- Base weights ({source.split(',')[0]}): {licence}.",
        "- Training data: [the sites fill this in: licence, consent, ethics approval].",
        "- This model: [the study fills this in].",
    )


def _slices(results: dict[str, Any]) -> dict[str, int]:
    """Training slices by site, as last reported."""
    return {site: row["samples"] for entry in results.get("rounds", []) for site, row in entry["sites"].items()}


def _own(folder: Path, site: str, run: str) -> dict[str, Row]:
    """A site's means out of the scores that it keeps of its final test in that run."""
    for own in sites_folders(folder, site):
        try:
            kept = json.loads((own / CASES).read_text())
            scores = kept["scores"]
        except (OSError, ValueError, KeyError):
            continue
        if run and kept.get("run", run) != run:
            continue
        return {role: summary([CaseScore(**row) for row in rows]) for role, rows in scores.items()}
    return {}


def _any(row: Row) -> bool:
    return any(value is not None for value in row.values())


def _cells(row: Row) -> list[str]:
    counts = [str(row[key]) if row.get(key) is not None else "-" for key in COUNTS]
    return [*(measure(row.get(metric), metric) for metric in METRICS), unit(row), *counts]


def _patients(source: RunModel, facts: ModelFacts) -> str:
    """How many patients the test split has, of one site or of all; empty where the run does not say."""
    sites = source.results.get("final", {}).get("sites", {})
    told = [of.get("patients") or 0 for name, of in sites.items() if facts.origin.site in ("", name)]
    return f"Test patients: {sum(told)}. " if sum(told) else ""
