"""Make custom/pfedsam/assets/demo_sam.safetensors again: pretrain the demo backbone on synthetic images.

The images come from the generator, with appearances that no demo site has. `make demo-weights` runs it,
about 15 minutes on two cores. The result depends on the seed and, in its last digits, on the machine.
"""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor

from pfedsam.config import TrainConfig
from pfedsam.data.dataset import Batch
from pfedsam.data.square import MEAN, STD, fit
from pfedsam.data.synthetic import PRETRAIN_SITES, draw
from pfedsam.files import sha256
from pfedsam.model.backbones import DEMO, Backbone, vit_encoder, with_sam_decoder
from pfedsam.model.decoder import PromptFreeDecoder
from pfedsam.model.segmenter import Segmenter
from pfedsam.model.weights import ASSETS
from pfedsam.train.losses import segmentation_loss

log = logging.getLogger("pretrain_demo")
SIZE, BATCH, MASKS = 128, 8, 4


def main() -> None:
    """Train, save the weights as safetensors, and write their sha256 and facts beside them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ASSETS / "demo_sam.safetensors")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(options.seed)
    net = DEMO.encoder(SIZE)
    parts = with_sam_decoder(vit_encoder(net), None, mlp=DEMO.mlp)
    loss = pretrain(parts, options.steps, np.random.default_rng(options.seed))
    save(net, parts, options.out, {"seed": options.seed, "steps": options.steps, "loss": round(loss, 4)})


def pretrain(parts: Backbone, steps: int, rng: np.random.Generator) -> float:
    """The last mean loss, after training encoder and decoder together.

    Mask channels 0 and 2 learn bright lesions, 1 and 3 dark ones. So the features know more than the
    prompt-free output, channel 0, shows at first. This is like SAM's.
    """
    decoder = PromptFreeDecoder(parts.decoder, parts.position, MASKS)
    decoder.head = None  # SAM's four mask channels themselves
    model = Segmenter(parts.encoder, decoder).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=7e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 7e-4, total_steps=steps, pct_start=0.05)
    settings, mean = TrainConfig(), 0.0
    for step in range(steps):
        images, bright, dark = batch(rng)
        labels = torch.stack([bright, dark] * 2, dim=1)
        loss = segmentation_loss(model(images).flatten(0, 1)[:, None], Batch(images, labels.flatten(0, 1)), settings)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            log.info("step %d of %d, loss %.3f", step, steps, mean)
    return mean


def batch(rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """New images, normalised (B, 3, S, S), with labels of bright and of dark lesions, (B, S, S) each."""
    looks = [PRETRAIN_SITES[rng.integers(len(PRETRAIN_SITES))] for _ in range(BATCH)]
    pairs = [draw(look, rng) for look in looks]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    images = [(fit(torch.from_numpy(i).permute(2, 0, 1).float(), SIZE) - mean) / std for i, _ in pairs]
    masks = torch.stack([torch.from_numpy(m).long() for _, m in pairs])
    dark = torch.tensor([look.dark for look in looks]).view(-1, 1, 1)
    return torch.stack(images), masks * ~dark, masks * dark


def stored_as(key: str) -> torch.dtype:
    """The tensor in float8 if it is an MLP matrix of the encoder, else in float16. A job then stays below 4 MiB.

    FLARE's POC mode deploys over a websocket. Its client accepts no message above 4 MiB.
    """
    return torch.float8_e4m3fn if ".mlp." in key and key.endswith("weight") else torch.float16


def save(net: ImageEncoderViT, parts: Backbone, out: Path, facts: dict[str, float]) -> None:
    """Write the weights under SAM's own key names, and their facts beside them."""
    state = {f"image_encoder.{k}": v for k, v in net.state_dict().items()}
    state |= {f"mask_decoder.{k}": v for k, v in parts.decoder.state_dict().items()}
    state |= {f"prompt_encoder.pe_layer.{k}": v for k, v in parts.position.state_dict().items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    small = {k: v.to(stored_as(k)).contiguous() for k, v in state.items()}
    save_file(small, out, metadata={"data": "synthetic", **{k: str(v) for k, v in facts.items()}})
    record = {"file": out.name, "sha256": sha256(out), "bytes": out.stat().st_size, **facts}
    out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    log.info("%s", record)


if __name__ == "__main__":
    main()
