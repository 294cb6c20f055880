"""config.json: every value is obeyed as transformers obeys it, or refused with key and value."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bge_rerank_integrations import CheckpointError, RerankError, UnsupportedModel
from bge_rerank_integrations.types import Pair
from tests.folders.changes import (
    PAIRS,
    TOLERANCE,
    change_config,
    copy_of,
    library_scores,
    scores,
)
from tests.local.llm import tiny_llms
from tests.local.llm.oracle import REFERENCE, _Model

LLMS = ("gemma", "minicpm", "gemma2")


@pytest.fixture(scope="module")
def folder_of(
    tmp_path_factory: pytest.TempPathFactory, reranker_base: Path, bert_reranker: Path
) -> Callable[[str], Path]:
    built = {"xlmr": reranker_base, "bert": bert_reranker}

    def find(model: str) -> Path:
        if model not in built:
            built[model] = tiny_llms.MODELS[model](tmp_path_factory.mktemp(model))
        return built[model]

    return find


HOSTILE: list[Any] = [
    "x", "", -1, 0, 2.5, 10**30, 2**31, float("nan"), float("inf"), [], [[]], {}, {"x": [1]}, None,
]  # fmt: skip
ANY_KEYS = [
    "architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size",
    "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "hidden_act",
    "quantization_config", "per_layer_config",
]  # fmt: skip
KEYS = {
    "xlmr": [
        *ANY_KEYS, "pad_token_id", "bos_token_id", "eos_token_id", "layer_norm_eps",
        "type_vocab_size", "is_decoder", "add_cross_attention", "position_embedding_type",
        "id2label", "num_labels", "pruned_heads", "problem_type", "is_encoder_decoder",
    ],
    "gemma": [
        *ANY_KEYS, "bos_token_id", "head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta",
        "rope_scaling", "rope_parameters", "tie_word_embeddings", "attention_bias",
        "use_bidirectional_attention", "hidden_activation",
    ],
    "minicpm": ["start_layer", "scale_emb", "scale_depth", "head_type", "head_multi"],
    "gemma2": [
        "query_pre_attn_scalar", "sliding_window", "layer_types", "final_logit_softcapping",
        "layer_sep", "layer_wise", "start_layer",
    ],
}  # fmt: skip


# Numbers that may be any above 0, and those that may be null too.
FREE = {
    "layer_norm_eps", "rms_norm_eps", "rope_theta", "scale_emb", "scale_depth",
    "query_pre_attn_scalar", "final_logit_softcapping", "sliding_window",
}  # fmt: skip
OR_NULL = {"final_logit_softcapping", "sliding_window"}
UNREAD = {"bos_token_id", "eos_token_id", "num_labels", "problem_type"}
"""Those that change no score of an encoder, whatever they are."""


@pytest.mark.parametrize(("model", "key"), [(m, key) for m, keys in KEYS.items() for key in keys])
def test_a_hostile_value_is_refused_by_name_or_changes_nothing(
    folder_of: Callable[[str], Path], tmp_path: Path, model: str, key: str
) -> None:
    expected = scores(folder_of(model), PAIRS[:1])
    refusals: list[RerankError] = []
    for value in HOSTILE:
        if (key in FREE and isinstance(value, float) and 0 < value < 9) or (
            key in OR_NULL and value is None
        ):
            continue
        folder = change_config(copy_of(folder_of(model), tmp_path), **{key: value})
        try:
            found = scores(folder, PAIRS[:1])
        except RerankError as error:
            refusals.append(error)
        else:
            # a padding id of 0 is legal, and moves XLM-R's positions
            legal = (key, value) == ("pad_token_id", 0)
            right = library_scores(folder, PAIRS[:1]) if legal else expected
            assert found == pytest.approx(right, abs=TOLERANCE), value
    assert all(isinstance(error, CheckpointError | UnsupportedModel) for error in refusals)
    assert all(len(str(error)) < 1000 for error in refusals)
    assert refusals or (model == "xlmr" and key in UNREAD)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, '{"hidden_size": ' + "9" * 5000 + "}", '"\ud83d"', "7"],
)
def test_json_that_python_cannot_read_is_refused(
    reranker_base: Path, tmp_path: Path, text: str
) -> None:
    folder = copy_of(reranker_base, tmp_path)
    (folder / "config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        scores(folder)


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("xlmr", {"model_type": "bert"}, "model_type='bert'; for XLM.*'xlm-roberta'"),
        ("bert", {"model_type": "roberta"}, "model_type='roberta'; for Bert.*'bert'"),
        ("xlmr", {"pad_token_id": -1}, "pad_token_id=-1"),
        ("xlmr", {"pad_token_id": 100_000}, "pad_token_id=100000.* no position"),
        ("bert", {"pad_token_id": 100_000}, "pad_token_id=100000; .* below vocab_size="),
        ("xlmr", {"max_position_embeddings": 2}, "max_position_embeddings=2; .* no position"),
        ("xlmr", {"num_hidden_layers": 10**6}, "num_hidden_layers=1000000.* from 1 to 1000"),
        ("xlmr", {"type_vocab_size": 2}, "token_type_embeddings"),
        ("gemma", {"bos_token_id": 10**6}, "bos_token_id=1000000, and its tokenizer puts"),
        ("gemma", {"num_key_value_heads": 3}, "num_key_value_heads=3"),
        (
            "gemma",
            {"tie_word_embeddings": "no"},
            "tie_word_embeddings='no'; it must be true or false",
        ),
        ("gemma", {"rope_scaling": [2]}, r"rope_scaling=\[2\]"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    folder_of: Callable[[str], Path],
    tmp_path: Path,
    model: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(CheckpointError, match=said):
        scores(change_config(copy_of(folder_of(model), tmp_path), **changes))


NO_SCORE: dict[str, Any] = {
    "hidden_dropout_prob": 0.9, "attention_probs_dropout_prob": 0.9, "classifier_dropout": 0.9,
    "initializer_range": 7.0, "use_cache": False, "torch_dtype": "float16", "output_past": False,
    "transformers_version": "9.9.9", "_name_or_path": "elsewhere", "gradient_checkpointing": False,
    "eos_token_id": [1, 2], "bos_token_id": 7, "label2id": {"yes": 0}, "id2label": {"0": "yes"},
    "problem_type": "regression", "finetuning_task": "x", "unknown_to_transformers": [1],
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize("key", NO_SCORE)
@pytest.mark.parametrize("model", ["xlmr", "bert"])
def test_a_key_that_changes_no_score(
    folder_of: Callable[[str], Path], tmp_path: Path, model: str, key: str
) -> None:
    folder = change_config(copy_of(folder_of(model), tmp_path), **{key: NO_SCORE[key]})
    assert scores(folder) == scores(folder_of(model))
    assert scores(folder) == pytest.approx(library_scores(folder), abs=TOLERANCE)


OBEYED: dict[str, list[Any]] = {
    "hidden_act": ["gelu_new", "relu", "silu", "quick_gelu"],
    "layer_norm_eps": [0.1],
    "num_attention_heads": [2, 8],
    "is_decoder": [True],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in OBEYED.items() for v in vs])
@pytest.mark.parametrize("model", ["xlmr", "bert"])
def test_a_key_that_changes_the_score_does_so_as_in_transformers(
    folder_of: Callable[[str], Path], tmp_path: Path, model: str, key: str, value: Any
) -> None:
    folder = change_config(copy_of(folder_of(model), tmp_path), **{key: value})
    assert scores(folder) == pytest.approx(library_scores(folder), abs=TOLERANCE)
    assert scores(folder) != pytest.approx(scores(folder_of(model)), abs=1e-4)


def yes_logits(folder: Path, pairs: list[Pair] = PAIRS) -> list[float]:
    """Transformers' logit of "Yes" for the reference's prompt, one pair at a time."""
    prompts = _Model(folder, REFERENCE)
    yes = prompts.tokenizer.encode("Yes", add_special_tokens=False).ids[0]
    load: Any = AutoModelForCausalLM.from_pretrained
    model = load(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [
            float(model(torch.tensor([prompts.ids(q, p, {})[0]])).logits[0, -1, yes])
            for q, p in pairs
        ]


@pytest.mark.parametrize("theta", [10000.0, 1e6, 500])
def test_the_rotary_base_is_read_where_either_transformers_writes_it(
    folder_of: Callable[[str], Path], tmp_path: Path, theta: float
) -> None:
    folder = copy_of(folder_of("gemma"), tmp_path)
    file = folder / "config.json"
    config = {**json.loads(file.read_text(encoding="utf-8")), "hidden_act": "gelu_pytorch_tanh"}
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        config.pop(key, None)
    written: list[dict[str, Any]] = [
        {"rope_theta": theta},
        {"rope_theta": theta, "rope_scaling": {"rope_type": "default"}},
        {"rope_theta": theta, "rope_parameters": {"rope_theta": theta}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": theta}},
        {"rope_parameters": {"type": "default", "rope_theta": theta}},
    ]
    found: list[list[float]] = []
    for keys in written:
        file.write_text(json.dumps({**config, **keys}), encoding="utf-8")
        if not found:  # both generations of transformers read the first
            expected = yes_logits(folder)
        found.append(scores(folder))
    assert found[0] == pytest.approx(expected, abs=TOLERANCE)
    assert all(one == found[0] for one in found)
    if theta != 10000.0:
        assert found[0] != pytest.approx(scores(folder_of("gemma")), abs=1e-3)


@pytest.mark.parametrize("theta", [1e-45, 0.5])
@pytest.mark.parametrize("model", LLMS)
def test_a_rotary_base_whose_angles_overflow_is_refused(
    folder_of: Callable[[str], Path], tmp_path: Path, model: str, theta: float
) -> None:
    with pytest.raises(CheckpointError, match=f"rope_theta={theta}; it must be at least 1"):
        scores(change_config(copy_of(folder_of(model), tmp_path), rope_theta=theta))


REFUSED: list[tuple[str, dict[str, Any]]] = [
    *((model, {"rope_scaling": {"type": "linear", "factor": 2.0}}) for model in LLMS),
    *((model, {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}) for model in LLMS),
    *((model, {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}) for model in LLMS),
    *((model, {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}) for model in LLMS),
    *((model, {"use_bidirectional_attention": True}) for model in LLMS),
    *((model, {"attention_bias": True}) for model in LLMS),
    *((model, {"partial_rotary_factor": 0.5}) for model in LLMS),
    *((model, {"per_layer_config": {"0": {"rms_norm_eps": 1.0}}}) for model in LLMS),
    ("gemma", {"hidden_act": "relu"}),
    ("gemma", {"hidden_activation": "gelu"}),
    ("gemma", {"model_type": "gemma2"}),
    ("gemma", {"layer_types": ["full_attention"] * 4}),
    ("gemma2", {"layer_types": ["full_attention"] * 8}),
    ("minicpm", {"hidden_act": "gelu"}),
]


@pytest.mark.parametrize(("model", "changes"), REFUSED, ids=str)
def test_what_the_decoder_does_not_run_is_refused_with_key_and_value(
    folder_of: Callable[[str], Path], tmp_path: Path, model: str, changes: dict[str, Any]
) -> None:
    folder = change_config(copy_of(folder_of(model), tmp_path), **changes)
    with pytest.raises(UnsupportedModel) as error:
        scores(folder)
    assert next(iter(changes)) in str(error.value)


def test_layer_types_in_turn_are_those_of_gemma_2(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy_of(folder_of("gemma2"), tmp_path)
    change_config(folder, layer_types=["sliding_attention", "full_attention"] * 4)
    assert scores(folder) == scores(folder_of("gemma2"))
