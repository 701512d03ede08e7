"""pfedsam convert: convert a published .pth file to safetensors."""

import argparse
from pathlib import Path

HELP = "convert a published .pth file to safetensors; needed once"
EXAMPLE = "pfedsam convert weights/sam_vit_b_01ec64.pth"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("file", type=Path)


def serve(options: argparse.Namespace) -> None:
    """Convert the file."""
    from pfedsam.model.weights import convert

    print(f"wrote {convert(options.file)}")
