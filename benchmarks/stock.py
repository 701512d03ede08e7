"""The slow reference: SAM as published, adapted as in SAMed, and trained by a simple loop.

Windows keep their padded tokens, and the decoder takes one image at a time. Numbers are float32, and the optimiser is
torch's default. It uses the same tensors as `pfedsam.model`, so both must take the same steps.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, TwoWayTransformer
from segment_anything.modeling.image_encoder import Block
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from timm.models.tiny_vit import TinyVitBlock
from torch import Tensor, nn

from pfedsam.config import Config, Target
from pfedsam.data.dataset import Batch
from pfedsam.model.encoder import layers
from pfedsam.model.lora import LoRALinear, loras
from pfedsam.model.tinyvit import trunk_and_neck
from pfedsam.train.losses import segmentation_loss

State = dict[str, Tensor]


class StockSAM(nn.Module):
    """Logits (B, 1, S/4, S/4) from images (B, 3, S, S), without a prompt."""

    def __init__(self, backbone: str, size: int, state: State) -> None:
        super().__init__()
        self.encoder = _tiny_vit(state) if backbone == "tiny_vit" else _vit_b(size, state)
        self.decoder, self.position, self.grid = _decoder(), PositionEmbeddingRandom(128), size // 16
        self.decoder.load_state_dict(_below(state, "mask_decoder."))
        self.position.load_state_dict(_below(state, "prompt_encoder.pe_layer."))

    def forward(self, images: Tensor) -> Tensor:
        """The published chain. After the encoder it runs image by image."""
        code = self.position((self.grid, self.grid))[None].to(images.device)
        return torch.cat([self._decode(embedding[None], code) for embedding in self.encoder(images)])

    def _decode(self, embedding: Tensor, code: Tensor) -> Tensor:
        masks: Tensor = self.decoder(
            image_embeddings=embedding,
            image_pe=code,
            sparse_prompt_embeddings=embedding.new_zeros(1, 0, 256),
            dense_prompt_embeddings=torch.zeros_like(embedding),
            multimask_output=False,
        )[0]
        return masks


def adapted(model: StockSAM, rank: int, on: Target = "qkv") -> StockSAM:
    """`model` with its encoder frozen and LoRA on the fused qkv, or all linear layers, of its attention blocks."""
    model.encoder.requires_grad_(False)
    for block in [m for m in model.encoder.modules() if isinstance(m, Block | TinyVitBlock)]:
        for owner, name, layer in list(layers(block, on)):
            setattr(owner, name, LoRALinear(layer, rank=rank, alpha=rank))
    return model


@torch.no_grad()
def start_like(model: StockSAM, other: nn.Module) -> None:
    """Copy the LoRA values of `other` to `model`."""
    for mine, theirs in zip(loras(model), loras(other), strict=True):
        mine.load_state_dict(theirs.state_dict())


def stepper(model: StockSAM, config: Config) -> Callable[[Batch], float]:
    """A training step on a batch. The step returns the loss before it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=config.train.lr, weight_decay=config.train.weight_decay)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()

    def step(batch: Batch) -> float:
        device = trained[0].device
        batch = replace(batch, image=batch.image.to(device), label=batch.label.to(device))
        loss = segmentation_loss(model(batch.image), batch, config.train)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss.item()

    return step


def random_state(size: int, seed: int = 0) -> State:
    """A ViT-B SAM under its published keys, drawn at random: for speed and memory, not for masks."""
    torch.manual_seed(seed)
    encoder = _fresh_vit_b(size)
    for name, p in encoder.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.normal_(p, std=0.02)
    parts = {
        "image_encoder.": encoder,
        "mask_decoder.": _decoder(),
        "prompt_encoder.pe_layer.": PositionEmbeddingRandom(128),
    }
    return {prefix + k: v for prefix, module in parts.items() for k, v in module.state_dict().items()}


def _vit_b(size: int, state: State) -> ImageEncoderViT:
    encoder = _fresh_vit_b(size)
    encoder.load_state_dict(_below(state, "image_encoder."))
    return encoder


def _fresh_vit_b(size: int) -> ImageEncoderViT:
    return ImageEncoderViT(
        img_size=size,
        embed_dim=768,
        depth=12,
        num_heads=12,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=(2, 5, 8, 11),
    )


def _tiny_vit(state: State) -> nn.Sequential:
    net, neck = trunk_and_neck(_below(state, "image_encoder."))
    return nn.Sequential(net.patch_embed, *net.stages, neck)


def _decoder() -> MaskDecoder:
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048)
    return MaskDecoder(transformer_dim=256, transformer=transformer, num_multimask_outputs=3, iou_head_hidden_dim=256)


def _below(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
