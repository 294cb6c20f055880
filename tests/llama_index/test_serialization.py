"""Every field survives dictionaries, JSON and pickle; secrets and weights are in none of them."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import MetadataMode

from bge_rerank_integrations.base.option_group import secret_text
from bge_rerank_integrations.llama_index import BGERerank
from tests.fakes import WordOverlapScorer
from tests.given_options import RERANKER_OPTIONS

CHANGED: dict[str, Any] = RERANKER_OPTIONS | {
    "device": ("cuda:0", "cuda:1"),
    "metadata_mode": MetadataMode.LLM,
    "keep_retrieval_score": True,
}
SECRET = "hf_do_not_tell"


def test_no_field_is_forgotten_here() -> None:
    written = {name for name, field in BGERerank.model_fields.items() if not field.exclude}
    assert written == {*CHANGED, "lazy_load"}  # tested with a model
    defaults = BGERerank()
    assert [name for name, value in CHANGED.items() if getattr(defaults, name) == value] == []


@pytest.mark.parametrize("name", CHANGED)
def test_every_field_survives(name: str) -> None:
    reranker = BGERerank.from_dict({name: CHANGED[name]})
    copies = [
        BGERerank.from_dict(reranker.to_dict()),
        BGERerank.from_json(reranker.to_json()),
        BGERerank.model_validate(reranker.model_dump()),
        BGERerank.model_validate_json(reranker.model_dump_json()),
        pickle.loads(pickle.dumps(reranker)),
        copy.copy(reranker),
        copy.deepcopy(reranker),
        reranker.model_copy(deep=True),
    ]
    assert [getattr(one, name) for one in copies] == [CHANGED[name]] * len(copies)
    assert [one == reranker for one in copies] == [True] * len(copies)
    assert reranker != BGERerank()


def test_it_is_named_and_small() -> None:
    reranker = BGERerank.from_dict(CHANGED)
    assert reranker.to_dict()["class_name"] == BGERerank.class_name() == "BGERerank"
    assert len(pickle.dumps(reranker)) < 2048
    assert len(reranker.to_json()) < 2048


def test_the_token_is_told_nowhere() -> None:
    reranker = BGERerank.from_dict({"token": SECRET})
    told = [
        repr(reranker),
        str(reranker),
        str(reranker.to_dict()),
        reranker.to_json(),
        reranker.model_dump_json(),
        repr(pickle.dumps(reranker)),
        json.dumps(BGERerank.model_json_schema()),
    ]
    assert [SECRET in text for text in told] == [False] * len(told)
    assert reranker.token is not None
    assert secret_text(reranker.token) == SECRET
    assert copy.deepcopy(reranker).token == reranker.token


def test_repr_says_only_what_was_chosen() -> None:
    assert repr(BGERerank()) == "BGERerank(model='BAAI/bge-reranker-v2-m3')"
    chosen = BGERerank(scorer=WordOverlapScorer(), top_n=None, no_text="drop")
    assert repr(chosen) == "BGERerank(model='word-overlap', top_n=None, no_text='drop')"


def test_a_given_scorer_is_shared_by_copies_and_never_written() -> None:
    reranker = BGERerank(scorer=WordOverlapScorer(), callback_manager=CallbackManager())
    for one in (copy.copy(reranker), copy.deepcopy(reranker)):
        assert one.scorer is reranker.scorer
        assert one == reranker
    with pytest.raises(ValueError, match="word-overlap"):
        reranker.to_dict()
    with pytest.raises(ValueError, match="word-overlap"):
        pickle.dumps(reranker)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="batchsize"):
        BGERerank.from_dict({"batchsize": 4})


def test_a_missing_llama_index_is_named_with_its_extra() -> None:
    program = """
import sys
sys.modules["llama_index"] = None
from bge_rerank_integrations.errors import MissingExtra
try:
    import bge_rerank_integrations.llama_index
except MissingExtra as error:
    print(error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("'llama_index")
    assert 'pip install "bge-rerank-integrations[llama-index]"' in done.stdout
