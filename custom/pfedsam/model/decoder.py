"""SAM's mask decoder without prompts, batched over images, with a multi-class head (FedFMS, method.md 3.1)."""

import math
from typing import cast

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor, nn


class ClassHead(nn.Module):
    """The multi-class segmentation header: a 1x1 convolution from SAM's mask channels to classes."""

    def __init__(self, masks: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(masks, classes, 1)

    def draw(self, generator: torch.Generator) -> None:
        """Draw the weights again, as torch draws them. The bias starts at zero."""
        nn.init.kaiming_uniform_(self.conv.weight, a=math.sqrt(5), generator=generator)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, masks: Tensor) -> Tensor:
        """(B, masks, H, W) -> (B, classes, H, W)."""
        return cast(Tensor, self.conv(masks))


class PromptFreeDecoder(nn.Module):
    """Mask logits from an image embedding alone: no sparse tokens, no dense prompt embedding.

    The tokens are SAM's IoU token and mask tokens. One output takes mask channel 0. More outputs
    take all channels through a `ClassHead`. SAM's IoU head and the hyper-networks of unused masks
    are left out: they would be sent and never trained (a defect of FedFMS's release).

    Args:
        sam: SAM's decoder, whose parts are taken over.
        position: SAM's random Fourier position code.
        outputs: number of logit channels.
    """

    def __init__(self, sam: MaskDecoder, position: PositionEmbeddingRandom, outputs: int) -> None:
        super().__init__()
        masks = 1 if outputs == 1 else sam.num_mask_tokens
        self.transformer = sam.transformer
        self.iou_token = sam.iou_token
        self.mask_tokens = sam.mask_tokens
        self.upscaling = sam.output_upscaling
        self.hypernetworks = nn.ModuleList(sam.output_hypernetworks_mlps[:masks])
        self.head = ClassHead(masks, outputs) if outputs > 1 else None
        self.position = position

    def widening(self) -> tuple[nn.Module, ...]:
        """What makes masks of the transformer's output: the upscaling's deconvolutions and the hyper-networks."""
        return self.upscaling, self.hypernetworks

    def last(self) -> tuple[nn.Module, ...]:
        """The few parameters that the lean mode trains: tokens and the last norms, 1 920 values at width 256.

        Our choice: with LoRA of rank 4 in ViT-B they stay below 0.6 MB in float32.
        """
        norm = cast(nn.Module, self.upscaling[1])
        return self.iou_token, self.mask_tokens, self.transformer.norm_final_attn, norm

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits (B, outputs, 4H, 4W) from an embedding (B, C, H, W)."""
        masks = self.masks(embedding)
        return masks if self.head is None else cast(Tensor, self.head(masks))

    def masks(self, embedding: Tensor, prompts: Tensor | None = None) -> Tensor:
        """SAM's mask channels (B, masks, 4H, 4W) from an embedding (B, C, H, W).

        Args:
            prompts: more tokens, (B, N, C), such as SAM's prompt encoder makes of points and boxes. None: no more.
        """
        batch, _, height, width = embedding.shape
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(batch, -1, -1)
        if prompts is not None:
            tokens = torch.cat([tokens, prompts], 1)
        code = self.position((height, width)).expand(batch, -1, -1, -1)
        read, image = self.transformer(embedding, code, tokens)
        image = image.transpose(1, 2).reshape(embedding.shape)
        upscaled, tokens = self.upscaling(image), read[:, 1 : 1 + len(self.hypernetworks)]
        weights = torch.stack([net(tokens[:, i]) for i, net in enumerate(self.hypernetworks)], dim=1)
        return torch.einsum("bmc,bchw->bmhw", weights, upscaled)
