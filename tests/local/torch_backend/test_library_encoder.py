"""The fallback gives transformers' numbers for any architecture, in batches and at full length."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
)

from bge_rerank_integrations import CheckpointError, InvalidInputError, load_scorer
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.model_config import why_not_flat
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.local.torch_backend.transformers_encoder import LibraryEncoder
from bge_rerank_integrations.types import FloatArray
from tests.local.torch_backend.encoder_models import CPU, VOCABULARY, random_sequences

TOLERANCE = 1e-5
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "num_labels": 1,
}
BATCH = random_sequences([4, 31, 31, 7, 64, 2, 12])


def _albert() -> PreTrainedModel:
    return AlbertForSequenceClassification(AlbertConfig(**SIZES, embedding_size=16))


def _deberta() -> PreTrainedModel:
    more: dict[str, Any] = {"pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 32}
    return DebertaV2ForSequenceClassification(
        DebertaV2Config(**SIZES, **more, relative_attention=True)
    )


def _distilbert() -> PreTrainedModel:
    sizes: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    shared = {key: SIZES[key] for key in ("vocab_size", "max_position_embeddings", "num_labels")}
    return DistilBertForSequenceClassification(DistilBertConfig(**sizes, **shared))


def _electra() -> PreTrainedModel:
    return ElectraForSequenceClassification(ElectraConfig(**SIZES, embedding_size=16))


def _modernbert() -> PreTrainedModel:
    return ModernBertForSequenceClassification(ModernBertConfig(**SIZES, pad_token_id=0))


def _mpnet() -> PreTrainedModel:
    return MPNetForSequenceClassification(MPNetConfig(**SIZES))


MODELS = {
    "albert": _albert,
    "deberta-v2": _deberta,
    "distilbert": _distilbert,
    "electra": _electra,
    "modernbert": _modernbert,
    "mpnet": _mpnet,
}
SEGMENTED = ("albert", "electra")
"""Those whose passages have token type 1."""


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    built: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in built:
            torch.manual_seed(2)
            model = MODELS[name]()
            with torch.no_grad():
                for key, weight in model.named_parameters():
                    weight.normal_(mean=float("norm.weight" in key.lower()), std=0.3)
            built[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(built[name])
        return built[name]

    return find


def encoder(folder: Path, **changes: Any) -> LibraryEncoder:
    plan = dataclasses.replace(CPU, **changes)
    checkpoint = Checkpoint(str(folder), folder)
    assert why_not_flat(checkpoint.config) is not None
    return LibraryEncoder(checkpoint, plan, "logit")


def one_by_one(folder: Path, batch: list[TokenSequence], name: str) -> FloatArray:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for sequence in batch:
        inputs = {"input_ids": torch.tensor([sequence.ids.tolist()])}
        if name in SEGMENTED:
            rest = len(sequence.ids) - sequence.first_segment
            inputs["token_type_ids"] = torch.tensor([[0] * sequence.first_segment + [1] * rest])
        with torch.inference_mode():
            rows.append(model(**inputs).logits[0])
    result: FloatArray = torch.stack(rows).numpy()
    return result


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_a_padded_batch_are_those_of_one_at_a_time(
    folder_of: Callable[[str], Path], name: str
) -> None:
    folder = folder_of(name)
    rows = encoder(folder).run(BATCH)
    assert rows.std() > 0.02
    assert rows == pytest.approx(one_by_one(folder, BATCH, name), abs=TOLERANCE)


@pytest.mark.parametrize(
    "changes", [{"dtype": "bfloat16"}, {"dtype": "bfloat16", "autocast": True}]
)
@pytest.mark.parametrize("name", ["distilbert", "electra", "mpnet"])
def test_exact_is_float32_whatever_the_plan(
    folder_of: Callable[[str], Path], name: str, changes: dict[str, Any]
) -> None:
    folder = folder_of(name)
    half = encoder(folder, **changes)
    expected = encoder(folder).run(BATCH)
    assert 1e-5 < np.abs(half.run(BATCH) - expected).max() < 0.5
    assert half.run(BATCH, exact=True) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "tokens_from", "most"),
    [("mpnet", "reranker_base", 64), ("electra", "bert_reranker", 66)],
)
def test_the_longest_input_is_what_the_position_table_holds(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, tokens_from: str, most: int
) -> None:
    # MPNet counts positions from behind its padding id, so two rows of the table are not used
    tokens: Path = request.getfixturevalue(tokens_from)
    model = MODELS[name]()
    vocabulary = json.loads((tokens / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    model.resize_token_embeddings(vocabulary)
    model.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokens / file, tmp_path)
    long = [("panda " * 900, "bear " * 900)]
    for length in (None, most):
        assert load_scorer(str(tmp_path), device="cpu", max_length=length).score(long).shape == (1,)
    with pytest.raises(InvalidInputError, match=f"max_length is {most + 1}; .* to {most} tokens"):
        load_scorer(str(tmp_path), device="cpu", max_length=most + 1)


def test_a_checkpoint_without_its_head_is_refused(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(folder_of("electra"), tmp_path / "headless"))
    weights = load_file(folder / "model.safetensors")
    body = {name: weight for name, weight in weights.items() if "classifier" not in name}
    save_file(body, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks the weight 'classifier"):
        encoder(folder)


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "max_position_embeddings"])
def test_a_config_that_does_not_fit_the_weights_is_refused(
    folder_of: Callable[[str], Path], tmp_path: Path, key: str
) -> None:
    folder = Path(shutil.copytree(folder_of("electra"), tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, key: 96}), encoding="utf-8")
    with pytest.raises(CheckpointError):
        encoder(folder)
