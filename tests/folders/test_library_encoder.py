"""transformers' own forward: batches only where a neighbour's padding moves no score."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from bge_rerank_integrations import (
    CheckpointError,
    InvalidInputError,
    UnsupportedModel,
    load_scorer,
)
from bge_rerank_integrations.types import Pair
from tests.folders.changes import (
    PAIRS,
    TOLERANCE,
    change_config,
    change_weights,
    copy_of,
    library_scores,
    scores,
)

SIZES: dict[str, Any] = {
    "vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 128, "num_labels": 1, "pad_token_id": 0,
    "num_key_value_heads": 4, "head_dim": 8, "embedding_size": 32,
}  # fmt: skip
ONLY_ALONE = ("mobilebert", "convbert", "fnet", "canine")
DECODERS = ("llama", "gemma2", "gpt_neox")
MORE: dict[str, dict[str, Any]] = {
    "mobilebert": {"intra_bottleneck_size": 32, "trigram_input": True},
    "canine": {"local_attention_window": 8, "num_hash_buckets": 64},
}


@pytest.fixture(scope="module")
def folder_of(
    tmp_path_factory: pytest.TempPathFactory, bert_reranker: Path
) -> Callable[[str], Path]:
    """A classifier of an architecture, with BERT's tokenizer."""
    built: dict[str, Path] = {}

    def find(kind: str) -> Path:
        if kind in built:
            return built[kind]
        folder = tmp_path_factory.mktemp(kind)
        config = AutoConfig.for_model(kind, **{**SIZES, **MORE.get(kind, {})})
        torch.manual_seed(0)
        make: Any = AutoModelForSequenceClassification
        model = make.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=0.3)
        model.save_pretrained(folder)
        change_config(folder, vocab_size=600, max_position_embeddings=128)
        shutil.copy(bert_reranker / "tokenizer.json", folder)
        inputs = ["input_ids", "attention_mask"]
        if "type_vocab_size" in config.to_dict():
            inputs.append("token_type_ids")
        settings = {"tokenizer_class": "BertTokenizer", "model_input_names": inputs}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        built[kind] = folder
        return folder

    return find


@pytest.mark.parametrize("kind", [*ONLY_ALONE, "distilbert", "albert", "electra"])
def test_a_score_never_moves_with_its_neighbours(
    folder_of: Callable[[str], Path], kind: str
) -> None:
    folder = folder_of(kind)
    scorer = load_scorer(str(folder), device="cpu", precision="fp32")
    together = scorer.score(PAIRS).tolist()
    alone = [float(scorer.score([pair])[0]) for pair in PAIRS]
    assert together == pytest.approx(alone, abs=TOLERANCE)
    assert together == pytest.approx(library_scores(folder), abs=TOLERANCE)
    assert ("one at a time: in a padded batch" in str(scorer.plan)) == (kind in ONLY_ALONE)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["mobilebert", "electra"])
def test_a_half_precision_is_no_excuse_for_neighbours(
    folder_of: Callable[[str], Path], kind: str, precision: Any
) -> None:
    scorer = load_scorer(str(folder_of(kind)), device="cpu", precision=precision)
    assert ("one at a time: in a padded batch" in str(scorer.plan)) == (kind == "mobilebert")


@pytest.mark.parametrize("pad", [None, -1])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_without_padding_id_scores_one_at_a_time(
    folder_of: Callable[[str], Path], tmp_path: Path, kind: str, pad: int | None
) -> None:
    folder = change_config(copy_of(folder_of(kind), tmp_path), pad_token_id=pad)
    scorer = load_scorer(str(folder), device="cpu", precision="fp32")
    assert "one at a time: config.json has no pad_token_id" in str(scorer.plan)
    assert scorer.score(PAIRS).tolist() == pytest.approx(library_scores(folder), abs=TOLERANCE)


def test_a_decoder_with_padding_id_scores_as_one_at_a_time(
    folder_of: Callable[[str], Path],
) -> None:
    folder = folder_of("llama")
    assert scores(folder) == pytest.approx(library_scores(folder), abs=TOLERANCE)


