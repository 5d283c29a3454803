"""The hardware of this machine: its device and its fast number formats."""

import contextlib
import ctypes
import math
import os
import re
from pathlib import Path
from typing import Any, Mapping, Optional

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import enable_full_determinism
from transformers.utils import is_torch_tf32_available

from src.foundation import UserError

# Dense peaks in 1e12 FLOP/s, from the manufacturers' data sheets, for 16-bit products (float16 on
# GPUs before Ampere), TF32 products and float32 products.
PEAKS = {
    "B200": (2250, 1125, 75), "H200": (989, 494, 67), "H100": (989, 494, 67),
    "H100 PCIe": (756, 378, 51), "H100 NVL": (835, 418, 60), "A100": (312, 156, 19.5),
    "L40S": (362, 183, 91.6), "L40": (181, 90.5, 90.5), "L4": (121, 60, 30.3),
    "A40": (150, 75, 37.4), "A10": (125, 62.5, 31.2), "A10G": (70, 35, 31.5),
    "RTX A6000": (155, 77, 38.7), "RTX A5000": (111, 55, 27.8), "RTX A4000": (77, 38, 19.2),
    "RTX 4090": (165, 82.6, 82.6), "RTX 3090": (71, 35.6, 35.6),
    "V100": (125, 15.7, 15.7), "T4": (65, 8.1, 8.1),
}  # fmt: skip


RAPL = Path("/sys/class/powercap")


def resolve_hardware(training: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Return values for the null options that depend on the hardware.

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
            "training.use_cpu=false needs a GPU; there is none that torch sees"
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
    if has_cuda and not is_fast and torch.cuda.get_device_capability() >= (7, 0):
        speed += "; it is fast at float16, training.fp16=true"
    resolved: dict[str, tuple[Any, str]] = {
        "use_cpu": (use_cpu, "there is a GPU" if has_gpu else "there is no GPU"),
        "bf16": (is_fast, speed),
    }
    if training["fp16"]:
        resolved["bf16"] = (False, "training.fp16=true was chosen")
    if has_cuda:
        resolved["tf32"] = (has_tf32, f"the GPU {'has' if has_tf32 else 'lacks'} it")
        bf16 = resolved["bf16"][0] if training["bf16"] is None else training["bf16"]
        if bf16 or training["fp16"]:
            resolved["tf32"] = (False, "the products have 16 bits")
        reason = "copying to the GPU goes on in the background"
        resolved["accelerator_config"] = ({"non_blocking": True}, reason)
    return {name: resolved[name] for name in resolved if training[name] is None}


def energy_counters() -> dict[str, tuple[float, float]]:
    """Return the readings of this machine's energy counters, in joules.

    A processor's counter (Linux's RAPL) includes all programs, and many systems let only root
    read it. The counter of this process's NVIDIA GPU needs `nvidia-ml-py`.

    Returns:
        {name: (joules, the value at which the counter starts again from 0)}; empty if no counter
        can be read.
    """
    counters = {}
    # AMD's processors have the same names. Parts of a zone are called intel-rapl:0:0, ….
    for zone in RAPL.glob("intel-rapl:?"):
        with contextlib.suppress(OSError):
            files = (zone / "energy_uj", zone / "max_energy_range_uj")
            joules, largest = (int(file.read_text()) / 1e6 for file in files)
            counters[zone.name] = joules, largest
    with contextlib.suppress(Exception):  # no package, no GPU or no counter
        import pynvml

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties().uuid
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
        counters["gpu"] = millijoules / 1000, math.inf
    return counters


def set_up_device(training: TrainingArguments) -> None:
    """Set memory, determinism and float32 products for the whole process.

    Call this function before any computation on the device, since cuBLAS reads its environment
    variable only once. Each job of a sweep sets everything anew.
    """
    if training.use_cpu:
        keep_freed_memory()
    # This is the older interface. After a call of the newer one, which Hugging Face's class
    # uses, code that reads the older one fails.
    torch.set_float32_matmul_precision("high" if training.tf32 else "highest")
    # Both functions also set torch.compile's own option.
    if training.full_determinism:
        enable_full_determinism(training.seed)
    elif torch.are_deterministic_algorithms_enabled():  # set by another job of a sweep
        torch.use_deterministic_algorithms(False)


def best_device(use_cpu: bool = False) -> torch.device:
    """Return the GPU of this process (of NVIDIA, AMD, Intel or Apple), or the CPU."""
    gpu = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if use_cpu or gpu is None else gpu


def peak_flops(device: torch.device, dtype: torch.dtype, tf32: bool) -> Optional[float]:
    """Return the peak FLOP/s of one device; None for an unknown device.

    Args:
        dtype: dtype of the matrix products.
        tf32: whether float32 products use TF32.
    """
    if device.type != "cuda":
        return None
    words = re.split(r"[\s-]+", torch.cuda.get_device_name(device))
    known = [name for name in PEAKS if set(name.split()) <= set(words)]
    if not known:
        return None
    of_16_bits, of_tf32, of_float32 = PEAKS[max(known, key=len)]
    peak = of_tf32 if tf32 else of_float32
    return 1e12 * (peak if dtype == torch.float32 else of_16_bits)


def memory_of(device: torch.device) -> int:
    """Return the memory of a CUDA GPU, or else of the machine, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fast_bfloat16(use_cpu: bool) -> bool:
    """Return whether the hardware multiplies bfloat16 matrices without emulation."""
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
