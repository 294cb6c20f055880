"""Fields survive every round trip; weights, secrets and what cannot be written down never leave."""

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumpd, dumps
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from bge_rerank_integrations import InvalidInputError
from bge_rerank_integrations.adapter_base import ScorerFields
from bge_rerank_integrations.base.option_group import secret_text
from bge_rerank_integrations.langchain import BGECrossEncoder, BGERerank
from tests.fakes import WordOverlapScorer
from tests.given_options import RERANKER_OPTIONS, SCORER_OPTIONS
from tests.langchain.foxes import QUERY, documents, positions, word_overlap_rerank

RERANK_FIELDS = RERANKER_OPTIONS | {
    "metadata_keys": ["title", "author"],
    "score_key": "bge",
}
ENCODER_FIELDS = SCORER_OPTIONS | {"normalize": False}
NOT_WRITTEN = {"token", "api_key", "scorer"}
EVERY_FIELD: list[tuple[type[BGERerank | BGECrossEncoder], str, Any]] = [
    *((BGERerank, name, value) for name, value in RERANK_FIELDS.items()),
    *((BGECrossEncoder, name, value) for name, value in ENCODER_FIELDS.items()),
]
TOKEN = "hf_not_to_be_seen"


def test_the_tables_above_name_every_field() -> None:
    loads = {"lazy_load"}  # True would load, and has a test of its own
    assert set(BGERerank.model_fields) == set(RERANK_FIELDS) | NOT_WRITTEN | loads
    assert (
        set(BGECrossEncoder.model_fields)
        == set(ENCODER_FIELDS) | {"token", "api_key", "scorer"} | loads
    )
    for cls, name, value in EVERY_FIELD:
        assert cls.model_fields[name].default != value


@pytest.mark.parametrize(("cls", "name", "value"), EVERY_FIELD)
def test_every_field_survives_every_round_trip(
    cls: type[ScorerFields], name: str, value: Any
) -> None:
    given = cls(**{name: value})
    for rebuilt in (
        cls(**given.model_dump()),
        cls(**json.loads(json.dumps(given.model_dump()))),
        cls.model_validate_json(given.model_dump_json()),
        pickle.loads(pickle.dumps(given)),
        copy.copy(given),
        copy.deepcopy(given),
        given.model_copy(deep=True),
    ):
        assert getattr(rebuilt, name) == value
        assert rebuilt == given
        assert rebuilt != cls()


def test_all_fields_at_once_pickle_under_two_kilobytes() -> None:
    given = BGERerank(**RERANK_FIELDS)
    assert len(pickle.dumps(given)) < 2048
    assert pickle.loads(pickle.dumps(given)) == given


def test_lazy_load_false_loads_at_construction_and_survives(reranker_base: Path) -> None:
    given = BGERerank(model=str(reranker_base), device="cpu", lazy_load=False)
    assert len(pickle.dumps(given)) < 2048  # not the weights
    assert BGERerank(**given.model_dump()) == pickle.loads(pickle.dumps(given)) == given
    assert given.model_dump()["lazy_load"] is False
    assert given._bge_loaded is not None


@pytest.mark.parametrize("cls", [BGERerank, BGECrossEncoder])
def test_the_token_is_in_nothing_that_is_written(cls: type[ScorerFields]) -> None:
    given = cls(token=TOKEN)
    assert given.token is not None
    assert secret_text(given.token) == TOKEN
    for written in (
        repr(given),
        str(given),
        str(given.model_dump()),
        given.model_dump_json(),
        str(dumpd(given)),
        dumps(given),
    ):
        assert TOKEN not in written
    assert TOKEN.encode() not in pickle.dumps(given)
    assert TOKEN not in dumps(BGERerank(token=TOKEN).as_runnable())


def refusals(given: BGERerank) -> list[Any]:
    return [given.model_dump, given.model_dump_json, lambda: pickle.dumps(given)]


def test_a_scorer_cannot_be_written_down_and_is_refused_not_lost() -> None:
    for write in refusals(word_overlap_rerank()):
        with pytest.raises(PydanticSerializationError, match="given a scorer object"):
            write()


def test_equality_is_that_of_the_settings() -> None:
    assert BGERerank(top_n=2) == BGERerank(top_n=2)
    assert BGERerank(top_n=2) != BGERerank(top_n=3)
    assert BGERerank() != BGECrossEncoder()


