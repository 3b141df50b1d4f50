"""Which precision forward and backward passes take, and which memory layout convolutions like."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16"]


def resolve(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """`auto` is bf16 where the hardware multiplies it faster than fp32, else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """AVX-512 BF16 or AMX: without them oneDNN emulates bf16, slower than fp32."""
    capabilities = torch.backends.cpu.get_cpu_capability(), torch.cpu._is_avx512_bf16_supported()
    return capabilities[0] == "AVX512" and capabilities[1]


def channels_last(module: nn.Module) -> nn.Module:
    """The same module with its convolutions' weights in the layout that both cuDNN and oneDNN prefer."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
