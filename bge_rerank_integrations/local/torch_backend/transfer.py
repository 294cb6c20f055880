"""Transfers between host and device: one copy in per batch, one copy out per call."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bge_rerank_integrations.types import FloatArray

Array = np.ndarray[Any, Any]

# each array begins at a multiple of so many bytes, so that it can be viewed in any number format
ALIGNMENT = 16
BATCHES_AHEAD = 3


def to_device(arrays: Mapping[str, Array], device: str) -> dict[str, Tensor]:
    """The arrays as tensors on the device, by the same names.

    For CUDA they are copied in one page-locked buffer, without waiting. torch reuses such a buffer
    only after its copy has finished.
    """
    if not device.startswith("cuda"):
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return unpack(pack(arrays, pinned=True).to(device, non_blocking=True), arrays)


def pack(arrays: Mapping[str, Array], *, pinned: bool = False) -> Tensor:
    """All arrays end to end in one buffer of bytes."""
    ends = _ends(arrays)
    buffer = torch.empty(max(ends, default=0), dtype=torch.uint8, pin_memory=pinned)
    flat = buffer.numpy()
    for array, end in zip(arrays.values(), ends, strict=True):
        start = end - _room(array)
        flat[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return buffer


def unpack(buffer: Tensor, like: Mapping[str, Array]) -> dict[str, Tensor]:
    """Views of a packed buffer, with the names, shapes and number formats of `like`."""
    views = {}
    for (name, array), end in zip(like.items(), _ends(like), strict=True):
        start = end - _room(array)
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        views[name] = buffer[start : start + array.nbytes].view(dtype).view(array.shape)
    return views


def _room(array: Array) -> int:
    return -(-array.nbytes // ALIGNMENT) * ALIGNMENT


def _ends(arrays: Mapping[str, Array]) -> list[int]:
    return [int(end) for end in np.cumsum([_room(array) for array in arrays.values()])]


def computed(rows: Tensor) -> Any:
    """The rows that a forward returns: still on the device for CUDA, else a numpy array.

    Copying from CUDA waits for it, so `fetch` does that at the end. Rows of other accelerators are
    copied at once, while no other thread uses the device: MPS aborts when two threads do.
    """
    return rows if rows.is_cuda else rows.cpu().numpy()


def fetch(rows: Sequence[Any]) -> FloatArray:
    """The rows of several batches, concatenated, in one copy: [rows, width] float32."""
    if isinstance(rows[0], Tensor):
        host: FloatArray = torch.cat(list(rows)).cpu().numpy()
        return host
    return np.concatenate(rows)


class Mark(Protocol):
    """A place in the device's queue of work."""

    def synchronize(self) -> object:
        """Wait until the device has reached the mark."""
        ...


class RunAhead:
    """Keeps the host at most so many batches ahead of its device.

    Without a bound a long call would be queued whole, out of reach of cancellation and time limit.
    Without any lead the device would wait for the host between batches.
    """

    def __init__(self, mark: Callable[[], Mark], batches: int = BATCHES_AHEAD) -> None:
        self._mark = mark
        self._batches = batches
        self._marks: deque[Mark] = deque()

    def launched(self) -> None:
        """Call after each batch; waits for the oldest one if too many are queued."""
        self._marks.append(self._mark())
        while len(self._marks) > self._batches:
            self._marks.popleft().synchronize()


def run_ahead(device: str) -> RunAhead | None:
    """The bound for this device; None where the host computes or always waits."""
    if not device.startswith("cuda"):
        return None

    def mark() -> Mark:
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        placed: Mark = event
        return placed

    return RunAhead(mark)