def test_copies_share_the_scorer() -> None:
    given = word_overlap_rerank()
    for copied in (copy.deepcopy(given), copy.copy(given), given.model_copy(deep=True)):
        assert copied.scorer is given.scorer
        copied.top_n = 1
        assert positions(copied.compress_documents(documents(), QUERY)) == [1]
    assert given.top_n == 3
    assert given.scorer.calls == 3


def test_settings_can_be_changed_and_are_checked() -> None:
    reranker = word_overlap_rerank()
    reranker.top_n, reranker.score_threshold = None, 0.8
    assert positions(reranker.compress_documents(documents(), QUERY)) == [1, 3]
    with pytest.raises(ValidationError):
        reranker.score_threshold = "high"  # type: ignore[assignment]
    with pytest.raises(ValidationError):
        reranker.score_key = ""


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"top_n": 0}, "top_n is 0; it must be a whole number from 1, or None "),
        ({"score_threshold": math.nan}, "score_threshold is nan; it must be a number, or None "),
        (
            {"min_probability": 1.5},
            "min_probability is 1.5; it must be a number between 0 and 1, ",
        ),
        ({"on_error": "keeep"}, "on_error is 'keeep'; it must be 'raise' or 'keep' "),
        ({"topn": 2}, "BGERerank has no option 'topn'; did you mean top_n\\? "),
        ({"zzz": 2}, "BGERerank has no option 'zzz' "),
    ],
)
def test_an_error_of_a_field_names_the_value_and_the_option_that_is_near(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said) as refused:
        BGERerank(**{**fields, "token": TOKEN})
    assert TOKEN not in str(refused.value)
    with pytest.raises(ValidationError, match="top_n is -7; "):
        BGERerank().top_n = -7


def test_an_error_of_a_field_shows_neither_a_secret_nor_an_unknown_value() -> None:
    with pytest.raises(ValidationError) as refused:
        BGERerank(token=123454321, apikey="sk-canary", prompt=["a text"])  # type: ignore[call-arg, arg-type]
    assert "did you mean api_key?" in str(refused.value)
    written = f"{refused.value} {refused.value.errors()} {refused.value.json()}"
    assert [told for told in ("12345", "canary", "a text") if told in written] == []
    with pytest.raises(ValidationError) as refused:
        BGERerank(top_n=0)
    (line,) = refused.value.errors()
    assert (line["type"], line["loc"], line["input"]) == ("greater_than_equal", ("top_n",), 0)
    assert line["ctx"]["ge"] == 1
    with pytest.raises(ValidationError) as refused:
        BGERerank(base_url="http://u:canary@host")
    assert "canary" not in f"{refused.value.errors()} {refused.value.json()}"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"calibration": "/no/such/file"}, "/no/such/file is not a calibration"),
        ({"min_probability": 0.5}, "need a calibration"),
        ({"target_recall": 0.5}, "need a calibration"),
        ({"token_budget": 5}, "token_budget needs"),
    ],
)
def test_warming_up_refuses_what_any_request_would(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        word_overlap_rerank(**fields).warm_up()


def test_a_scorer_must_be_one() -> None:
    with pytest.raises(
        ValidationError, match="scorer is a object; it must have name, scale and score"
    ):
        BGERerank(scorer=object())
    assert isinstance(BGERerank(scorer=WordOverlapScorer()).scorer, WordOverlapScorer)


def test_defaults_are_those_of_the_ecosystem() -> None:
    reranker = BGERerank()
    assert (reranker.model, reranker.top_n) == ("BAAI/bge-reranker-v2-m3", 3)
    assert (reranker.score_threshold, reranker.normalize) == (None, True)
    assert (reranker.score_key, reranker.include_logit) == ("relevance_score", False)
    assert reranker.metadata_keys == []
    assert BGECrossEncoder().normalize is True


def test_two_rerankers_do_not_share_their_default_keys() -> None:
    BGERerank().metadata_keys.append("title")
    assert BGERerank().metadata_keys == []


def test_the_json_schema_describes_the_fields_that_can_be_written() -> None:
    properties = BGERerank.model_json_schema()["properties"]
    assert properties["top_n"]["default"] == 3