def test_rotary_embeddings_that_follow_the_longest_text_run_one_at_a_time(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    pairs: list[Pair] = [*PAIRS, ("a wall " * 10, "the wall of the tube " * 8)]
    size = 4
    scaling = {
        "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 60,
        "short_factor": [1.0] * size, "long_factor": [3.0] * size,
    }  # fmt: skip
    folder = change_config(copy_of(folder_of("llama"), tmp_path), rope_scaling=scaling)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "rope_parameters" in config:  # transformers 5 reads no other key then
        change_config(folder, rope_parameters={**scaling, "rope_theta": 10000.0})
    expected = library_scores(folder, pairs)
    assert scores(folder, pairs) == pytest.approx(expected, abs=TOLERANCE)
    assert scores(folder, pairs[::-1])[::-1] == pytest.approx(expected, abs=TOLERANCE)


@pytest.fixture
def bare_decoder(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A classifier whose tokenizer puts no control token, as Qwen's."""
    folder = copy_of(folder_of("llama"), tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(
        json.dumps({**content, "post_processor": None}), encoding="utf-8"
    )
    settings: dict[str, Any] = {"pad_token": "[PAD]"}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_a_decoder_reads_texts_without_control_tokens(bare_decoder: Path) -> None:
    assert scores(bare_decoder) == pytest.approx(library_scores(bare_decoder), abs=TOLERANCE)


def test_a_pair_without_any_token_is_refused_by_its_position(bare_decoder: Path) -> None:
    with pytest.raises(InvalidInputError, match="position 1 has no text") as refused:
        scores(bare_decoder, [PAIRS[0], ("", "")])
    assert refused.value.index == 1
    assert len(scores(bare_decoder, [PAIRS[0], ("", "hi")])) == 2


def test_big_bird_s_sparse_attention_is_refused(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match="attention_type='block_sparse'"):
        scores(folder_of("big_bird"))
    folder = change_config(copy_of(folder_of("big_bird"), tmp_path), attention_type="original_full")
    assert scores(folder) == pytest.approx(library_scores(folder), abs=TOLERANCE)


@pytest.mark.parametrize(
    "name",
    ["electra.encoder.layer.0.attention.self.query.lora_A.weight",
     "electra.encoder.layer.0.attention.self.query.weight_scale",
     "electra.encoder.layer.0.attention.self.distance_embedding.weight",
     "classifier.adapter.weight"],
)  # fmt: skip
def test_a_weight_that_no_one_reads_is_refused_by_name(
    folder_of: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    folder = copy_of(folder_of("electra"), tmp_path)
    change_weights(folder, lambda weights: weights.update({name: torch.ones(2, 2)}))
    with pytest.raises(CheckpointError, match=name):
        scores(folder)


def test_another_task_s_head_changes_no_score(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy_of(folder_of("electra"), tmp_path)
    name = "discriminator_predictions.dense.weight"
    change_weights(folder, lambda weights: weights.update({name: torch.ones(2, 2)}))
    assert scores(folder) == scores(folder_of("electra"))


def test_a_tensor_of_another_shape_is_refused_by_name(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    original = folder_of("distilbert")
    for name, whole in load_file(original / "model.safetensors").items():
        for other in (torch.zeros(0), whole.reshape(-1)[:1], torch.cat([whole, whole])):
            if other.shape == whole.shape:
                continue
            folder = copy_of(original, tmp_path)
            weights = {**load_file(original / "model.safetensors"), name: other.contiguous()}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            with pytest.raises(CheckpointError, match=name.rpartition(".")[0]):
                scores(folder)


@pytest.mark.parametrize("kind", ["electra", "llama"])
def test_float8_is_refused_without_a_word_in_config(
    folder_of: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    def to_float8(weights: dict[str, torch.Tensor]) -> None:
        name = next(name for name in weights if "layer" in name and weights[name].ndim == 2)
        weights[name] = weights[name].to(torch.float8_e4m3fn)

    folder = change_weights(copy_of(folder_of(kind), tmp_path), to_float8)
    with pytest.raises(UnsupportedModel, match="as F8_E4M3: quantized"):
        scores(folder)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_act": 7}, {"hidden_act": "no such"}, {"num_hidden_layers": 10**9},
     {"num_hidden_layers": "2"}, {"layer_norm_eps": "small"}, {"num_attention_heads": 5},
     {"id2label": ["x"]}, {"num_labels": "one", "id2label": None}],
    ids=str,
)  # fmt: skip
def test_a_hostile_value_gives_a_typed_error(
    folder_of: Callable[[str], Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises((CheckpointError, UnsupportedModel)):
        scores(change_config(copy_of(folder_of("electra"), tmp_path), **changes))


@pytest.mark.parametrize(
    ("kind", "key"),
    [("electra", "num_labels"), ("distilbert", "n_layers"), ("albert", "num_hidden_groups"),
     ("albert", "inner_group_num")],
)  # fmt: skip
def test_a_number_that_would_be_counted_up_to_for_hours_is_refused(
    folder_of: Callable[[str], Path], tmp_path: Path, kind: str, key: str
) -> None:
    with pytest.raises(CheckpointError, match=f"{key}={10**30}.* from 0 to 1000"):
        scores(change_config(copy_of(folder_of(kind), tmp_path), **{key: 10**30}))


def test_a_size_that_no_tensor_has_is_refused_before_memory_is_taken(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy_of(folder_of("distilbert"), tmp_path)
    with pytest.raises(CheckpointError, match=f"hidden_dim={2**31}.*no tensor of the folder"):
        scores(change_config(folder, hidden_dim=2**31))


def test_null_token_types_are_none(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    right = scores(folder_of("distilbert"))
    folder = change_config(copy_of(folder_of("distilbert"), tmp_path), type_vocab_size=None)
    assert scores(folder) == right


@pytest.mark.slow
def test_a_python_without_docstrings_is_named(folder_of: Callable[[str], Path]) -> None:
    program = (
        "import sys; from bge_rerank_integrations import load_scorer; load_scorer(sys.argv[1])"
    )
    ended = subprocess.run(
        [sys.executable, "-OO", "-c", program, str(folder_of("distilbert"))],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:  # one release of transformers reads docstrings, another does not
        assert "; start Python without -OO" in ended.stderr
