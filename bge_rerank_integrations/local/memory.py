"""Memory that ran out, by whichever library's error says so."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from bge_rerank_integrations.errors import OutOfMemoryError

MESSAGES = (
    "annot allocate memory",  # the operating system's, also as Rust and the loader quote it
    "can't allocate memory",  # torch on a CPU
    "out of memory",  # torch on CUDA and MPS
    "std::bad_alloc",
    "bad allocation",
    "Failed to allocate ",  # ONNX Runtime
    "Could not allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    # a library's own class says it in words only; other errors may quote a caller's file name
    words = isinstance(error, RuntimeError | ImportError) or type(error) is Exception
    named = type(error).__module__.partition(".")[0] in ("safetensors", "onnxruntime")
    return (words or named) and any(message in str(error) for message in MESSAGES)


@contextmanager
def memory_shortage_named(doing: str) -> Iterator[None]:
    """Raise `OutOfMemoryError` for an error that goes back to memory which ran out.

    A reader that fails for want of memory may call its file damaged: the cause counts.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not is_out_of_memory(cause):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        said = (str(cause).splitlines() or [""])[0]
        raise OutOfMemoryError(
            f"memory ran out while {doing} ({type(cause).__name__}: {said}): give the process more "
            "memory, or use a smaller model or a half precision"
        ) from error
