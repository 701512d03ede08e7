"""One builder a backbone: pretrained encoder and decoder, ready to be adapted."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor, nn

from pfedsam.errors import UserFault
from pfedsam.model.encoder import ChannelsFirst, Encoder
from pfedsam.model.sam_format import ENCODER, fill
from pfedsam.model.vit import PatchAndPosition, ViTBlock
from pfedsam.tensors import Tensors, below


@dataclass(frozen=True)
class Backbone:
    """What a builder returns: parts with weights. `prompts` is None if the weights have no prompt encoder."""

    encoder: Encoder
    decoder: MaskDecoder
    position: PositionEmbeddingRandom
    prompts: PromptEncoder | None = None


@dataclass(frozen=True)
class ViTShape:
    """The shape of a SAM's ViT: global attention in each `every`-th block, windows of `window` tokens in the others.

    `channels` is the width of the embedding and the decoder, `mlp` the width inside the decoder's MLPs.
    """

    width: int
    depth: int
    heads: int
    every: int
    patch: int = 16
    window: int = 14
    channels: int = 256
    mlp: int = 2048

    def encoder(self, size: int) -> ImageEncoderViT:
        """segment-anything's encoder of this shape, for images of `size` pixels."""
        return ImageEncoderViT(
            img_size=size,
            patch_size=self.patch,
            embed_dim=self.width,
            depth=self.depth,
            num_heads=self.heads,
            out_chans=self.channels,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=self.window,
            global_attn_indexes=tuple(range(self.every - 1, self.depth, self.every)),
        )


PROMPTS = "prompt_encoder."
# A small SAM for demonstration; pretrained by scripts/pretrain_demo.py
DEMO = ViTShape(width=128, depth=6, heads=4, every=3, patch=8, window=8, channels=128, mlp=512)


def vit(size: int, state: Tensors | None, shape: ViTShape) -> Backbone:
    """A SAM with a ViT, with `state` (SAM's keys) fitted to any image size."""
    encoder = shape.encoder(size)
    if state is not None:
        fill(encoder, fit_positions(below(ENCODER, state), encoder), ENCODER)
    return with_sam_decoder(vit_encoder(encoder), state, size=size, mlp=shape.mlp)


def vit_encoder(encoder: ImageEncoderViT) -> Encoder:
    """segment-anything's ViT as a row of units."""
    entry = PatchAndPosition(encoder.patch_embed, cast(nn.Parameter, encoder.pos_embed))
    units = [entry, *map(ViTBlock, encoder.blocks), nn.Sequential(ChannelsFirst(), *encoder.neck)]
    return Encoder(units, channels=encoder.neck[0].out_channels, patch=encoder.patch_embed.proj.stride[0])


def tiny_vit(size: int, state: Tensors | None, *, patch: int) -> Backbone:
    """timm's TinyViT-5M with SAM's neck, keys mapped: MobileSAM's of patch 16, LiteMedSAM's of patch 4."""
    from pfedsam.model.tinyvit import build_tiny_vit

    trunk = None if state is None else below(ENCODER, state)
    return with_sam_decoder(build_tiny_vit(trunk, patch=patch), state, size=size, mlp=2048)


VITS = {
    "demo": DEMO,
    "vit_b": ViTShape(width=768, depth=12, heads=12, every=3),
    "vit_l": ViTShape(width=1024, depth=24, heads=16, every=6),
    "vit_h": ViTShape(width=1280, depth=32, heads=16, every=8),
}
TINY_VITS = {"tiny_vit": 16, "tiny_vit_lite": 4}  # the patch
Builder = Callable[[int, Tensors | None], Backbone]
BUILDERS: dict[str, Builder] = {
    **{name: partial(vit, shape=shape) for name, shape in VITS.items()},
    **{name: partial(tiny_vit, patch=patch) for name, patch in TINY_VITS.items()},
}


def builder(name: str) -> Builder:
    """The builder of that name.

    Raises:
        UserFault: there is no such backbone.
    """
    if name not in BUILDERS:
        expected = "model.backbone one of " + ", ".join(BUILDERS)
        raise UserFault(expected=expected, came=name, do="correct the spelling")
    return BUILDERS[name]


def looks_like(state: Tensors) -> str | None:
    """The backbone whose encoder begins as the one in `state` (SAM's keys); None: none does."""
    patches, stem = (state.get(f"{ENCODER}patch_embed.{name}.weight") for name in ("proj", "seq.0.c"))
    if patches is not None:
        found = (name for name, s in VITS.items() if tuple(patches.shape) == (s.width, 3, s.patch, s.patch))
        return next(found, None)
    if stem is not None:
        return "tiny_vit" if stem.shape[-1] == 3 else "tiny_vit_lite"
    return None


def fit_positions(state: Tensors, encoder: ImageEncoderViT) -> Tensors:
    """`state` with the position table and relative positions interpolated to the encoder's size.

    The table is resized bicubically, our choice. The relative positions are resized linearly, as
    segment-anything does at run time. Sizes that already fit come back unchanged.
    """
    target = encoder.state_dict()
    placed = {key for key in target if key == "pos_embed" or key.endswith((".rel_pos_h", ".rel_pos_w"))}
    return {key: _fit(value, target[key].shape) if key in placed else value for key, value in state.items()}


def _fit(value: Tensor, shape: torch.Size) -> Tensor:
    if value.shape == shape or value.dim() != len(shape) or value.shape[-1] != shape[-1]:
        return value
    if value.dim() == 4:  # (1, h, w, d)
        table = value.permute(0, 3, 1, 2)
        new = F.interpolate(table, size=tuple(shape[1:3]), mode="bicubic", align_corners=False, antialias=True)
        return new.permute(0, 2, 3, 1)
    return F.interpolate(value.T[None], size=shape[0], mode="linear")[0].T


def with_sam_decoder(encoder: Encoder, state: Tensors | None, *, size: int, mlp: int) -> Backbone:
    """An encoder followed by SAM's decoder and position code, and SAM's prompt encoder if `state` has it."""
    width = encoder.channels
    transformer = TwoWayTransformer(depth=2, embedding_dim=width, num_heads=8, mlp_dim=mlp)
    decoder = MaskDecoder(
        transformer_dim=width, transformer=transformer, num_multimask_outputs=3, iou_head_hidden_dim=width
    )
    position = PositionEmbeddingRandom(width // 2)
    if state is not None:
        for part, above in ((decoder, "mask_decoder."), (position, f"{PROMPTS}pe_layer.")):
            fill(part, below(above, state), above)
    return Backbone(encoder, decoder, position, _prompts(position, state, width, size))


def _prompts(position: PositionEmbeddingRandom, state: Tensors | None, width: int, size: int) -> PromptEncoder | None:
    """SAM's prompt encoder for images of `size` pixels. It is only used with masks, so its own grid is of no use."""
    if state is not None and not below(PROMPTS + "mask_downscaling.", state):
        return None
    prompts = PromptEncoder(width, image_embedding_size=(1, 1), input_image_size=(size, size), mask_in_chans=16)
    if state is None:
        prompts.pe_layer.load_state_dict(position.state_dict())
    else:
        fill(prompts, below(PROMPTS, state), PROMPTS)
    return prompts.requires_grad_(False)
