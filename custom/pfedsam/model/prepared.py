"""The prepared frozen base on disk: written once, then mapped into memory by every site on the machine.

Preparing a backbone reads its weights, fits them to the image size, and rounds its matrices to the
number format that autocast would round them to at each use. Sites on one machine that name the same
folder share the file's memory pages.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

from pfedsam import log
from pfedsam.config import ModelConfig
from pfedsam.files import parsed, sha256, write_atomic, write_json
from pfedsam.model import weights
from pfedsam.model.backbones import BUILDERS, PROMPTS, Backbone
from pfedsam.model.build import backbone, base_digest
from pfedsam.tensors import below, under

LAYOUT = 2  # raised when the content of a prepared file changes its meaning
MATRICES = (nn.Linear, nn.Conv2d)  # autocast rounds their parameters for each use


def prepared(config: ModelConfig, folder: str | Path | None, cache: Path | None, *, bf16: bool) -> tuple[Backbone, str]:
    """The pretrained parts that `config` names, encoder frozen and mapped from disk, and the base's digest.

    Args:
        folder: of the weight files (None: PFEDSAM_WEIGHTS).
        cache: folder of the prepared files. If the needed file is absent or damaged, it is written. None keeps
            nothing and reads the weights each time, unrounded.
        bf16: hold the encoder's matrices in bfloat16, as autocast does. All else stays exact.

    Raises:
        UserFault: the weights are missing, or not the known ones or those that the job names.
    """
    if cache is None:
        parts = backbone(config, folder)
        return parts, base_digest(parts)
    path = cache / f"{_key(config, folder, bf16)}.safetensors"
    found = read_base(path, config)
    if found is None:
        log.info("preparing %s at %d px once; kept in %s", config.backbone, config.image_size, cache)
        write_base(path, backbone(config, folder), bf16=bf16)
        found = read_base(path, config)
    if found is None:
        raise OSError(f"{path} was written, but it cannot be read back")
    return found


def write_base(path: Path, parts: Backbone, *, bf16: bool) -> None:
    """Write a backbone's parts to `path`, then the note beside it that makes the file valid.

    Args:
        bf16: first round the encoder's matrices, in place.
    """
    base = base_digest(parts)
    if bf16:
        round_matrices(parts.encoder)
    prompts = {} if parts.prompts is None else parts.prompts.state_dict()
    write_atomic(path, save(state_of(parts) | under(PROMPTS, prompts)))
    write_json(path.with_suffix(".json"), {"base": base, "sha256": sha256(path)})


def read_base(path: Path, config: ModelConfig) -> tuple[Backbone, str] | None:
    """The parts in the file, mapped, and the digest of their base before rounding. None if absent or damaged."""
    try:
        note = parsed(path.with_suffix(".json").read_bytes())
        if sha256(path) != note["sha256"]:
            raise ValueError("the checksum does not fit")
        return assemble(config, load_file(path)), str(note["base"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as fault:
        log.warning("%s is damaged (%s). It is prepared again", path, fault)
        return None


def round_matrices(module: nn.Module) -> None:
    """Round matrices and kernels below `module`, with their biases, to bfloat16. Norms, tables and positions stay."""
    for part in module.modules():
        if isinstance(part, MATRICES):
            part.to(torch.bfloat16)


def state_of(parts: Backbone) -> dict[str, Tensor]:
    """All tensors that a branch has of a backbone's parts, in the form that `assemble` takes."""
    return {f"{name}.{k}": v.contiguous() for name, module in _modules(parts) for k, v in module.state_dict().items()}


def assemble(config: ModelConfig, state: dict[str, Tensor]) -> Backbone:
    """The backbone around given tensors, encoder frozen. Nothing is initialised, and the encoder is not copied."""
    with torch.device("meta"):
        parts = BUILDERS[config.backbone](config.image_size, None)
    for name, module in _modules(parts):
        own = below(f"{name}.", state)
        module.load_state_dict(own if name == "encoder" else {k: v.clone() for k, v in own.items()}, assign=True)
    if own := below(PROMPTS, state):
        cast(PromptEncoder, parts.prompts).load_state_dict({k: v.clone() for k, v in own.items()}, assign=True)
    else:
        parts = replace(parts, prompts=None)
    for module in parts.encoder.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            _draw_buffers(module)
    parts.encoder.requires_grad_(False)
    return parts


def _draw_buffers(module: nn.Module) -> None:
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_meta:
            module.register_buffer(name, torch.empty_like(buffer, device="cpu"), persistent=False)
    module.init_non_persistent_buffers()  # type: ignore[operator]


def _modules(parts: Backbone) -> Iterator[tuple[str, nn.Module]]:
    yield from (("encoder", parts.encoder), ("decoder", parts.decoder), ("position", parts.position))


def _key(config: ModelConfig, folder: str | Path | None, bf16: bool) -> str:
    source = weights.identity(config, folder) if config.pretrained else "random"
    number = "bf16" if bf16 else "fp32"
    return f"{config.backbone}.{config.image_size}.{number}.{source[:16]}.{LAYOUT}"
