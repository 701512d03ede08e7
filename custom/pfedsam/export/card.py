"""The model card beside an exported file: what it is for, what it learned from, how good it was, what is in it."""

from pathlib import Path
from typing import Any

from pfedsam.config import Config
from pfedsam.data.planes import described
from pfedsam.errors import UserFault
from pfedsam.export.source import RunModel
from pfedsam.files import parsed
from pfedsam.inference.facts import ModelFacts
from pfedsam.layout import CASES, RESULTS, sites_folders
from pfedsam.methods.pfedsam import Settings
from pfedsam.model.weights import provenance
from pfedsam.pages import filled
from pfedsam.record import measures
from pfedsam.record.cards import USE, front_matter, images_of
from pfedsam.record.results import ROLES
from pfedsam.record.scores import CaseScore, summary

Row = dict[str, Any]
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
    config, site, results = facts.config, facts.origin.site, source.results
    tested = results.get("final", {}).get("sites", {})
    rows = means(source, site, folder)
    return front_matter(config, index(facts, rows) if source.tested else None) + filled(
        "card.md",
        {"measure": measures.measure, "unit": measures.unit, "number": measures.number},
        facts=facts,
        config=config,
        origin=facts.origin,
        file=file.name,
        use=USE,
        images=images_of(config),
        slices=_slices(results),
        plane=described(config.data.plane),
        tested=source.tested,
        rows=rows,
        titles=measures.TITLES,
        patients=sum(of.get("patients") or 0 for name, of in tested.items() if site in ("", name)),
        distances_say=measures.DISTANCES_SAY,
        reading=_reading(config),
        base=provenance(config.model),
    )


def _slices(results: dict[str, Any]) -> dict[str, int]:
    """The number of training slices by site; empty where the site has no record.

    Raises:
        UserFault: the record lacks them.
    """
    try:
        return {name: of["samples"] for entry in results.get("rounds", []) for name, of in entry["sites"].items()}
    except (KeyError, TypeError, AttributeError):
        came, do = "other keys than docs/results.md lists", "take the one that the server wrote"
        raise UserFault(expected=f"the run's {RESULTS} of schema 1", came=came, do=do) from None


def index(facts: ModelFacts, rows: dict[str, Row]) -> list[dict[str, Any]]:
    """The means of the branches in the file as the `model-index` of the Hugging Face hub; empty where there are none.

    The data set is no public one, so that its type says so and its name tells whose images they were.
    """
    metrics = [
        {"type": metric, "value": round(row[metric], 4), "name": _named(metric, role, row)}
        for role, row in rows.items()
        if role in facts.branches
        for metric in measures.METRICS
        if row.get(metric) is not None
    ]
    synthetic, site = facts.config.data.source == "synthetic", facts.origin.site
    whose = "this site's test split" if site else "test split, mean over sites"
    dataset = {
        "type": "synthetic" if synthetic else "private",
        "name": f"{images_of(facts.config)}, {whose}",
        "split": "test",
    }
    task = {"type": "image-segmentation", "name": "Segmentation without a prompt"}
    results = [{"task": task, "dataset": dataset, "metrics": metrics}]
    return [{"name": facts.config.study, "results": results}] if metrics else []


def _named(metric: str, role: str, row: Row) -> str:
    title = measures.TITLES[metric]
    return f"{title} ({measures.unit(row)}), {role} branch" if metric in ("hd95", "assd") else f"{title}, {role} branch"


def means(source: RunModel, site: str, folder: Path | None = None) -> dict[str, Row]:
    """Means on the test split by role: of the site, of all sites where it is none's; empty where unknown."""
    final = source.results.get("final", {})
    rows: dict[str, Row] = final.get("sites", {}).get(site, {}) if site else final.get("mean", {})
    if site and not rows and folder:
        rows = _own(folder, site, source.facts.origin.run)
    return {role: rows[role] for role in ROLES if any(value is not None for value in (rows.get(role) or {}).values())}


def _reading(config: Config) -> str:
    """Which of pFedSAM's readings it was; empty for another method."""
    if config.method != "pfedsam":
        return ""
    reading, none = config.own(Settings).reading, "" if config.model.l_moe else " (none in this run)"
    return f", reading {reading}: {READINGS[reading]}{none}"


def _own(folder: Path, site: str, run: str) -> dict[str, Row]:
    """A site's means out of the scores that it keeps of its final test in that run."""
    for own in sites_folders(folder, site):
        try:
            kept = parsed((own / CASES).read_bytes())
            scores = kept["scores"]
        except (OSError, ValueError, KeyError):
            continue
        if run and kept.get("run", run) != run:
            continue
        return {role: summary([CaseScore(**row) for row in rows]) for role, rows in scores.items()}
    return {}
