"""A model whose logits onnxruntime computes on the CPU, from the graph that `export_onnx` would write."""

import hashlib
from dataclasses import replace
from functools import cache as once
from functools import partial
from pathlib import Path

import torch

from pfedsam import log
from pfedsam.errors import UserFault
from pfedsam.export.onnx import OPSET, check_packages, graph, session
from pfedsam.files import parsed, write_atomic, write_json
from pfedsam.inference.facts import SEAL, header
from pfedsam.inference.predictor import Compute, Predictor, load_model

RUNTIMES = ("torch", "onnxruntime")


def load_on(
    runtime: str,
    path: Path,
    *,
    weights: Path | None = None,
    cache: Path | None = None,
    device: str | None = None,
) -> Predictor:
    """The model in the file at `path`, its logits computed by `runtime`, one of `RUNTIMES`.

    Args:
        weights, cache, device: as for `load_model`. onnxruntime keeps its graphs in `cache` too.

    Raises:
        UserFault: as `load_model`; or there is no such runtime; or onnxruntime is to run on a GPU, or is missing.
    """
    if runtime == "torch":
        return load_model(path, weights, cache, device=device)
    if runtime not in RUNTIMES:
        raise UserFault(expected=f"a runtime: {' or '.join(RUNTIMES)}", came=str(runtime), do="choose one of them")
    if (device or "cpu") != "cpu":
        do = "leave the device out, or compute with torch"
        raise UserFault(expected="the CPU, where onnxruntime computes", came=f"device {device}", do=do)
    check_packages()
    return by_onnxruntime(load_model(path, weights, cache, device="cpu", precision="fp32"), cache)


def by_onnxruntime(model: Predictor, cache: Path | None) -> Predictor:
    """`model` with its logits computed by onnxruntime. A branch's graph is made or read when it is first needed.

    Args:
        model: loaded with precision "fp32", on the CPU.
        cache: folder of the graphs. None: each is made anew.
    """
    return replace(model, graphs=once(partial(_compute, model, cache)))


def _compute(model: Predictor, cache: Path | None, branch: str) -> Compute:
    """Raises UserFault where there can be no graph of the branch, or the cache cannot be written."""
    run = session(_graph(model, cache, branch)).run
    return lambda images: torch.from_numpy(run(["logits"], {"image": images.numpy(force=True)})[0])


def _graph(model: Predictor, cache: Path | None, branch: str) -> bytes:
    """The branch's graph out of the cache. It is made where it is absent or damaged, and then kept."""
    path = cache / f"{_key(model, branch)}.onnx" if cache else None
    if path and (kept := _kept(path)):
        return kept
    log.info("making the graph of the %s branch once%s", branch, f"; kept in {cache}" if cache else "")
    data = _made(model, branch)
    if path:
        write_atomic(path, data)
        write_json(path.with_suffix(".json"), {"sha256": _digest(data)})
    return data


def _key(model: Predictor, branch: str) -> str:
    """A name that another model, other settings, another version of this package or of onnxruntime does not have."""
    import onnxruntime

    sealed = header(model.facts, model.facts.sha256)[SEAL]
    return f"{sealed[:16]}.{branch}.opset{OPSET}.onnxruntime{onnxruntime.__version__}"


def _kept(path: Path) -> bytes | None:
    """The graph at `path`. None if absent or damaged."""
    try:
        data = path.read_bytes()
        if _digest(data) != parsed(path.with_suffix(".json").read_bytes())["sha256"]:
            raise ValueError("the checksum does not fit")
        return data
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as fault:
        log.warning("%s is damaged (%s). It is made again", path, fault)
        return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _made(model: Predictor, branch: str) -> bytes:
    try:
        return graph(model, branch)[0]
    except UserFault as fault:
        do = "compute with torch, which is the default runtime"
        raise UserFault(expected=fault.expected, came=fault.came, do=do) from fault
