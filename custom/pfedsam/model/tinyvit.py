"""The TinyViT-5M encoder of MobileSAM and LiteMedSAM, from timm (Zhang 2023; Ma 2024; Wu 2022)."""

import re
from functools import cache, partial
from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import Attention, ConvNorm, PatchEmbed, TinyVit, TinyVitBlock
from torch import Tensor, nn

from pfedsam.model.encoder import ChannelsFirst, ChannelsLast, Encoder
from pfedsam.model.lora import LoRALinear
from pfedsam.model.sam_format import ENCODER, fill
from pfedsam.model.windows import windowed
from pfedsam.tensors import Tensors, below

RENAMES = (  # MobileSAM's key -> timm's, applied in order
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"\.c\.weight$", ".conv.weight"),
    (r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^layers\.", "stages."),
)
UNUSED = ("norm_head.", "head.")  # TinyViT's classifier; SAM does not use it


class FoldedConvNorm(nn.Module):
    """timm's convolution with a batch norm, as one convolution. The norm keeps its pretrained statistics.

    A test holds it equal to the original in evaluation mode to 1e-5. The weights stay apart, under timm's names.
    """

    def __init__(self, pair: ConvNorm) -> None:
        super().__init__()
        self.conv, self.bn = pair.conv, pair.bn

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        conv, bn = self.conv, self.bn
        scale = bn.weight * (cast(Tensor, bn.running_var) + bn.eps).rsqrt()
        weight, bias = conv.weight * scale.view(-1, 1, 1, 1), bn.bias - cast(Tensor, bn.running_mean) * scale
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class PixelGELU(nn.Module):
    """GELU of maps that are stored pixel by pixel. torch's fast kernel for a CPU takes plain order alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), or tokens (B, H, W, C), in the same order in memory."""
        return F.gelu(x) if x.is_contiguous() else F.gelu(x.movedim(1, -1)).movedim(-1, 1)


def fold(module: nn.Module) -> nn.Module:
    """`module` with each convolution and its batch norm folded into one, and GELU by pixel, in place."""
    for name, child in module.named_children():
        setattr(module, name, _faster(child) or fold(child))
    return module


def _faster(module: nn.Module) -> nn.Module | None:
    if isinstance(module, ConvNorm):
        return FoldedConvNorm(module)
    return PixelGELU() if isinstance(module, nn.GELU) else None


class Entry(nn.Module):
    """timm's patch embedding. From here on maps are stored pixel by pixel, as blocks want them, which is faster."""

    def __init__(self, embed: PatchEmbed) -> None:
        super().__init__()
        self.conv1, self.act, self.conv2 = embed.conv1, embed.act, embed.conv2

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 64, S/4, S/4)."""
        x = image.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.conv2(self.act(self.conv1(x))))


class TinyViTBlock(nn.Module):
    """timm's block on its own weights, without computing padded tokens.

    A test holds it equal to the original to 1e-5. Experts in a projection see only the image's own
    map, our choice. In the original they would see the padding too.
    """

    def __init__(self, block: TinyVitBlock) -> None:
        super().__init__()
        self.attn, self.mlp, self.local_conv = cast(Attention, block.attn), block.mlp, block.local_conv
        self.window_size: int = block.window_size
        self._frozen: dict[tuple[object, ...], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, d) -> (B, H, W, d)."""
        x = x + self._attention(x)
        x = cast(Tensor, self.local_conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return x + cast(Tensor, self.mlp(x))

    def _attention(self, x: Tensor) -> Tensor:
        qkv = self._heads(self.attn.qkv(self.attn.norm(x)))
        padding = self._heads(self._padding())[..., self.attn.key_dim :]
        padding = padding.repeat_interleave(x.shape[0] // padding.shape[0], 0)
        found = windowed(qkv, self.window_size, partial(self._attend, padding))
        return cast(Tensor, self.attn.proj(found.flatten(-2)))

    def _heads(self, qkv: Tensor) -> Tensor:
        """(..., heads * 3 d) as (..., heads, 3 d)."""
        return qkv.view(*qkv.shape[:-1], self.attn.num_heads, -1)

    def _padding(self) -> Tensor:
        """The projection of a padded token, (branches, 3 d): zeros, which the norm turns into its bias."""
        token = self.attn.norm.bias
        qkv = self.attn.qkv
        return qkv.constant(token) if isinstance(qkv, LoRALinear) else cast(Tensor, qkv(token))[None]

    def _attend(self, padding: Tensor, windows: Tensor) -> Tensor:
        """softmax(q k / sqrt(d) + bias) v, (B, R, C, h, w, heads, d).

        Args:
            padding: key and value of a padded token, (B, heads, 2 d).
            windows: query, key and value of the real tokens, (B, R, C, h, w, heads, 3 d).
        """
        *grid, height, width, heads, _ = windows.shape
        stacked = windows.movedim(-2, 3).reshape(-1, height * width, windows.shape[-1])
        q, kv = torch.tensor_split(stacked, (self.attn.key_dim,), -1)
        if height * width < self.window_size**2:
            beside = padding[:, None].expand(-1, grid[1] * grid[2], -1, -1).reshape(kv.shape[0], 1, -1)
            kv = torch.cat([kv, beside.to(kv.dtype)], 1)
        k, v = torch.tensor_split(kv, (self.attn.key_dim,), -1)
        bias = self._bias(height, width).to(q.dtype).repeat(q.shape[0] // heads, 1, 1)
        found: Tensor = torch.baddbmm(bias, q, k.mT, alpha=self.attn.scale).softmax(-1) @ v
        return found.view(*grid, heads, height, width, -1).movedim(3, -2)

    def _bias(self, height: int, width: int) -> Tensor:
        """The bias of each pair of a window's tokens, (heads, h w, h w). A frozen one is looked up once.

        If the window is smaller than `window_size`, the last column is that of all its padded tokens. With one key,
        e^(q k) sum_j e^(bias_j) = e^(q k + log sum_j e^(bias_j)). So they act like one token with that bias.
        """
        table: Tensor = self.attn.attention_biases
        key = (height, width, table.device, table._version)
        if table.requires_grad or key not in self._frozen:
            bias = _biases(table[:, self.attn.attention_bias_idxs], self.window_size, height, width)
            if table.requires_grad:
                return bias
            self._frozen[key] = bias
        return self._frozen[key]


def _biases(pairs: Tensor, side: int, height: int, width: int) -> Tensor:
    """`TinyViTBlock._bias`, from the bias of each pair of a whole window's tokens, (heads, side^2, side^2)."""
    real, padding = _places(side, height, width, pairs.device)
    asked = pairs.index_select(1, real)
    own, padded = asked.index_select(2, real), asked.index_select(2, padding)
    return torch.cat([own, padded.logsumexp(-1, keepdim=True)], -1) if padded.shape[-1] else own


@cache
def _places(side: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The places of a window's real tokens and of its padded ones. As numbers: a mask's would be read from a GPU."""
    real = torch.zeros(side, side, dtype=torch.bool)
    real[:height, :width] = True
    return real.flatten().nonzero().squeeze(1).to(device), (~real).flatten().nonzero().squeeze(1).to(device)


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
    fold(net)
    units: list[nn.Module] = [Entry(net.patch_embed), *cast(nn.Sequential, net.stages[0].blocks)]
    for stage in list(net.stages)[1:]:
        units += [stage.downsample, ChannelsLast(), *map(TinyViTBlock, stage.blocks), ChannelsFirst()]
    return [*units, neck]
