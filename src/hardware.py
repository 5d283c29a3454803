"""The hardware of this machine: its device and its fast number formats."""

import ctypes
import os
from typing import Any, Mapping

import torch
from transformers.utils import is_torch_tf32_available

from src.foundation import UserError


def resolve_hardware(training: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Return values for the options that are null and depend on the hardware.

    Args:
        training: The values of the configuration's section `training`.

    Returns:
        {name of the option: (value, reason)}.

    Raises:
        UserError: This machine lacks the chosen device or number format.
    """
    has_gpu = torch.accelerator.is_available()
    use_cpu = bool(training["use_cpu"] or not has_gpu)
    has_cuda = torch.cuda.is_available() and not use_cpu
    has_tf32 = has_cuda and is_torch_tf32_available()
    is_fast = fast_bfloat16(use_cpu)
    if training["use_cpu"] is False and not has_gpu:
        raise UserError(
            "training.use_cpu=false needs a GPU; there is none (torch sees none)"
        )
    if training["fp16"] and not has_cuda:
        raise UserError("training.fp16=true needs a CUDA GPU; there is none")
    if training["tf32"] and not has_tf32:
        raise UserError(
            "training.tf32=true needs an NVIDIA GPU of 2020 (Ampere) or later"
        )
    if training["bf16"] and has_cuda and not is_fast:
        raise UserError(
            f"training.bf16=true: {torch.cuda.get_device_name()} has no bfloat16;"
            " training.bf16=null chooses a format that the GPU has"
        )
    device = "CPU" if use_cpu else "GPU"
    speed = f"the {device} is {'' if is_fast else 'not '}fast at it"
    resolved: dict[str, tuple[Any, str]] = {
        "use_cpu": (use_cpu, "there is a GPU" if has_gpu else "there is no GPU"),
        "bf16": (is_fast, speed),
    }
    if training["fp16"]:
        resolved["bf16"] = (False, "training.fp16=true was chosen")
    if has_cuda:
        resolved["tf32"] = (has_tf32, f"the GPU {'has' if has_tf32 else 'lacks'} it")
        reason = "copying to the GPU goes on in the background"
        resolved["accelerator_config"] = ({"non_blocking": True}, reason)
    return {name: resolved[name] for name in resolved if training[name] is None}


def memory_of(device: torch.device) -> int:
    """Return the memory of a GPU, or of the machine, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fast_bfloat16(use_cpu: bool) -> bool:
    """Return whether the hardware multiplies bfloat16 matrices, without emulation."""
    if use_cpu:  # torch has no public functions for this
        cpu = torch.cpu
        return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    cuda = torch.cuda
    return cuda.is_available() and cuda.is_bf16_supported(including_emulation=False)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the operating system.

    Each step allocates the same large tensors. If the system had to provide their pages
    again, and clear them, a step on a CPU would take a fifth longer. On systems without
    glibc this function does nothing.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
