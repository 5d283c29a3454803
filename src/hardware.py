"""The device, and what it can do."""

import ctypes
from typing import Any

import torch
from transformers.utils import is_torch_tf32_available

from src.foundation import UserError


def choose_hardware(training: Any) -> None:
    """Fill in, in place, what a configuration's training section leaves to the hardware.

    Raises `UserError` for a device or a precision that this machine does not have.
    """
    there = torch.accelerator.is_available()
    if training.use_cpu is False and not there:
        raise UserError(
            "training.use_cpu=false needs a GPU; there is none (torch sees none)"
        )
    training.use_cpu = bool(training.use_cpu or not there)
    gpu = torch.cuda.is_available() and not training.use_cpu
    if training.fp16 and not gpu:
        raise UserError("training.fp16=true needs a CUDA GPU; there is none")
    tf32 = gpu and is_torch_tf32_available()
    if training.tf32 and not tf32:
        raise UserError(
            "training.tf32=true needs an NVIDIA GPU of 2020 (Ampere) or later"
        )
    if training.bf16 and gpu and not fast_bfloat16(use_cpu=False):
        raise UserError(
            f"training.bf16=true: {torch.cuda.get_device_name()} has no bfloat16; null"
            " takes what there is"
        )
    if training.bf16 is None:
        training.bf16 = not training.fp16 and fast_bfloat16(training.use_cpu)
    if gpu and training.tf32 is None:
        training.tf32 = tf32
    if gpu and training.accelerator_config is None:
        # Copies to the device must not wait for it.
        training.accelerator_config = {"non_blocking": True}


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, where it would give it back to the system.

    Every step asks for the same large tensors; to get their pages anew, each of them cleared,
    is a fifth of a step's time on a processor. Elsewhere than on glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_max = -1, -4  # malloc.h's M_TRIM_THRESHOLD and M_MMAP_MAX
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def fast_bfloat16(use_cpu: bool) -> bool:
    """Whether bfloat16 products are done by the hardware, not emulated."""
    if not use_cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
