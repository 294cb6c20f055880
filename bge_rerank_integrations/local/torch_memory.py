"""Telling torch's out-of-memory errors from all others, and giving its cached memory back."""

import torch

# torch has one class for accelerators; the CPU's and MPS' allocators raise a plain RuntimeError.
PLAIN_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory")


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is memory that ran out, and nothing else."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in PLAIN_MESSAGES)


def release_memory(device: str) -> None:
    """Return memory that torch's cache holds unused to the device; nothing to do on a CPU."""
    kind = device.partition(":")[0]
    if kind in ("cuda", "xpu", "mps"):
        getattr(torch, kind).empty_cache()
