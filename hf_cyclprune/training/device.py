"""What the machine can compute on."""

import torch


def has_accelerator() -> bool:
    """Whether there is anything but a CPU to train on."""
    if hasattr(torch, "accelerator"):  # torch 2.6
        return bool(torch.accelerator.is_available())
    return bool(torch.cuda.is_available() or torch.backends.mps.is_available())


def has_fast_bf16() -> bool:
    """Whether bfloat16 autocast runs on units of its own here; False where that cannot be known."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
