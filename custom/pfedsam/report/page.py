"""Writes the report: one HTML file that opens without a network."""

import base64
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pfedsam.files import write_atomic
from pfedsam.pages import filled
from pfedsam.record import measures
from pfedsam.record.results import ROLES, sites_of
from pfedsam.record.table import patients_tested
from pfedsam.report import words
from pfedsam.report.charts import dice_chart, final_chart, loss_chart
from pfedsam.report.experts import expert_rows
from pfedsam.report.gather import Material
from pfedsam.report.overlays import overlays
from pfedsam.report.words import SiteRow


def write_report(material: Material, path: Path, *, pictures: bool = True) -> dict[str, Any]:
    """Write the page to `path`, and return its summary for scripts.

    Args:
        pictures: False leaves out pictures and intervals from case scores: such a page may leave the site.
    """
    shown = material if pictures else replace(material, cases={}, pictures={})
    rows = words.site_rows(shown)
    write_atomic(path, page(shown, rows).encode())
    return {
        "report": str(path),
        "summary": words.summary(shown, rows),
        "doubts": words.doubts(shown, rows),
        "mean": shown.results["final"].get("mean") or {},
        "personal_against_global": {row.name: row.helped for row in rows},
        "stays_at_the_site": bool(shown.pictures or shown.cases),
    }


def page(material: Material, rows: list[SiteRow]) -> str:
    """The HTML text."""
    spelt = {
        "number": measures.number,
        "megabytes": words.megabytes,
        "duration": words.duration,
        "measure": measures.measure,
        "unit": measures.unit,
    }
    results = material.results
    return filled(
        "report.html",
        spelt,
        results=results,
        rounds=results["rounds"],
        title=f"{results['method']}, study {results['config'].get('study', 'pfedsam')}",
        own=material.own,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        summary=words.summary(material, rows),
        doubts=words.doubts(material, rows),
        rows=rows,
        roles=ROLES,
        metrics=words.shown(rows),
        titles=measures.TITLES,
        best=measures.HIGHER_IS_BETTER,
        distances=measures.DISTANCES,
        distances_say=measures.DISTANCES_SAY,
        patients=patients_tested(results),
        experts=expert_rows(results),
        by_class=words.class_rows(material),
        charts=charts(material, rows),
        pictures={name: base64.b64encode(overlays(path)).decode() for name, path in sorted(material.pictures.items())},
        private=bool(material.pictures or material.cases),
        traffic=traffic(results),
        sent=dict(sorted(material.sent.items())),
        refused=[
            (e["round"] + 1, site, why) for e in results["rounds"] for site, why in (e.get("rejected") or {}).items()
        ],
        settings=json.dumps(results["config"], indent=2, ensure_ascii=False),
        day=lambda seconds: time.strftime("%Y-%m-%d", time.gmtime(seconds)),
    )


def charts(material: Material, rows: list[SiteRow]) -> dict[str, Markup]:
    """The charts for which there are numbers: SVG made here, with texts escaped by matplotlib."""
    rounds = material.results["rounds"]
    found = {"final": final_chart(rows)} if rows else {}
    if any(entry["sites"] for entry in rounds):
        found |= {"dice": dice_chart(rounds), "loss": loss_chart(rounds)}
    # our own charts, in which matplotlib escapes all texts
    return {name: Markup(svg) for name, svg in found.items()}  # nosec B704


def traffic(results: dict[str, Any]) -> list[dict[str, Any]]:
    """By site: rounds, bytes each way, seconds of training and scoring, over the whole run."""
    found = []
    for site in sites_of(results["rounds"]):
        reports = [entry["sites"][site] for entry in results["rounds"] if site in entry["sites"]]
        sums = {
            key: sum(report.get(key) or 0 for report in reports)
            for key in ("bytes_sent", "bytes_received", "seconds", "scoring_seconds")
        }
        found.append({"site": site, "rounds": len(reports), "samples": reports[-1].get("samples"), **sums})
    return found
