"""Models that are no rerankers, or damaged ones: refused with the class and the reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from bge_rerank_integrations import (
    CheckpointError,
    InvalidInputError,
    NonFiniteScoreError,
    RerankError,
    UnsupportedModel,
    load_scorer,
)
from bge_rerank_integrations.errors import MissingExtra

PAIRS = [("what is a panda?", "The giant panda is a bear."), ("大熊猫吃什么？", "竹子。")]


@pytest.mark.parametrize(
    ("kind", "error", "reason"),
    [
        ("two_labels", UnsupportedModel, "XLMRobertaForSequenceClassification of 2 labels"),
        ("missing_head", CheckpointError, r"lacks the weight 'classifier\.dense\.weight'"),
        ("embedder_as_reranker", CheckpointError, r"lacks the weight 'classifier\.dense\.weight'"),
        ("pickle_only", CheckpointError, r"only as pickle \(pytorch_model\.bin\).*save_pretrained"),
        ("truncated_weights", CheckpointError, r"model\.safetensors is damaged.*fetch it again"),
        ("no_weights", CheckpointError, r"has no model\.safetensors"),
        ("no_config", CheckpointError, r"has no config\.json"),
        ("no_tokenizer", CheckpointError, r"has no tokenizer\.json; copy it from"),
        ("too_many_tokens", CheckpointError, r"tokenizer\.json has 4\d\d tokens and the model 35"),
    ],
)
def test_a_damaged_model_is_refused_at_load(
    damaged: Callable[[str], Path], kind: str, error: type[RerankError], reason: str
) -> None:
    folder = damaged(kind)
    with pytest.raises(error, match=reason) as refused:
        load_scorer(str(folder))
    assert str(folder) in str(refused.value)


def test_nan_weights_give_an_error_and_never_a_score(damaged: Callable[[str], Path]) -> None:
    scorer = load_scorer(str(damaged("nan_weights")))
    with pytest.raises(
        NonFiniteScoreError, match=r"position 0 gives nan .* weights may be damaged"
    ):
        scorer.score(PAIRS)
    assert scorer.score([]).shape == (0,)


@pytest.fixture
def changed(reranker_base: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a good reranker whose config.json is changed."""

    def change(folder: Path = reranker_base, **changes: Any) -> Path:
        copy = Path(shutil.copytree(folder, tmp_path / "changed"))
        file = copy / "config.json"
        config = {**json.loads(file.read_text(encoding="utf-8")), **changes}
        file.write_text(json.dumps(config), encoding="utf-8")
        return copy

    return change


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("XLMRobertaForMaskedLM", "is a XLMRobertaForMaskedLM, which gives no relevance score"),
        ("Qwen2ForCausalLM", "is a Qwen2ForCausalLM, which gives no relevance score"),
        ("LlamaForCausalLM", "LlamaForCausalLM"),
        ("T5ForConditionalGeneration", "T5ForConditionalGeneration"),
        ("XLMRobertaModel", "no relevance head and no modules.json"),
        ("CustomForSequenceClassification", "CustomForSequenceClassification"),
    ],
)
def test_another_architecture_is_refused_by_name(
    changed: Callable[..., Path], architecture: str, reason: str
) -> None:
    folder = changed(architectures=[architecture])
    with pytest.raises(UnsupportedModel, match=reason):
        load_scorer(str(folder))


