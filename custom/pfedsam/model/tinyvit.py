"""MobileSAM's TinyViT-5M encoder out of timm's TinyViT (Zhang et al. 2023; Wu et al. 2022)."""

import re
from typing import cast

from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

from pfedsam.model.encoder import ChannelsFirst, ChannelsLast, Encoder

RENAMES = (  # MobileSAM's key -> timm's, applied in order
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"\.c\.weight$", ".conv.weight"),
    (r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^layers\.", "stages."),
)
UNUSED = ("norm_head.", "head.")  # TinyViT's classifier; SAM does not use it


def build_tiny_vit(state: dict[str, Tensor] | None) -> Encoder:
    """The encoder as a row of units, (B, 3, S, S) -> (B, 256, S/16, S/16); S any multiple of 16.

    Args:
        state: MobileSAM's `image_encoder.*` without that prefix, loaded strictly; None: as initialised.
    """
    net = TinyVit(
        embed_dims=(64, 128, 160, 320),
        depths=(2, 2, 6, 2),
        num_heads=(2, 4, 5, 10),
        window_sizes=(7, 7, 14, 7),
        drop_path_rate=0.0,
        num_classes=0,
    )
    net.head = nn.Identity()
    net.stages[3].downsample.conv2.conv.stride = (1, 1)  # MobileSAM keeps stride 16 in its last stage
    neck = _neck()
    if state is not None:
        net.load_state_dict(trunk_keys(state))
        neck.load_state_dict({k.removeprefix("neck."): v for k, v in state.items() if k.startswith("neck.")})
    return Encoder(_units(net, neck), channels=256, patch=16)


def trunk_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MobileSAM's trunk under timm's names; every key is either mapped, the neck's, or unused."""
    return {timm_key(k): v for k, v in state.items() if not k.startswith((*UNUSED, "neck."))}


def timm_key(key: str) -> str:
    """The name that timm's TinyViT gives to MobileSAM's `key`."""
    for pattern, new in RENAMES:
        key = re.sub(pattern, new, key)
    return key


def _units(net: TinyVit, neck: nn.Module) -> list[nn.Module]:
    units: list[nn.Module] = [net.patch_embed, *cast(nn.Sequential, net.stages[0].blocks)]
    for stage in list(net.stages)[1:]:
        units += [stage.downsample, ChannelsLast(), *stage.blocks, ChannelsFirst()]
    return [*units, neck]


def _neck() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(320, 256, 1, bias=False),
        LayerNorm2d(256),
        nn.Conv2d(256, 256, 3, padding=1, bias=False),
        LayerNorm2d(256),
    )
