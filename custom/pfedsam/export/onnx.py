"""One branch as one ONNX graph: RGB images of 0..1 in, mask logits out."""

import importlib.util
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfedsam.data.planes import SCALES, described
from pfedsam.errors import UserFault
from pfedsam.export.merge import plain
from pfedsam.files import write_atomic
from pfedsam.inference.facts import source_lines
from pfedsam.inference.predictor import Predictor
from pfedsam.model.backbones import Backbone
from pfedsam.model.prepared import state_of

OPSET = 20  # the first with GELU of its own; onnxruntime 1.17 and later run it
CLOSE = 1e-4  # logits of the graph against torch in float32, relative to the largest logit where that exceeds 1
TRY = 2  # images that the graph is traced and checked with
LARGE = 2**31 - 2**20  # bytes: protobuf holds no more


def export_onnx(model: Predictor, path: Path, branch: str) -> float:
    """Write `branch` as an ONNX graph to `path`, checked in onnxruntime; returns its greatest deviation from torch.

    Input `image`: float32 (batch, 3, S, S), RGB of 0..1, fitted as by `data.square.fit`; normalisation is inside.
    Output `logits`: float32 (batch, outputs, h, h). The batch is dynamic, S is not. LoRA is merged into the weights;
    where experts stand in its bottleneck the graph holds them and their gate.

    Args:
        model: loaded with precision "fp32", on the CPU.

    Raises:
        UserFault: the packages are missing, or the graph does not compute what torch does.
    """
    check_packages()
    data, error = graph(model, branch)
    write_atomic(path, data)
    return error


def check_packages() -> None:
    """Refuse to begin without the packages that an ONNX graph needs.

    Raises:
        UserFault: one is missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserFault(
            expected="the packages that ONNX export needs",
            came=f"no {', '.join(missing)}",
            do="pip install 'pfedsam[onnx]'",
        )


def check_size(base: Backbone) -> None:
    """Refuse a base that is too large for a graph, before one is made.

    Raises:
        UserFault: it is.
    """
    _require_small(sum(4 * tensor.numel() for tensor in state_of(base).values()))


def _require_small(size: int) -> None:
    if size > LARGE:
        raise UserFault(
            expected="a graph of less than 2 GB, as ONNX holds in one file",
            came=f"{size / 2**30:.1f} GiB",
            do="export a smaller backbone",
        )


def graph(model: Predictor, branch: str) -> tuple[bytes, float]:
    """`branch` as the bytes of an ONNX file, and their deviation; arguments and faults as for `export_onnx`."""
    chain = nn.Sequential(model.normalise, plain(model.model[model.branch_name(branch)])).eval()
    image = torch.rand(TRY, 3, model.size, model.size, generator=torch.Generator().manual_seed(0))
    program = _program(chain, image)
    program.model.metadata_props.update(_notes(model, branch))
    data = _bytes(program)
    return data, max(_deviation(data, model, image[:n], branch) for n in (1, TRY))


def session(data: bytes) -> Any:
    """An onnxruntime session of a graph, on the CPU, with as many threads as torch has now."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _program(chain: nn.Module, image: torch.Tensor) -> Any:
    """The graph, traced with a dynamic batch.

    Raises:
        UserFault: torch's exporter cannot do it.
    """
    batch = torch.export.Dim("batch", min=1, max=4096)
    ends: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        chain(image)  # fills the tables that are computed once, with real tensors
        try:
            program = torch.export.export(chain, (image,), dynamic_shapes=({0: batch},))
            return torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **ends)
        except Exception as error:  # the exporter raises nearly any exception
            raise UserFault(
                expected="a branch that torch can write as an ONNX graph",
                came=f"{type(error).__name__} from torch {torch.__version__}",
                do="report it with the settings; nothing was written",
            ) from error


def _bytes(program: Any) -> bytes:
    import onnx

    proto = program.model_proto
    _strip(proto)
    _require_small(proto.ByteSize())
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def _strip(proto: Any) -> None:
    """Take the exporter's remarks out of a model's parts: they name this machine's folders. The model's own stay."""
    whole = proto.graph
    nodes = [*whole.node, *(node for function in proto.functions for node in function.node)]
    values = [*whole.value_info, *(value for function in proto.functions for value in function.value_info)]
    for part in (whole, *nodes, *values, *whole.input, *whole.output, *whole.initializer, *proto.functions):
        del part.metadata_props[:]
        part.doc_string = ""


def _deviation(data: bytes, model: Predictor, image: torch.Tensor, branch: str) -> float:
    """Greatest difference of the graph's logits in onnxruntime to torch's, over the largest logit if above 1.

    Raises:
        UserFault: it is beyond `CLOSE`.
    """
    found = torch.from_numpy(session(data).run(None, {"image": image.numpy()})[0])
    expected = model.logits(image, branch)
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1))
    if not error <= CLOSE:
        raise UserFault(
            expected=f"the graph's logits within {CLOSE} of torch's",
            came=f"{error:.1e}",
            do="report it with the settings; nothing was written",
        )
    return error


def _notes(model: Predictor, branch: str) -> dict[str, str]:
    """What the graph's metadata say: how to feed it and where it comes from."""
    config, facts, size = model.config, model.facts, model.size
    if branch == "global":
        facts = replace(facts, origin=replace(facts.origin, site="", private_round=None))
    apart = "then the largest output counts (softmax for probabilities), the first is the background"
    reading = apart if config.model.exclusive else "then sigmoid for each class, which is there above 0.5"
    return source_lines(facts) | {
        "input": f"image: float32 (batch, 3, {size}, {size}), RGB of 0..1; each side scaled to"
        f" round(side * {size} / longest side), at least 1, bilinear with antialiasing; zeros right and below",
        "scale": SCALES[config.data.scale],
        "plane": described(config.data.plane),
        "classes": json.dumps(config.class_names),
        "output": f"logits: float32 (batch, outputs, h, h); bilinear to {size} x {size}, cut to the sides above, then"
        f" bilinear to the image's own size, both without antialiasing; {reading}",
        "normalisation": "inside the graph",
        "branch": branch,
        "model_sha256": facts.sha256,
        "versions": json.dumps(facts.versions, sort_keys=True),
        "use": "research use; not a medical device",
    }
