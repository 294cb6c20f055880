"""Recognise the errors of any library that mean that memory or file descriptors ran out."""

import errno
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bge_rerank_integrations.errors import OutOfMemoryError, RerankError

MESSAGES = (
    "annot allocate memory",  # the operating system's, also as Rust and the loader quote it
    "can't allocate memory",  # torch on a CPU
    "out of memory",  # torch on CUDA and MPS
    "std::bad_alloc",
    "bad allocation",
    "Failed to allocate ",  # ONNX Runtime
    "Could not allocate memory",
    "can't start new thread",  # Python, for a stack that does not fit
    "could not create a primitive",  # oneDNN
)

SPARE = 2**29
"""Bytes of address space, not of memory, that must be free before a model is loaded.

With less, Rust or the C library may end the process.
"""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    # a library's own class says it in words only; other errors may quote a caller's file name
    words = isinstance(error, RuntimeError | ImportError) or type(error) is Exception
    named = type(error).__module__.partition(".")[0] in ("safetensors", "onnxruntime")
    return (words or named) and any(message in str(error) for message in MESSAGES)


@contextmanager
def shortage_named(doing: str) -> Iterator[None]:
    """Raise `OutOfMemoryError` for an error that was caused by a lack of memory.

    For a lack of file descriptors it is a `RerankError`. A reader that lacks either may report a
    damaged file, so the error's causes are searched.
    """
    try:
        if sys.platform != "win32":
            mmap.mmap(-1, SPARE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0).close()
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not (is_out_of_memory(cause) or _no_descriptor(cause)):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        message = (str(cause).splitlines() or [""])[0]
        why = f"while {doing} ({type(cause).__name__}: {message})"
        if _no_descriptor(cause):
            raise RerankError(
                f"file descriptors ran out {why}: close files and connections, or raise the limit "
                "(ulimit -n)"
            ) from error
        raise OutOfMemoryError(
            f"memory ran out {why}: give the process more memory, or use a smaller model or a half "
            "precision"
        ) from error


def _no_descriptor(error: BaseException) -> bool:
    return getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE)
