"""The number format that a step computes in."""

from contextlib import AbstractContextManager

import torch


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """bf16 autocast if `precision` asks for it. "auto" asks for it if the hardware multiplies bf16."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_bf16(device, precision))


def computes_bf16(device: torch.device, precision: str) -> bool:
    """Whether matrices are multiplied in bf16."""
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


def has_bf16(device: torch.device) -> bool:
    """Whether `device` has bf16 instructions (AVX512-BF16 or AMX on a CPU)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
