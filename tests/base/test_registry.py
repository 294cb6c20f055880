"""What a model is comes from its config.json, and from the table only by exact id."""

import dataclasses
from typing import Any

import pytest

from bge_rerank_integrations import CheckpointError, UnsupportedModel
from bge_rerank_integrations.base.models import (
    DEFAULT_MODEL,
    Family,
    family_of,
    find_model,
    known_models,
    label_count,
)


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"architectures": ["XLMRobertaForSequenceClassification"], "num_labels": 1}, "encoder"),
        (
            {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "x"}},
            "encoder",
        ),
        ({"architectures": ["DebertaV2ForSequenceClassification"], "num_labels": 1}, "encoder"),
        ({"architectures": ["BertModel"]}, "bi-encoder"),
        ({"architectures": ["XLMRobertaModel"]}, "bi-encoder"),
        ({"architectures": ["GemmaForCausalLM"]}, "causal"),
        ({"architectures": ["LayerWiseMiniCPMForCausalLM"]}, "layerwise"),
        ({"architectures": ["CostWiseGemmaForCausalLM"]}, "lightweight"),
    ],
)
def test_the_architecture_decides(config: dict[str, Any], family: str) -> None:
    # whatever the model is called
    for name in ("BAAI/bge-reranker-base", "BAAI/bge-m3", "my/gemma-embedder"):
        assert family_of(config, name) is Family(family)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "of 2 labels"),
        ({"architectures": ["BertForSequenceClassification"], "num_labels": 3}, "of 3 labels"),
        (
            {
                "architectures": ["BertForSequenceClassification"],
                "id2label": {"0": "a", "1": "b"},
                "num_labels": 1,
            },
            "of 2 labels",
        ),
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "T5ForConditionalGeneration"),
        ({"architectures": []}, "has no architectures"),
        ({"architectures": None}, "has no architectures"),
        ({}, "has no architectures"),
    ],
)
def test_what_gives_no_single_logit_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named) as refused:
        family_of(config, "some/model")
    assert "some/model" in str(refused.value)
    assert DEFAULT_MODEL in str(refused.value)


def test_labels_are_counted_as_transformers_does() -> None:
    assert label_count({}) == 2
    assert label_count({"num_labels": 1}) == 1
    assert label_count({"id2label": {"0": "LABEL_0"}}) == 1
    assert label_count({"id2label": None, "num_labels": 1}) == 1
    with pytest.raises(CheckpointError, match="num_labels=0"):
        label_count({"num_labels": 0})


def test_the_table_knows_its_models_by_exact_id() -> None:
    models = known_models()
    assert len({model.id for model in models}) == len(models) > 10
    default = find_model(DEFAULT_MODEL)
    assert default is not None
    assert (default.family, default.max_length) == (Family.ENCODER, 8192)
    for near in ("bge-reranker-v2-m3", "BAAI/bge-reranker-v2-m3 ", "baai/bge-reranker-v2-m3"):
        assert find_model(near) is None


def test_the_rerankers_of_baai_by_hand() -> None:
    found = {model.id.removeprefix("BAAI/"): model for model in known_models()}
    for name, family, length in (
        ("bge-reranker-base", "encoder", 512),
        ("bge-reranker-large", "encoder", 512),
        ("bge-reranker-v2-m3", "encoder", 8192),
        ("bge-reranker-v2-gemma", "causal", 8192),
        ("bge-reranker-v2-minicpm-layerwise", "layerwise", 2048),
        ("bge-reranker-v2.5-gemma2-lightweight", "lightweight", 8192),
    ):
        assert (found[name].family, found[name].max_length) == (Family(family), length)
        assert found[name].query_instruction is None


def test_embedders_instructions_by_hand() -> None:
    english = "Represent this sentence for searching relevant passages: "
    chinese = "为这个句子生成表示以用于检索相关文章："
    for size in ("small", "base", "large"):
        for language, instruction in (("en", english), ("zh", chinese)):
            model = find_model(f"BAAI/bge-{size}-{language}-v1.5")
            assert model is not None
            assert model.family is Family.BI_ENCODER
            assert model.query_instruction == instruction
    m3 = find_model("BAAI/bge-m3")
    assert m3 is not None
    assert not m3.query_instruction


def test_rows_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        known_models()[0].id = "other"  # type: ignore[misc]
