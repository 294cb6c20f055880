"""Memory that runs out while a model is loaded is called that, never a damaged file."""

import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from bge_rerank_integrations import CheckpointError, OutOfMemoryError, load_scorer
from bge_rerank_integrations.local.memory import is_out_of_memory, memory_shortage_named
from bge_rerank_integrations.local.torch_backend import weights
from tests import tiny_models


def no_memory() -> OSError:
    return OSError(errno.ENOMEM, "Cannot allocate memory")


def fail_at(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> list[str]:
    """The files of the folder that are opened, the one of this number without success."""
    opened: list[str] = []
    real = io.open

    def open_file(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, str | Path) and folder in Path(file).parents:
            opened.append(Path(file).name)
            if len(opened) == number:
                raise no_memory()
        return real(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", open_file)
    monkeypatch.setattr("builtins.open", open_file)
    return opened


@pytest.mark.parametrize("build", [tiny_models.build_reranker_base, tiny_models.build_bge_embedder])
def test_every_file_that_cannot_be_opened_for_want_of_memory(
    tmp_path: Path, build: Callable[[Path], Path]
) -> None:
    folder = build(tmp_path)
    for number in range(1, 100):
        with pytest.MonkeyPatch.context() as patch:
            opened = fail_at(patch, folder, number)
            try:
                load_scorer(folder, device="cpu")
            except OutOfMemoryError as error:
                said = f"memory ran out while {folder} was loaded (OSError: [Errno 12] Cannot"
                assert str(error).startswith(said)  # noqa: PT017
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
    with pytest.raises(CheckpointError) as raised, memory_shortage_named("a model was loaded"):
        raise error
    assert raised.value is error
