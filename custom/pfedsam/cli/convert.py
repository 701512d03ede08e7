"""pfedsam convert: convert a SAM's .pth file to safetensors, and print the settings that name it."""

import argparse
from pathlib import Path

from pfedsam.cli.console import show

HELP = "convert a SAM's .pth file to safetensors, needed once, and print the settings that name it"
EXAMPLE = "pfedsam convert weights/medsam_vit_b.pth"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("file", type=Path, help="a file with segment-anything's names, of any publisher")


def serve(options: argparse.Namespace) -> None:
    """Convert the file."""
    from pfedsam.model.weights import convert

    done = convert(options.file)
    show(f"{done.path} is safetensors already" if done.path == options.file else f"wrote {done.path}")
    named = "" if done.known else f" --set model.weights={options.file.name}:{done.sha256}"
    show(f"sha256 of {options.file.name}: {done.sha256}")
    show(f"a job uses it with: --set model.backbone={done.backbone}{named}")
    if named:
        show("for a file that was trained on values of 0..1, such as MedSAM's, put :unit behind the sha256")
