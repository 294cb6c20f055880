"""`missing_extra`: only a library that is not installed is reported as a missing extra."""

import importlib
import pickle

import pytest

import bge_rerank_integrations
from bge_rerank_integrations import MissingExtra, RerankError, errors
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


def test_the_middle_of_a_very_long_message_is_left_out() -> None:
    for kind in (errors.CheckpointError, errors.InvalidInputError, errors.ModelNotFound):
        assert str(kind("a" * 4000)) == "a" * 4000
        said = str(kind(f"{'a' * 2000}{'x' * 10_000}{'b' * 1999}"))
        assert said == f"{'a' * 2000}…{'b' * 1999}"


def test_every_error_is_imported_from_the_root() -> None:
    classes = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, RerankError)
    ]
    assert len(classes) == 17
    for name in classes:
        assert getattr(bge_rerank_integrations, name) is getattr(errors, name)
        assert name in bge_rerank_integrations.__all__


def test_a_missing_extra_names_what_works_without_it() -> None:
    error = pickle.loads(pickle.dumps(MissingExtra("torch", "local", "model='offline'")))
    assert str(error).endswith("[local]\"; or use model='offline'")
    assert not str(MissingExtra("torch", "local")).endswith("use ")
