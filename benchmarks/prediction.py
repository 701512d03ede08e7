"""Predicting slices and a volume, beside stock SAM and a U-Net of nnU-Net's size: benchmarks/prediction.py --help.

Ours computes in torch, and in onnxruntime. Stock SAM is the same model from its published modules (`stock.py`), image
by image, with LoRA as trained. All three find the same masks. The U-Net is what a user might take instead: MONAI's
DynUNet with nnU-Net's 2-D plan for this size.
"""

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import torch
from machine import ROOT, Table, interleaved, keepable, median, publish
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from stock import StockSAM, adapted, start_like
from torch import Tensor
from training_step import state_of
from unet import FILTERS, net

from pfedsam.config import Config
from pfedsam.export.runtime import by_onnxruntime
from pfedsam.inference.predictor import Predictor, first_model
from pfedsam.predict.masks import usual_way
from pfedsam.predict.run import predict
from pfedsam.predict.scans import find_scans
from pfedsam.predict.segmentation import Classes
from pfedsam.settings import from_dict
from pfedsam.train.precision import has_bf16

sys.path.insert(0, str(ROOT / "tests/data"))
write_series = importlib.import_module("dicoms").write_series

SHAPE = (512, 512, 160)


def main() -> None:
    """Measure, print the tables, and keep them if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--slices", type=int, default=8)
    options = keepable(parser).parse_args()
    model, fast = first_model(settings()), first_model(settings("fp32"))
    with tempfile.TemporaryDirectory() as cache:
        starts = [(name, started(fast, Path(cache))) for name in ("the first, which makes the graph", "each later one")]
        graph = by_onnxruntime(fast, Path(cache))
        tables = [slices(model, graph, options.slices, options.runs), volumes({"torch": model, "onnxruntime": graph})]
    tables.append(Table({"a start of onnxruntime": "", "seconds beside torch's own": ".1f"}, starts))
    number = "bf16" if has_bf16(torch.device("cpu")) else "float32, because this processor has no bf16"
    notes = [f"torch computes in {number}, onnxruntime in float32."]
    publish("Prediction: tiny_vit, 256 px, a volume of 512 x 512 x 160", *tables, notes=notes, keep=options.keep)


def settings(precision: str = "auto") -> Config:
    """One branch with LoRA on every linear layer, as in the real jobs."""
    model = {"backbone": "tiny_vit", "image_size": 256, "lora_on": "linear"}
    own = {"model": model, "data": {"scale": "percentile"}, "train": {"precision": precision}}
    return from_dict({"method": "fedavg"} | own)


def started(model: Predictor, cache: Path) -> float:
    """Seconds until onnxruntime is ready, with the model already loaded."""
    began = time.perf_counter()
    by_onnxruntime(model, cache).ready("global")
    return time.perf_counter() - began


def slices(model: Predictor, graph: Predictor, count: int, runs: int) -> Table:
    """Slices a second from fitted images to logits, each way in turn."""
    images = torch.rand(count, 3, model.size, model.size)
    slow = stock(model)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "stock SAM, float32, one by one": slow,
        "ours": partial(model.logits, branch="global"),
        "ours, onnxruntime": partial(graph.logits, branch="global"),
    }
    with torch.no_grad():
        for name in ("ours", "ours, onnxruntime"):
            apart = float((ways[name](images[:2]) - slow(images[:2])).abs().max())
            print(f"largest difference of a logit from stock's, {name}: {apart:.1e}", file=sys.stderr)
        took = median(
            interleaved({name: partial(way, images) for name, way in (ways | {"U-Net": unet()}).items()}, runs)
        )
    columns = {"model": "", "slices a second": ".2f", "times as fast as stock": ".2f"}
    stock_took = took["stock SAM, float32, one by one"]
    return Table(columns, [[name, count / s, stock_took / s] for name, s in took.items()])


def stock(model: Predictor) -> Callable[[Tensor], Tensor]:
    """SAM as published with the predictor's weights and LoRA, one image at a time."""
    config = model.config.model
    published = StockSAM(config.backbone, config.image_size, state_of(config.backbone, config.image_size))
    sam = adapted(published, config.lora_rank, on=config.lora_on).eval()
    start_like(sam, model.model["global"])
    return lambda images: torch.cat([sam(model.normalise(one[None])) for one in images])


def unet() -> Callable[[Tensor], Tensor]:
    """A 2-D U-Net of nnU-Net's size, on the same images."""
    return net(2, FILTERS, deep=False).eval()


def volumes(models: dict[str, Predictor]) -> Table:
    """Seconds from file to file, by format and runtime."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.standard_normal(SHAPE), 3) * 4000 + rng.standard_normal(SHAPE) * 20
    rows: list[list[str | float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, write in {"NIfTI": nifti, "DICOM": write_series}.items():
            source = Path(folder) / kind
            source.mkdir()
            write(source, smooth.astype(np.int16))
            rows.append(
                [kind, *(predicted(model, source, Path(folder) / f"{kind}.{n}") for n, model in models.items())]
            )
    return Table({"a volume as": "", **{f"seconds from file to file, {name}": ".1f" for name in models}}, rows)


def predicted(model: Predictor, source: Path, out: Path) -> float:
    """Seconds of predicting a folder, with the branch's graph already made."""
    way = usual_way(model)
    model.ready(way.branch)
    began = time.perf_counter()
    for done in predict(model, find_scans(source), out, way, Classes(["a"])):
        if done.fault:
            raise done.fault
    return time.perf_counter() - began


def nifti(folder: Path, values: NDArray[np.int16]) -> None:
    """The volume as one compressed file."""
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-0.7, -0.7, 2, 1.0])), folder / "volume.nii.gz")


if __name__ == "__main__":
    main()
