"""The flat forward gives transformers' numbers, for every configuration it says it can run."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from bge_rerank_integrations import CheckpointError, UnsupportedModel
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.device import Attention
from bge_rerank_integrations.local.model_config import why_not_flat
from bge_rerank_integrations.local.st_config import ModelOutput
from bge_rerank_integrations.local.torch_backend.encoder import FlatEncoder
from bge_rerank_integrations.local.torch_backend.encoder_weights import ACTIVATIONS
from tests.local.torch_backend.encoder_models import (
    CPU,
    build_encoder,
    edit_config,
    flat,
    library_rows,
    random_sequences,
)

TOLERANCE = 1e-5
BATCH = random_sequences([4, 31, 31, 7, 64, 1, 12, 12, 12, 2])
NEEDED = {
    "hidden_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
    "vocab_size",
}  # fmt: skip
ATTENTIONS: tuple[Attention, ...] = ("runs", "padded")
OUTPUTS: tuple[ModelOutput, ...] = get_args(ModelOutput)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlmr"])
def test_rows_are_those_of_transformers(
    tmp_path: Path, kind: str, output: ModelOutput, attention: Attention
) -> None:
    folder = build_encoder(tmp_path, kind, head=output == "logit")
    encoder = flat(folder, output, dataclasses.replace(CPU, attention=attention))
    rows = encoder.run(BATCH)
    assert rows.dtype == np.float32
    assert rows == pytest.approx(library_rows(folder, BATCH, output), abs=TOLERANCE)


@pytest.mark.parametrize("length", [512, 2048, pytest.param(8192, marks=pytest.mark.slow)])
def test_rounding_errors_do_not_grow_with_the_length(tmp_path: Path, length: int) -> None:
    folder = build_encoder(
        tmp_path, "xlmr", num_hidden_layers=12, num_attention_heads=1, hidden_size=64,
        max_position_embeddings=8194, type_vocab_size=1,
    )  # fmt: skip
    batch = random_sequences([length])
    exact = library_rows(folder, batch, dtype=torch.float64)
    assert exact.dtype == np.float64
    assert flat(folder).run(batch) == pytest.approx(exact, abs=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        *({"hidden_act": name} for name in ACTIVATIONS),
        {"layer_norm_eps": 0.1},
        {"type_vocab_size": 1},
        {"type_vocab_size": 2},
        {"type_vocab_size": 3},
        {"num_hidden_layers": 1},
        {"num_attention_heads": 1},
        {"num_attention_heads": 32},
        {"intermediate_size": 8},
        {"hidden_dropout_prob": 0.9, "attention_probs_dropout_prob": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_every_setting_counts_as_in_transformers(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    folder = build_encoder(tmp_path, kind, **changes)
    assert flat(folder).run(BATCH) == pytest.approx(library_rows(folder, BATCH), abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlmr"])
@pytest.mark.parametrize("pad", [0, 1, 9])
def test_padding_ids_inside_a_text(tmp_path: Path, kind: str, pad: int) -> None:
    # as `<pad>` in a text gives with special_tokens="parse"
    folder = build_encoder(tmp_path, kind, pad_token_id=pad, max_position_embeddings=80)
    batch = random_sequences([9, 20], least=0)
    for number, sequence in enumerate(batch):
        sequence.ids[[1, 3 + number, -1]] = pad
    assert flat(folder).run(batch) == pytest.approx(library_rows(folder, batch), abs=TOLERANCE)


@pytest.mark.parametrize(
    "key",
    [
        "pad_token_id", "type_vocab_size", "layer_norm_eps", "hidden_act", "num_attention_heads",
        "max_position_embeddings", "vocab_size", "hidden_size", "num_hidden_layers",
        "is_decoder", "add_cross_attention", "dtype",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_a_setting_the_config_leaves_out_is_transformers_default_or_refused(
    tmp_path: Path, kind: str, key: str
) -> None:
    # with the defaults written out where this model would otherwise differ from them
    build_encoder(tmp_path, kind, type_vocab_size=2, layer_norm_eps=1e-12)
    folder = edit_config(tmp_path, lambda config: config.pop(key, None))
    if key in NEEDED:
        with pytest.raises(CheckpointError, match=key):
            flat(folder)
        return
    rows = flat(folder).run(BATCH)
    assert rows == pytest.approx(library_rows(folder, BATCH), abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_a_padding_id_of_null_is_transformers_default(tmp_path: Path, kind: str) -> None:
    build_encoder(tmp_path, kind)
    left_out = edit_config(tmp_path, lambda config: config.pop("pad_token_id"))
    expected = flat(left_out).run(BATCH)
    null = edit_config(tmp_path, lambda config: config.update(pad_token_id=None))
    assert flat(null).run(BATCH).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 201),
        ("vocab_size", 99_999),
        ("max_position_embeddings", 514),
        ("hidden_size", 64),
        ("hidden_size", 16),
        ("num_hidden_layers", 4),
        ("num_hidden_layers", 2),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", "three"),
        ("num_hidden_layers", None),
        ("num_attention_heads", 5),
        ("num_attention_heads", 0),
        ("num_attention_heads", True),
    ],
)
@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_a_config_that_does_not_fit_the_weights_is_refused_at_load(
    tmp_path: Path, kind: str, key: str, value: object
) -> None:
    folder = build_encoder(tmp_path, kind)
    edit_config(folder, lambda config: config.update({key: value}))
    with pytest.raises(CheckpointError):
        flat(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"position_embedding_type": "relative_key"},
        {"hidden_act": "silu"},
        {"hidden_act": "quick_gelu"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"architectures": ["CustomForSequenceClassification"]},
        {"architectures": ["DistilBertForSequenceClassification"]},
        {"architectures": None},
    ],
    ids=str,
)
def test_what_the_flat_forward_does_not_know_it_leaves_alone(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = build_encoder(tmp_path, "bert")
    config = Checkpoint(str(folder), folder).config
    assert why_not_flat(config) is None
    reason = why_not_flat({**config, **changes})
    assert reason is not None
    value = next(iter(changes.values()))
    assert value is True or str(value[0] if isinstance(value, list) else value or "") in reason


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = build_encoder(tmp_path, "xlmr")
    weights = load_file(folder / "model.safetensors")
    name = "roberta.encoder.layer.1.intermediate.dense.weight"
    weights[name] = (weights[name] * 40).to(torch.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"layer\.1\.intermediate.*I8"):
        flat(folder)


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
@pytest.mark.parametrize(
    ("dtype", "by_autocast", "largest"),
    [
        ("bfloat16", False, 0.5),
        ("float16", False, 0.1),
        ("bfloat16", True, 0.5),
    ],
)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_half_precision_stays_near_float32(
    tmp_path: Path,
    kind: str,
    dtype: Any,
    by_autocast: bool,
    largest: float,
    attention: Attention,
) -> None:
    folder = build_encoder(tmp_path, kind)
    plan = dataclasses.replace(CPU, dtype=dtype, autocast=by_autocast, attention=attention)
    error = np.abs(flat(folder, plan=plan).run(BATCH) - flat(folder).run(BATCH)).max()
    assert 1e-5 < error < largest, "half precision was not used, or is wrong"


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_exact_on_half_weights_computes_in_float32(
    tmp_path: Path, kind: str, dtype: Any, attention: Attention
) -> None:
    folder = build_encoder(tmp_path, kind, type_vocab_size=2)
    plan = dataclasses.replace(CPU, dtype=dtype, attention=attention)
    encoder = flat(folder, plan=plan)
    rounded = library_rows(folder, BATCH, half=dtype)
    exact = encoder.run(BATCH, exact=True)
    # the embedding table and the head may keep the precision they are stored in
    stored = library_rows(folder, BATCH)
    nearest = np.minimum(np.abs(exact - rounded), np.abs(exact - stored))
    assert nearest.max() < np.abs(encoder.run(BATCH) - rounded).max()
    assert encoder.run(BATCH, exact=True).tolist() == exact.tolist()


def test_exact_under_autocast_is_the_float32_forward(tmp_path: Path) -> None:
    folder = build_encoder(tmp_path, "xlmr")
    plan = dataclasses.replace(CPU, dtype="bfloat16", autocast=True)
    exact = flat(folder, plan=plan).run(BATCH, exact=True)
    assert exact == pytest.approx(flat(folder).run(BATCH), abs=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_exact_twin_is_never_of_other_weights(tmp_path: Path, dtype: Any) -> None:
    folder = build_encoder(tmp_path / "model", "xlmr")
    checkpoint = Checkpoint(str(folder), folder)
    assert checkpoint.signature, "read when a model is loaded"
    encoder = FlatEncoder(checkpoint, dataclasses.replace(CPU, dtype=dtype), "logit")
    build_encoder(tmp_path / "model", "xlmr", hidden_act="relu")  # retrained in place
    with pytest.raises(CheckpointError, match="has changed since it was loaded"):
        encoder.run(BATCH, exact=True)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError):
        encoder.run(BATCH, exact=True)
    assert np.isfinite(encoder.run(BATCH)).all()


def test_half_precision_heads_do_not_make_ties(tmp_path: Path) -> None:
    # a bfloat16 logit has 8 bits: the head is float32, so scores of many pairs all differ
    folder = build_encoder(tmp_path, "xlmr")
    plan = dataclasses.replace(CPU, dtype="bfloat16")
    batch = random_sequences([8] * 200)
    rows = flat(folder, plan=plan).run(batch)
    assert len(np.unique(rows)) == 200


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_row_does_not_depend_on_the_rest_of_the_batch(
    tmp_path: Path, attention: Attention, output: ModelOutput
) -> None:
    folder = build_encoder(tmp_path, "bert", head=output == "logit")
    encoder = flat(folder, output, dataclasses.replace(CPU, attention=attention))
    alone = np.concatenate([encoder.run([sequence]) for sequence in BATCH])
    assert encoder.run(BATCH) == pytest.approx(alone, abs=TOLERANCE)
    assert encoder.run(BATCH[::-1])[::-1] == pytest.approx(alone, abs=TOLERANCE)


def test_the_input_is_left_as_it_is(tmp_path: Path) -> None:
    batch = random_sequences([5, 9])
    before = [sequence.ids.tolist() for sequence in batch]
    flat(build_encoder(tmp_path, "xlmr")).run(batch)
    assert [sequence.ids.tolist() for sequence in batch] == before