def test_code_in_the_folder_is_never_run(changed: Callable[..., Path], tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    folder = changed(
        architectures=["CustomForSequenceClassification"],
        model_type="custom",
        auto_map={
            "AutoConfig": "modeling.CustomConfig",
            "AutoModelForSequenceClassification": "modeling.CustomForSequenceClassification",
        },
    )
    (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n", encoding="utf-8")
    with pytest.raises(UnsupportedModel):
        load_scorer(str(folder))
    assert not canary.exists()


def test_code_beside_a_known_architecture_is_not_run_either(
    changed: Callable[..., Path], tmp_path: Path
) -> None:
    canary = tmp_path / "executed"
    folder = changed(auto_map={"AutoModelForSequenceClassification": "modeling.Custom"})
    (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n", encoding="utf-8")
    assert load_scorer(str(folder)).score(PAIRS).shape == (2,)
    assert not canary.exists()


def test_quantized_weights_are_refused(changed: Callable[..., Path]) -> None:
    folder = changed(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(UnsupportedModel, match="bitsandbytes"):
        load_scorer(str(folder))


def test_a_bare_encoder_without_pooling_files_is_refused(
    bge_embedder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bge_embedder, tmp_path / "bare"))
    (copy / "modules.json").unlink()
    with pytest.raises(UnsupportedModel, match="BertModel with no relevance head and no modules"):
        load_scorer(str(copy))


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({"pooling_mode_max_tokens": True}, "max"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            "cls_token and mean_tokens",
        ),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({}, "nothing"),
    ],
)
def test_another_pooling_is_refused_by_name(
    bge_embedder: Path, tmp_path: Path, pooling: dict[str, bool], named: str
) -> None:
    copy = Path(shutil.copytree(bge_embedder, tmp_path / "pooled"))
    (copy / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match=f"pools by {named}"):
        load_scorer(str(copy))


def test_a_module_without_its_files_is_refused_by_name(bge_embedder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bge_embedder, tmp_path / "dense"))
    modules = json.loads((copy / "modules.json").read_text(encoding="utf-8"))
    modules.append(
        {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.Dense"}
    )
    (copy / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"3_Dense/config\.json of .* has in_features=None"):
        load_scorer(str(copy))


@pytest.mark.parametrize("content", ["{", "null", "[1]", '[{"idx": 0}]', "{}"])
def test_damaged_module_files_are_refused(bge_embedder: Path, tmp_path: Path, content: str) -> None:
    copy = Path(shutil.copytree(bge_embedder, tmp_path / "modules"))
    (copy / "modules.json").write_text(content, encoding="utf-8")
    with pytest.raises((CheckpointError, UnsupportedModel)):
        load_scorer(str(copy))


def test_a_tokenizer_whose_ids_have_holes_is_measured_by_its_largest_id(
    bert_reranker: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bert_reranker, tmp_path / "holes"))
    file = copy / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["panda"] = 5000
    file.write_text(json.dumps(content), encoding="utf-8")
    assert Tokenizer.from_file(str(file)).get_vocab_size() <= 592
    with pytest.raises(CheckpointError, match="belong to different models"):
        load_scorer(str(copy))


@pytest.mark.parametrize(
    "options",
    [
        {"special_tokens": "ignore"},
        {"precision": "int8"},
        {"device": "gpu"},
        {"device": "cuda:99"},
        {"batch_size": 0},
        {"max_batch_tokens": -1},
        {"max_length": 0},
        {"max_length": 19},
        {"max_length": 513},
        {"max_length": 100.5},
        {"query_max_length": 0},
        {"max_length": 64, "query_max_length": 60},
        {"query_instruction": 7},
        {"passage_instruction": b"bytes"},
        {"cutoff_layers": [2]},
        {"prompt": "yes or no"},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused_at_load(
    reranker_base: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        load_scorer(str(reranker_base), **options)
    assert any(name in str(refused.value) for name in options)


def test_the_longest_input_the_model_takes_is_taken(
    reranker_base: Path, reranker_m3: Path, bert_reranker: Path
) -> None:
    long = [("panda " * 9000, "bear " * 9000)]
    for folder, most in ((reranker_base, 512), (reranker_m3, 8192), (bert_reranker, 512)):
        assert load_scorer(str(folder), max_length=most).score(long).shape == (1,)
        with pytest.raises(InvalidInputError, match=f"takes .* to {most} tokens"):
            load_scorer(str(folder), max_length=most + 1)


def test_missing_extra_names_the_line_that_installs_it() -> None:
    error = MissingExtra("torch", "local")
    assert 'pip install "bge-rerank-integrations[local]"' in str(error)
    assert isinstance(error, ImportError)
    assert (error.name, error.extra) == ("torch", "local")


def test_errors_survive_pickling() -> None:
    import pickle

    for error in (
        InvalidInputError("wrong", index=3),
        MissingExtra("torch", "local"),
        CheckpointError("damaged"),
        NonFiniteScoreError("nan"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.__dict__ == error.__dict__
