"""From the settings to a segmenter: only this module builds modules from a configuration."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from pfedsam.config import Config, ModelConfig
from pfedsam.errors import UserFault
from pfedsam.model import weights
from pfedsam.model.adapters import TokenAdapter
from pfedsam.model.backbones import BUILDERS, Backbone, builder, looks_like
from pfedsam.model.decoder import ClassHead, PromptFreeDecoder
from pfedsam.model.encoder import adapt, replace_linear
from pfedsam.model.lora import Adapted, LoRA, adapted
from pfedsam.model.moe import LocalMoE
from pfedsam.model.sam_format import Misfit
from pfedsam.model.segmenter import Segmenter
from pfedsam.tensors import Tensors, tensors_digest

Adapt = Callable[[Segmenter, Config], None]
Drawn = LoRA | ClassHead | TokenAdapter  # modules without pretrained weights; they start alike everywhere
RANDOM = 0  # seed of weights that are not pretrained: the same at server and sites


def backbone(config: ModelConfig, folder: str | Path | None = None, *, read: bool = True) -> Backbone:
    """The pretrained parts that `config` names, encoder frozen.

    Args:
        folder: of the weight files (None: PFEDSAM_WEIGHTS).
        read: False leaves the weights as initialised, when only shapes are needed.

    Raises:
        UserFault: there is no such backbone, or its weights are missing, damaged, or of another backbone.
    """
    build = builder(config.backbone)
    state = weights.read(config, folder) if read and config.pretrained else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM)
        try:
            parts = build(config.image_size, state)
        except Misfit as misfit:
            raise _another(config, weights.locate(config, folder), state or {}, misfit) from None
    parts.encoder.requires_grad_(False)
    return parts


def _another(config: ModelConfig, path: Path, state: Tensors, misfit: Misfit) -> UserFault:
    """What to say of a whole file whose tensors are not the backbone's."""
    other = looks_like(state)
    do = "take a file without added parts (adapters, a further head), or the one that it was made from"
    if other != config.backbone:
        do = f"set model.backbone={other}" if other else "take a SAM of one of " + ", ".join(BUILDERS)
    return UserFault(expected=f"the tensors of a {config.backbone} in {path}", came=str(misfit), do=do)


def segmenter(config: Config, parts: Backbone, adapters: Adapt) -> Segmenter:
    """The global branch: an encoder with adapters drawn from the job's seed, and a prompt-free decoder. No experts."""
    branch = Segmenter(parts.encoder, PromptFreeDecoder(parts.decoder, parts.position, outputs(config.model)))
    adapters(branch, config)
    if config.model.decoder == "lora":
        replace_linear(branch.decoder, "linear", rank=config.model.lora_rank, alpha=config.model.lora_alpha)
    generator = torch.Generator().manual_seed(config.seed)
    drawn = [m for m in branch.modules() if isinstance(m, Drawn) and not next(m.parameters()).is_meta]
    for module in sorted(drawn, key=lambda m: not isinstance(m, ClassHead)):  # the head first: alike in all methods
        module.draw(generator)
    return branch


def lora(branch: Segmenter, config: Config) -> None:
    """Put LoRA into the encoder's attention blocks, as `config.model` says."""
    m = config.model
    adapt(branch.encoder, rank=m.lora_rank, alpha=m.lora_alpha, last=m.lora_last, on=m.lora_on)


def outputs(config: ModelConfig) -> int:
    """The number of logit channels: one a class, and one for the background if classes exclude each other."""
    return config.num_classes + config.exclusive


def add_experts(branch: Segmenter, config: ModelConfig) -> None:
    """Give `branch` its L-MoEs, which makes it a personal branch: `config.experts_in` says at which places.

    With `experts_rank` each place gets a bottleneck of its own for them. Without experts that is plain private LoRA. So
    are the decoder's places with `experts_in` all: its tokens are no map that a gate could pool.
    """
    for unit in branch.encoder.units:
        side = int(getattr(unit, "window_size", 0)) if config.route == "window" else 0
        for place in _places(unit, config):
            bottleneck = place.lora
            if config.experts_rank:
                heads = max(config.experts, 1) if config.expert == "head" else 1
                bottleneck = place.own = own_detour(place, config.experts_rank * heads)
            if config.experts:
                bottleneck.mix = _mixture(bottleneck.a.out_features, side, config)
    if config.experts_rank and config.experts_in == "all":
        for place in adapted(branch.decoder):
            place.own = own_detour(place, config.experts_rank)


def _places(unit: nn.Module, config: ModelConfig) -> list[Adapted]:
    """The places of a unit that get experts. "qkv" is the unit's first, as in Conv-LoRA."""
    found = adapted(getattr(unit, "mlp", unit) if config.experts_in == "mlp" else unit)
    return found if config.experts_in == "all" else found[:1]


def own_detour(place: Adapted, rank: int) -> LoRA:
    """A detour of the site's own beside a place's shared one, with an alpha of its rank."""
    return LoRA(place.lora.a.in_features, place.lora.b.out_features, rank=rank, alpha=rank)


def _mixture(channels: int, window: int, config: ModelConfig) -> LocalMoE:
    return LocalMoE(
        channels,
        experts=config.experts,
        top_k=config.top_k,
        form=config.expert,
        rule=config.gate,
        multiplied=config.gate_multiplied,
        interpolation=config.interpolation,
        window=window,
    )


def base_digest(parts: Backbone) -> str:
    """sha256 of the frozen base: encoder parameters and buffers, position code. Sites that agree on it can average.

    Call it before adapters are put in. It depends on order and values, not on names.
    """
    return tensors_digest([*parts.encoder.state_dict().values(), *parts.position.state_dict().values()])
