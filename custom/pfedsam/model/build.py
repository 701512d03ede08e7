"""From the settings to a segmenter: the one place where a configuration meets the modules."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from pfedsam.config import Config, ModelConfig
from pfedsam.errors import UserFault
from pfedsam.model import weights
from pfedsam.model.backbones import BUILDERS, Backbone
from pfedsam.model.decoder import PromptFreeDecoder
from pfedsam.model.encoder import adapt, adapt_after
from pfedsam.model.lora import loras, reset
from pfedsam.model.moe import LocalMoE
from pfedsam.model.segmenter import Segmenter

RANDOM = 0  # seed of weights that are not pretrained: the same at server and sites


def backbone(config: ModelConfig, folder: str | Path | None = None, *, read: bool = True) -> Backbone:
    """The pretrained parts that `config` names, encoder frozen.

    Args:
        folder: where weight files lie (None: PFEDSAM_WEIGHTS).
        read: False leaves the weights as initialised, for shapes alone.
    """
    if config.backbone not in BUILDERS:
        raise UserFault(expected="model.backbone one of " + ", ".join(BUILDERS), came=config.backbone, do="correct it")
    state = weights.read(config.backbone, folder) if read and config.pretrained else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM)
        parts = BUILDERS[config.backbone](config.image_size, state)
    parts.encoder.requires_grad_(False)
    return parts


def segmenter(config: Config, parts: Backbone) -> Segmenter:
    """The global branch: LoRA in the encoder (or after it), prompt-free decoder; no experts."""
    m = config.model
    if config.reading == "post":
        adapt_after(parts.encoder, rank=m.lora_rank, alpha=m.lora_alpha)
    else:
        adapt(parts.encoder, rank=m.lora_rank, alpha=m.lora_alpha, last=m.lora_last)
    return Segmenter(parts.encoder, PromptFreeDecoder(parts.decoder, parts.position, outputs(m)))


def outputs(config: ModelConfig) -> int:
    """Logit channels: one a class, and one for the background when classes exclude each other."""
    return config.num_classes + config.exclusive


def add_experts(branch: Segmenter, config: ModelConfig) -> None:
    """Put an L-MoE into every LoRA bottleneck of `branch`; makes it a personal branch."""
    for unit in branch.encoder.units:
        for lora in loras(unit):
            lora.mix = LocalMoE(
                config.lora_rank,
                experts=config.experts,
                top_k=config.top_k,
                multiplied=config.gate_multiplied,
                noisy=config.gate_noise,
                interpolation=config.interpolation,
                window=int(getattr(unit, "window_size", 0)) if config.route == "window" else 0,
            )


def seed_shared(branch: Segmenter, seed: int) -> None:
    """Draw what is not pretrained in a global branch (LoRA's A, a multi-class head) from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    reset(branch, generator)
    if branch.decoder.head is not None:
        conv = branch.decoder.head.conv
        nn.init.kaiming_uniform_(conv.weight, a=5**0.5, generator=generator)
        nn.init.zeros_(conv.bias) if conv.bias is not None else None


def base_digest(parts: Backbone) -> str:
    """sha256 of the frozen base (encoder parameters and buffers, position code): who agrees on it can average.

    Take it before adapters are put in; names do not enter, order and values do.
    """
    digest = hashlib.sha256()
    for tensor in [*parts.encoder.state_dict().values(), *parts.position.state_dict().values()]:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
