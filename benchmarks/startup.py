"""Seconds until a site is ready for its first round, beside the imports that it needs: startup.py --help."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial

from machine import ROOT, Table, interleaved, keepable, median, publish

IMPORTS = """
import torch, numpy, segment_anything
import monai.losses, monai.metrics, monai.transforms
import nvflare.apis.executor, nvflare.app_opt.pt.decomposers
"""
SITE = """
import sys
from pathlib import Path
import pfedsam.flare.executor
from pfedsam.data.synthetic import write_site
from pfedsam.settings import from_dict
from pfedsam.layout import Places
from pfedsam.site import Site
folder, backbone, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if not (folder / "datalist.csv").exists():
    write_site(folder, "site-1", {"train": 4, "val": 1, "test": 1}, 0)
model = {"backbone": backbone, "image_size": size, "pretrained": backbone == "demo"}
site = Site("site-1", from_dict({"model": model}), Places(folder, folder / "store"))
"""
BACKBONES = {"demo": 128, "tiny_vit": 256, "vit_b": 256}


def main() -> None:
    """Measure each in new processes, in turns, and print one table."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        actions: dict[str, Callable[[], object]] = {"imports alone": partial(python, IMPORTS)}
        for name, size in BACKBONES.items():
            actions[f"site ready, {name} at {size} px"] = partial(python, SITE, folder, name, str(size))
        took = median(interleaved(actions, options.runs))
    least = took["imports alone"]
    columns = {"a new process": "", "seconds (median)": ".2f", "of the imports": ".2f"}
    found: list[list[str | float]] = [[name, seconds, seconds / least] for name, seconds in took.items()]
    publish("Start of a site", Table(columns, found), keep=options.keep)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    return keepable(parser).parse_args()


def python(code: str, *arguments: str) -> None:
    """Run code in a new interpreter, with this checkout's package."""
    path = os.pathsep.join([str(ROOT / "custom"), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env={**os.environ, "PYTHONPATH": path})


if __name__ == "__main__":
    main()
