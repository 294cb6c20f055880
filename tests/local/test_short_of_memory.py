"""Memory and descriptors that run out while a model is loaded are never a damaged file."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from bge_rerank_integrations import CheckpointError, OutOfMemoryError, RerankError, load_scorer
from bge_rerank_integrations.local.memory import is_out_of_memory, shortage_named
from bge_rerank_integrations.local.torch_backend import weights
from tests import tiny_models


def no_memory() -> OSError:
    return OSError(errno.ENOMEM, "Cannot allocate memory")


def fail_at(
    monkeypatch: pytest.MonkeyPatch, folder: Path, number: int, code: int = errno.ENOMEM
) -> list[str]:
    """The files of the folder that are opened, the one of this number without success."""
    opened: list[str] = []
    real = io.open

    def open_file(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, str | Path) and folder in Path(file).parents:
            opened.append(Path(file).name)
            if len(opened) == number:
                raise OSError(code, os.strerror(code))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", open_file)
    monkeypatch.setattr("builtins.open", open_file)
    return opened


@pytest.mark.parametrize("build", [tiny_models.build_reranker_base, tiny_models.build_bge_embedder])
@pytest.mark.parametrize(
    ("code", "kind", "ran_out"),
    [
        (errno.ENOMEM, OutOfMemoryError, "memory"),
        (errno.EMFILE, RerankError, "file descriptors"),
        (errno.ENFILE, RerankError, "file descriptors"),
    ],
)
def test_every_file_that_cannot_be_opened_for_want_of_memory_or_descriptors(
    tmp_path: Path, build: Callable[[Path], Path], code: int, kind: type[RerankError], ran_out: str
) -> None:
    folder = build(tmp_path)
    for number in range(1, 100):
        with pytest.MonkeyPatch.context() as patch:
            opened = fail_at(patch, folder, number, code)
            try:
                load_scorer(folder, device="cpu")
            except RerankError as error:
                said = f"{ran_out} ran out while {folder} was loaded (OSError: [Errno {code}] "
                assert (type(error), str(error)[: len(said)]) == (kind, said)  # noqa: PT017
                continue
        assert len(opened) < number
        break
    assert {"config.json", "tokenizer.json"} <= set(opened)


@pytest.mark.parametrize(
    "error",
    [no_memory(), SafetensorError("Cannot allocate memory (os error 12)"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_weights_that_cannot_be_mapped(
    reranker_base: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(weights, "safe_open", fail)
    with pytest.raises(OutOfMemoryError, match=r"memory ran out while .* was loaded"):
        load_scorer(reranker_base, device="cpu", precision="bf16-autocast")


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("std::bad_alloc"), True),
        (ImportError("libtorch.so: failed to map segment: Cannot allocate memory"), True),
        (Exception("Cannot allocate memory (os error 12)"), True),  # tokenizers raises this class
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("could not create a primitive"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (CheckpointError("a folder called out of memory is no model"), False),
    ],
    ids=str,
)
def test_errors_that_say_so(error: Exception, short: bool) -> None:
    assert is_out_of_memory(error) == short


def test_other_errors_pass_unchanged() -> None:
    error = CheckpointError("damaged")
    with pytest.raises(CheckpointError) as raised, shortage_named("a model was loaded"):
        raise error
    assert raised.value is error


FEW = """
import resource, sys
import onnxruntime
from bge_rerank_integrations import OutOfMemoryError, load_scorer
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, hard))
try:
    load_scorer("offline")
except OutOfMemoryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
print(load_scorer("offline").score([("panda", "A panda.")]).shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and counts memory as Linux does")
def test_few_addresses_are_an_error_before_a_library_ends_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FEW], capture_output=True, text=True, check=True
    )
    said, after = done.stdout.splitlines()
    assert said.startswith("memory ran out while offline was loaded")
    assert after == "(1,)"
