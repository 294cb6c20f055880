"""`missing_extra`: only a library that is not installed is reported as a missing extra."""

import importlib

import pytest

from bge_rerank_integrations import MissingExtra
from bge_rerank_integrations.errors import missing_extra


def test_a_missing_library_names_its_extra() -> None:
    said = r'pip install "bge-rerank-integrations\[eval\]"'
    with pytest.raises(MissingExtra, match=said) as error, missing_extra("eval"):
        importlib.import_module("no_such_library")
    assert (error.value.name, error.value.extra) == ("no_such_library", "eval")


def test_other_failures_pass_through() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_part") as error, missing_extra("eval"):
        importlib.import_module("bge_rerank_integrations.no_such_part")
    assert not isinstance(error.value, MissingExtra)
    with pytest.raises(MissingExtra, match=r"\[onnx\]"), missing_extra("eval"):
        raise MissingExtra("onnxruntime", "onnx")
    with pytest.raises(ValueError, match="broken"), missing_extra("eval"):
        raise ValueError("broken")
