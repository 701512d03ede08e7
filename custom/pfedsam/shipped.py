"""What pfedsam brings along besides its code: jobs to begin with, and a project.yml to copy.

They have their one place at the top of the checkout. setup.py copies them into the wheel's assets, so that an installed
pfedsam has them without a checkout.
"""

from pathlib import Path

from pfedsam.layout import ASSETS

CHECKOUT = Path(__file__).parents[2]


def shipped(name: str) -> Path:
    """The file or folder of that name below the checkout's top, or its copy in an installed package."""
    inside = ASSETS / name
    return inside if inside.exists() else CHECKOUT / name


def presets() -> dict[str, Path]:
    """By name, the settings files and job folders that any verb takes by that name alone."""
    jobs = shipped("jobs")
    found = [*jobs.glob("*.json"), *(meta.parent for meta in jobs.glob("*/meta.json"))]
    return {path.stem: path for path in sorted(found)}


def project() -> str:
    """The text of project.yml: a federation of three hospitals, to be edited."""
    return shipped("poc/project.yml").read_text()
