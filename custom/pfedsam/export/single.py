"""A run's model as one file, with its card beside it."""

from pathlib import Path

from pfedsam.errors import UserFault
from pfedsam.export.card import card
from pfedsam.export.source import RunModel
from pfedsam.files import write_atomic
from pfedsam.inference.facts import ModelFacts, read_facts
from pfedsam.inference.model_file import write_model
from pfedsam.model import build
from pfedsam.model.backbones import Backbone


def card_beside(out: Path) -> Path:
    """Where the card of the model file at `out` lies.

    Raises:
        UserFault: there lies the model itself, or `out` is a folder.
    """
    if out.is_dir() or not out.name:
        do = f"name a file in it, such as {out / 'model.safetensors'}"
        raise UserFault(expected="the name of a model file", came=f"the folder {out}", do=do)
    if (card := out.with_suffix(".md")) == out:
        raise UserFault(expected="another ending than .md, which the card has", came=str(out), do="use .safetensors")
    return card


def base_of(facts: ModelFacts, weights: Path | None) -> Backbone:
    """The frozen base that a run began with.

    Args:
        weights: the folder of pretrained weight files; None: PFEDSAM_WEIGHTS.

    Raises:
        UserFault: its weights are missing, or are others than the run's.
    """
    base = build.backbone(facts.config.model, weights)
    if (found := build.base_digest(base)) != facts.origin.base:
        raise UserFault(
            expected=f"the base model that the run began with ({facts.origin.base[:12]})",
            came=f"another base model ({found[:12]})",
            do="use the weight file of the run: name its folder with --weights",
        )
    return base


def write_single(source: RunModel, out: Path, folder: Path, *, base: Backbone | None = None) -> str:
    """Write the model file at `out` and its card, over what is there; returns the card's text.

    Args:
        folder: the run's, where a site keeps the scores of its final test.
        base: the frozen base, to go into the file too.

    Raises:
        UserFault: the parts do not fit the settings, or the disk forbids writing.
    """
    place = card_beside(out)
    write_model(out, source.facts, source.shared, source.private, base=base)
    text = card(source, read_facts(out), out, folder)
    write_atomic(place, text.encode())
    return text
