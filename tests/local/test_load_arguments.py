"""What a model may be named by, and options that have no meaning: refused before anything loads."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import (
    InvalidInputError,
    ModelNotFound,
    Reranker,
    load_reranker,
    load_scorer,
)
from bge_rerank_integrations.local.scorer import LocalScorer
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore
from bge_rerank_integrations.wrappers.windows import WindowedScorer
from tests.fakes import LengthScorer

PAIRS = [("red fox", "the red fox eats"), ("red fox", "a dog sleeps")]


def test_a_path_is_the_folder_of_that_name(reranker_base: Path) -> None:
    by_path = load_scorer(reranker_base, device="cpu")
    by_text = load_scorer(str(reranker_base), device="cpu")
    assert by_path.name == by_text.name
    assert by_path.score(PAIRS).tolist() == by_text.score(PAIRS).tolist()
    wrapped = load_reranker(reranker_base, device="cpu", score_cache=":memory:")
    assert wrapped.scorer.name == by_text.name


def test_a_path_that_is_no_folder_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for load in (load_scorer, load_reranker):
        with pytest.raises(ModelNotFound, match="no folder BAAI/bge-reranker-base"):
            load(Path("BAAI/bge-reranker-base"))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (None, "model is a NoneType"),
        (7, "model is a int"),
        (b"offline", "model is a bytes"),
        ("", "model is ''"),
        (" \n", r"model is ' \\n'"),
    ],
    ids=repr,
)
def test_what_names_no_model_is_refused(model: Any, said: str) -> None:
    """An empty name would be the working directory."""
    for load in (load_scorer, load_reranker):
        with pytest.raises(InvalidInputError, match=f"{said}; it must be a hub id, a folder"):
            load(model)


def test_a_folder_and_an_embedded_model_have_no_revisions(reranker_base: Path) -> None:
    for model, why in (
        (str(reranker_base), "is a folder on this machine"),
        ("offline", "comes with a package"),
    ):
        with pytest.raises(InvalidInputError, match=f"revision is 'v2', and .* {why}.*leave"):
            load_scorer(model, revision="v2")


def test_numbers_of_numpy_are_numbers(reranker_base: Path) -> None:
    options: dict[str, Any] = {"max_length": 32, "query_max_length": 9, "batch_size": 1}
    options["max_batch_tokens"] = 40
    plain = load_scorer(str(reranker_base), device="cpu", **options)
    options = {name: np.int64(number) for name, number in options.items()}
    numpy = load_scorer(str(reranker_base), device="cpu", **options)
    assert numpy.name == plain.name
    assert str(numpy.plan) == str(plain.plan)
    assert numpy.score(PAIRS).tolist() == plain.score(PAIRS).tolist()


@pytest.mark.parametrize(
    "option", [{"max_length": True}, {"max_length": 64.0}, {"batch_size": True}, {"batch_size": 0}]
)
def test_what_is_no_whole_number_is_refused(reranker_base: Path, option: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=f"{next(iter(option))} is .*a whole number"):
        load_scorer(str(reranker_base), device="cpu", **option)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"cutoff_layers": 5}, r"cutoff_layers is 5; it must be a list, such as \[5\]"),
        ({"cutoff_layers": "5"}, "cutoff_layers is '5'"),
        ({"compress_layers": 8}, "compress_layers is 8"),
        ({"device": 0}, "device is 0; it must be a name, such as 'cuda:0', or a list of names"),
        ({"device": [0, 1]}, r"device is \[0, 1\]"),
        ({"device": []}, "device is an empty list"),
    ],
)
def test_a_single_value_is_no_list(reranker_base: Path, option: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        load_scorer(str(reranker_base), **option)


def around(scorer: LocalScorer) -> list[object]:
    return [
        scorer,
        Reranker(scorer),
        WindowedScorer(scorer),
        CachedScorer(scorer, MemoryStore()),
    ]


def test_a_loaded_model_says_what_to_do_instead_of_being_copied(reranker_base: Path) -> None:
    for whole in around(load_scorer(str(reranker_base), device="cpu")):
        for copied in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match=r"LocalScorer is not pickled or .*load_scorer"):
                copied(whole)


def test_a_reranker_over_a_scorer_that_can_be_pickled_can_be_too() -> None:
    before = Reranker(LengthScorer(), top_n=1, score_threshold=0.5)
    after = pickle.loads(pickle.dumps(before))
    assert after.rerank("q", ["a", "abc"]) == before.rerank("q", ["a", "abc"])
    assert repr(after) == repr(before)
