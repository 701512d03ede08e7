"""Texts for people, from the templates in `assets/`."""

from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from pfedsam.layout import ASSETS


def filled(template: str, filters: dict[str, Any] | None = None, **values: Any) -> str:
    """The text of a template, filled with values. In an HTML page they are escaped. None may be missing.

    Args:
        template: its name in `assets/`.
        filters: functions that write values as text, by their names in the template.
    """
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(template).render(values)
