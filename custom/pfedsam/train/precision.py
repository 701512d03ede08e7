"""The device that a step runs on, and the number format that it computes in."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import torch

from pfedsam import log
from pfedsam.errors import UserFault

BF16_SINCE = 8  # compute capability of NVIDIA's GPUs with bf16 instructions


@cache
def best_device() -> torch.device:
    """The first GPU if this torch can compute on it, else the CPU. Of a GPU that it cannot use there is a warning."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        torch.ones(1, device="cuda").mul(2).item()
    except RuntimeError as error:  # a GPU of a kind or a driver that this torch has no code for
        told = "this machine's GPU is not used, as torch cannot compute on it (%s). Another build of torch may"
        log.warning(told, next(iter(str(error).splitlines()), ""))
        return torch.device("cpu")
    return torch.device("cuda")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """bf16 autocast if `precision` asks for it. "auto" asks for it if the hardware multiplies bf16."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_bf16(device, precision))


def computes_bf16(device: torch.device, precision: str) -> bool:
    """Whether matrices are multiplied in bf16."""
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


def has_bf16(device: torch.device) -> bool:
    """Whether `device` has bf16 instructions (AVX512-BF16 or AMX on a CPU)."""
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= BF16_SINCE
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def fitting(images: int) -> Iterator[None]:
    """Within the context a GPU without memory for so many images at once is the user's fault, with a remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserFault(
            expected=f"GPU memory for {images} images at once",
            came=str(error).split(". ")[0],
            do="lower train.batch_size (pfedsam predict: --batch), or hide the GPU: CUDA_VISIBLE_DEVICES= (empty)",
        ) from None
