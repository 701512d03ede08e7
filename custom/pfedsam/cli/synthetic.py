"""pfedsam synthetic: write a synthetic site's files."""

import argparse
from pathlib import Path

from pfedsam.cli.console import show

HELP = "write a synthetic site's images, masks and datalist"
EXAMPLE = "pfedsam synthetic /tmp/site-1 --site site-1 --train 48"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--site", default="site-1", help="the name of a demo site, or any other name")
    parser.add_argument("--seed", type=int, default=0, help="of the random images; default: 0")
    for split, count in (("train", 48), ("val", 8), ("test", 16)):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"number of {split} images; default: {count}")


def serve(options: argparse.Namespace) -> None:
    """Write the site."""
    from pfedsam.config import DataConfig
    from pfedsam.data.synthetic import write_site
    from pfedsam.settings import field_values

    counts = {split: getattr(options, split) for split in ("train", "val", "test")}
    field_values(DataConfig, counts, "--", "pfedsam synthetic")  # a site needs images of every split
    show(f"wrote {write_site(options.out, options.site, counts, options.seed)}")
