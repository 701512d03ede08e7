"""The TinyViT-5M encoder of MobileSAM and LiteMedSAM, from timm (Zhang 2023; Ma 2024; Wu 2022)."""

import re
from typing import cast

from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import Attention, ConvNorm, TinyVit, TinyVitBlock
from torch import Tensor, nn

from pfedsam.files import Tensors, below
from pfedsam.model.encoder import ChannelsFirst, ChannelsLast, Encoder
from pfedsam.model.lora import LoRALinear
from pfedsam.model.sam_format import ENCODER, fill
from pfedsam.model.windows import windowed

RENAMES = (  # MobileSAM's key -> timm's, applied in order
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"\.c\.weight$", ".conv.weight"),
    (r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^layers\.", "stages."),
)
UNUSED = ("norm_head.", "head.")  # TinyViT's classifier; SAM does not use it


class TinyViTBlock(nn.Module):
    """timm's block on its own weights, without computing padded tokens.

    A test holds it equal to the original to 1e-6. Experts in a projection see only the image's own
    map, our choice. In the original they would see the padding too.
    """

    def __init__(self, block: TinyVitBlock) -> None:
        super().__init__()
        self.attn, self.mlp, self.local_conv = cast(Attention, block.attn), block.mlp, block.local_conv
        self.window_size: int = block.window_size
        self._frozen_bias: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, d) -> (B, H, W, d)."""
        x = x + self._attention(x)
        x = cast(Tensor, self.local_conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return x + cast(Tensor, self.mlp(x))

    def _attention(self, x: Tensor) -> Tensor:
        q, kv = self._heads(self.attn.qkv(self.attn.norm(x)))
        _, padding = self._heads(self._padding())
        padding = padding.repeat_interleave(x.shape[0] // padding.shape[0], 0)
        return cast(Tensor, self.attn.proj(windowed(q, kv, padding, self.window_size, self._attend)))

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """(..., heads * 3 d) as query (..., heads, d), key and value (..., heads, 2 d)."""
        grouped = qkv.view(*qkv.shape[:-1], self.attn.num_heads, -1)
        return grouped[..., : self.attn.key_dim], grouped[..., self.attn.key_dim :]

    def _padding(self) -> Tensor:
        """The projection of a padded token, (branches, 3 d): zeros, which the norm turns into its bias."""
        token = self.attn.norm.bias
        qkv = self.attn.qkv
        return qkv.constant(token) if isinstance(qkv, LoRALinear) else cast(Tensor, qkv(token))[None]

    def _attend(self, q: Tensor, kv: Tensor) -> Tensor:
        """softmax(q k / sqrt(d) + bias) v: (n, h, w, heads, d) -> (n, h, w, heads * d)."""
        height, width, side = q.shape[1], q.shape[2], kv.shape[1]
        bias = self._bias().view(-1, side, side, side * side)[:, :height, :width].flatten(1, 2).to(q.dtype)
        kv = kv.flatten(1, 2).transpose(1, 2)
        k, v = kv[..., : self.attn.key_dim], kv[..., self.attn.key_dim :]
        scores = (q.flatten(1, 2).transpose(1, 2) * self.attn.scale) @ k.transpose(-2, -1) + bias
        found: Tensor = scores.softmax(-1) @ v
        return found.transpose(1, 2).reshape(q.shape[0], height, width, -1)

    def _bias(self) -> Tensor:
        """The bias of each pair of tokens, (heads, side^2, side^2). A frozen one is looked up once."""
        table: Tensor = self.attn.attention_biases
        if self._frozen_bias is not None and self._frozen_bias.device == table.device:
            return self._frozen_bias
        bias = table[:, self.attn.attention_bias_idxs]
        if not table.requires_grad:
            self._frozen_bias = bias
        return bias


def build_tiny_vit(state: Tensors | None, *, patch: int = 16) -> Encoder:
    """The encoder as a row of units, (B, 3, S, S) -> (B, 256, S/patch, S/patch). S is any multiple of 16.

    Args:
        state: MobileSAM's or LiteMedSAM's `image_encoder.*` without that prefix, loaded strictly. None: as initialised.
        patch: 16, or 4 for LiteMedSAM, which at 256 px has SAM's 64 x 64 places.
    """
    return Encoder(_units(*trunk_and_neck(state, patch=patch)), channels=256, patch=patch)


def trunk_and_neck(state: Tensors | None, *, patch: int = 16) -> tuple[TinyVit, nn.Sequential]:
    """timm's net with the SAMs' changes, and SAM's neck. `state` and `patch` are as for `build_tiny_vit`."""
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
    if patch == 4:
        net.patch_embed.conv1, net.patch_embed.conv2 = ConvNorm(3, 32, 1, 1, 0), ConvNorm(32, 64, 1, 1, 0)
    neck = nn.Sequential(
        nn.Conv2d(320, 256, 1, bias=False),
        LayerNorm2d(256),
        nn.Conv2d(256, 256, 3, padding=1, bias=False),
        LayerNorm2d(256),
    )
    if state is not None:
        trunk = {k: v for k, v in state.items() if not k.startswith((*UNUSED, "neck."))}
        fill(net, {timm_key(k): v for k, v in trunk.items()}, ENCODER)
        fill(neck, below("neck.", state), f"{ENCODER}neck.")
    return net, neck


def timm_key(key: str) -> str:
    """The name that timm's TinyViT gives to MobileSAM's `key`."""
    for pattern, new in RENAMES:
        key = re.sub(pattern, new, key)
    return key


def _units(net: TinyVit, neck: nn.Module) -> list[nn.Module]:
    units: list[nn.Module] = [net.patch_embed, *cast(nn.Sequential, net.stages[0].blocks)]
    for stage in list(net.stages)[1:]:
        units += [stage.downsample, ChannelsLast(), *map(TinyViTBlock, stage.blocks), ChannelsFirst()]
    return [*units, neck]
