"""Options a model does not have, folders that are damaged, and code that is never run."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import bge_rerank_integrations
from bge_rerank_integrations import (
    CheckpointError,
    InvalidInputError,
    UnsupportedModel,
    load_scorer,
)
from tests.contract.pairs import PAIRS
from tests.local.llm import tiny_llms
from tests.local.llm.tiny_llms import Weights, rewrite_config, rewrite_weights

COMPRESS = {"compress_ratio": 2, "compress_layers": [4]}

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("minicpm", {"cutoff_layers": [9]}, r"\[9\].* layers 2 to 8"),
    ("minicpm", {"cutoff_layers": [1]}, r"\[1\].* layers 2 to 8"),
    ("minicpm", {"cutoff_layers": [0]}, r"\[0\].* layers 2 to 8"),
    ("minicpm", {"cutoff_layers": [-1]}, r"\[-1\].* layers 2 to 8"),
    ("minicpm", {"cutoff_layers": []}, r"\[\].* layers 2 to 8"),
    ("minicpm", {"cutoff_layers": [4, 99]}, r"\[4, 99\].* layers 2 to 8"),
    ("minicpm", {"cutoff_layers": [5.0]}, r"cutoff_layers .*5\.0"),
    ("minicpm", {"cutoff_layers": ["5"]}, r"cutoff_layers .*'5'"),
    ("minicpm", COMPRESS, "compress_ratio .* lightweight .* layerwise"),
    ("minicpm", {"compress_layers": [4]}, "compress_layers .* lightweight .* layerwise"),
    ("gemma", {"cutoff_layers": [3]}, "cutoff_layers .* layerwise and lightweight .* causal"),
    ("gemma", COMPRESS, "compress_ratio .* lightweight .* causal"),
    ("gemma2", {"cutoff_layers": [1]}, r"\[1\].* layers 2 to 8"),
    ("gemma2-steps", {"cutoff_layers": [3]}, r"\[3\].* layers 2 to 8 in steps of 2"),
    ("gemma2", {**COMPRESS, "compress_ratio": 0}, "compress_ratio is 0; .* from 1"),
    ("gemma2", {**COMPRESS, "compress_ratio": -2}, "compress_ratio is -2; .* from 1"),
    ("gemma2", {**COMPRESS, "compress_ratio": 2.0}, r"compress_ratio is 2\.0; .* from 1"),
    ("gemma2", {**COMPRESS, "compress_layers": [0]}, "compress_layers is .0., .* allowed: 1 to 7"),
    ("gemma2", {**COMPRESS, "compress_layers": [8]}, "compress_layers is .8., .* allowed: 1 to 7"),
    ("gemma2", {**COMPRESS, "compress_layers": ["4"]}, "compress_layers .*'4'"),
    ("gemma2", {"compress_ratio": 2}, "compress_layers"),
    ("gemma2", {"head_indexing": "layers"}, "head_indexing is 'layers'; .*'request' or 'layer'"),
    ("gemma", {"max_length": 15}, "max_length is 15; .* takes 16 to"),
    ("gemma", {"max_length": 100, "query_max_length": 100}, "query_max_length is 100; .* 1 to "),
    (
        "gemma",
        {"max_length": 100, "query_max_length": 0},
        "query_max_length is 0; .* from 1",
    ),
    ("gemma", {"prompt": 7}, "prompt"),
]


@pytest.mark.parametrize(("model", "options", "said"), WRONG, ids=str)
def test_a_wrong_option_is_refused_with_what_is_allowed(
    llm: Callable[[str], Path], model: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"(?s){said}"):
        load_scorer(str(llm(model)), device="cpu", **options)


def test_a_prompt_that_leaves_no_room_is_refused_with_its_length(
    llm: Callable[[str], Path],
) -> None:
    with pytest.raises(InvalidInputError, match=r"the prompt has \d{4,} tokens, .* shorten it"):
        load_scorer(str(llm("gemma")), device="cpu", prompt="bear " * 20_000)


@pytest.mark.parametrize(
    "options",
    [
        {"cutoff_layers": [2]},
        {"prompt": "Is it so?"},
        {"head_indexing": "layer"},
        COMPRESS,
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["reranker_base", "bge_embedder"])
def test_an_encoder_has_none_of_these_options(
    request: pytest.FixtureRequest, model: str, options: dict[str, Any]
) -> None:
    folder: Path = request.getfixturevalue(model)
    with pytest.raises(InvalidInputError, match=f"{next(iter(options))}.* LLM rerankers"):
        load_scorer(str(folder), device="cpu", **options)


UNSUPPORTED: list[tuple[str, dict[str, Any], str]] = [
    ("minicpm", {"head_type": "raw"}, "head_type='raw'"),
    ("minicpm", {"head_type": "complex"}, "head_type='complex'"),
    ("minicpm", {"head_multi": False}, "head_multi=False"),
    ("minicpm", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ("minicpm", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling"),
    ("minicpm", {"attention_bias": True}, "attention_bias"),
    ("gemma", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("gemma", {"attention_bias": True}, "attention_bias"),
    ("gemma", {"hidden_activation": "relu"}, "hidden_activation='relu'"),
    ("gemma2", {"hidden_activation": "relu"}, "hidden_activation='relu'"),
    ("gemma2", {"layer_wise": False}, "layer_wise"),
    ("gemma", {"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ("gemma", {"architectures": ["Qwen3ForCausalLM"]}, "Qwen3ForCausalLM"),
    ("gemma", {"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
    ("gemma2", {"architectures": ["Gemma2ForCausalLM"]}, "Gemma2ForCausalLM"),
]


@pytest.mark.parametrize(("model", "changes", "said"), UNSUPPORTED, ids=str)
def test_a_variant_that_is_not_scored_is_refused(
    tmp_path: Path, model: str, changes: dict[str, Any], said: str
) -> None:
    folder = rewrite_config(tiny_llms.MODELS[model](tmp_path), **changes)
    with pytest.raises(UnsupportedModel, match=said):
        load_scorer(str(folder), device="cpu")


COMMON = [
    "bos_token_id", "hidden_size", "max_position_embeddings", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size",
]  # fmt: skip
NEEDED = {
    "gemma": [*COMMON, "head_dim"],
    "minicpm": [*COMMON, "start_layer", "scale_emb", "scale_depth"],
    "gemma2": [
        *COMMON, "head_dim", "start_layer", "layer_sep", "query_pre_attn_scalar",
        "sliding_window", "final_logit_softcapping",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "key"), [(model, key) for model, keys in NEEDED.items() for key in keys]
)
def test_a_config_that_lacks_a_number_is_refused(tmp_path: Path, model: str, key: str) -> None:
    # no number is made up: what one release of a library takes by default, another does not
    folder = rewrite_config(tiny_llms.MODELS[model](tmp_path), without=key)
    with pytest.raises(CheckpointError, match=key):
        load_scorer(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("gemma", {"head_dim": "12"}),
        ("gemma", {"num_hidden_layers": 0}),
        ("gemma", {"num_hidden_layers": None}),
        ("gemma", {"num_attention_heads": 3}),
        ("gemma", {"num_key_value_heads": 3}),
        ("gemma", {"hidden_size": 48}),
        ("gemma", {"head_dim": 16}),
        ("gemma", {"bos_token_id": None}),
        ("gemma", {"num_hidden_layers": 3}),
        ("minicpm", {"num_attention_heads": 5}),
        ("minicpm", {"start_layer": 9}),
        ("gemma2", {"layer_sep": 0}),
        ("gemma2", {"query_pre_attn_scalar": 0}),
    ],
    ids=str,
)
def test_a_config_whose_numbers_do_not_fit_is_refused(
    tmp_path: Path, model: str, changes: dict[str, Any]
) -> None:
    folder = rewrite_config(tiny_llms.MODELS[model](tmp_path), **changes)
    # the number, or the tensor that it does not fit
    with pytest.raises(CheckpointError, match=rf"{next(iter(changes))}|model\.(layers|embed)"):
        load_scorer(str(folder), device="cpu")


def test_a_head_of_its_own_that_is_missing_is_not_made_up(tmp_path: Path) -> None:
    folder = tiny_llms.MODELS["gemma-untied"](tmp_path)
    rewrite_weights(
        folder, lambda weights: {k: w for k, w in weights.items() if "lm_head" not in k}
    )
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load_scorer(str(folder), device="cpu")


def test_an_embedding_with_fewer_rows_than_tokens_is_refused(tmp_path: Path) -> None:
    def shorten(weights: Weights) -> Weights:
        table = weights["model.embed_tokens.weight"][:300].copy()
        return {**weights, "model.embed_tokens.weight": table}

    folder = rewrite_weights(tiny_llms.MODELS["gemma2"](tmp_path), shorten)
    with pytest.raises(CheckpointError, match="300"):
        load_scorer(str(folder), device="cpu")


def test_a_lora_adapter_is_to_be_merged_first(tmp_path: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "BAAI/bge-reranker-v2-gemma"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    low_rank = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((2, 2))}
    save_file(low_rank, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"LoRA.*BAAI/bge-reranker-v2-gemma.*merge"):
        load_scorer(str(tmp_path), device="cpu")


def test_the_family_is_the_config_s_and_not_the_name_s(
    llm: Callable[[str], Path], tmp_path: Path
) -> None:
    misleading = tmp_path / "bge-reranker-v2-minicpm-layerwise"
    shutil.copytree(llm("gemma"), misleading)
    expected = load_scorer(str(llm("gemma")), device="cpu").score(PAIRS)
    assert load_scorer(str(misleading), device="cpu").score(PAIRS).tolist() == expected.tolist()


@pytest.mark.parametrize("model", ["minicpm", "gemma2"])
def test_code_in_a_model_folder_is_never_run(
    llm: Callable[[str], Path], tmp_path: Path, model: str
) -> None:
    folder, canary = tmp_path / "model", tmp_path / "canary"
    shutil.copytree(llm(model), folder)
    code = f"open({str(canary)!r}, 'w').close()\nclass Model: pass\nclass Config: pass\n"
    for name in ("modeling_canary", "tokenization_canary", "__init__", "setup"):
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    auto_map = {
        "AutoConfig": "modeling_canary.Config",
        "AutoModel": "modeling_canary.Model",
        "AutoModelForCausalLM": "modeling_canary.Model",
    }
    rewrite_config(folder, auto_map=auto_map)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["auto_map"] = {"AutoTokenizer": [None, "tokenization_canary.Model"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    expected = load_scorer(str(llm(model)), device="cpu").score(PAIRS)
    assert load_scorer(str(folder), device="cpu").score(PAIRS).tolist() == expected.tolist()
    assert not canary.exists()
    exec(code, {})  # the trap works
    assert canary.exists()


def test_remote_code_is_trusted_nowhere() -> None:
    package = Path(bge_rerank_integrations.__file__).parent
    # the drop-in classes take their originals' argument; tests/drop_in sees that it does nothing
    sources = [file for file in package.rglob("*.py") if "drop_in" not in file.parts]
    assert len(sources) > 30
    trusting = re.compile(r"trust_remote_code\W*(=|:)\s*(?!False\b)\S")
    assert trusting.search("load(trust_remote_code=True)")
    assert trusting.search("options['trust_remote_code'] = trusted")
    assert trusting.search('{"trust_remote_code": True}')
    assert [str(file) for file in sources if trusting.search(file.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"Regex": "Y.*"}, "content": ""},
            {"type": "Prepend", "prepend": "▁"},
        ]}}, "no token for 'Yes'"),
        ({"post_processor": {
            "type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}},
         "does not put 1 texts"),
    ],
    ids=["no Yes", "no text"],
)  # fmt: skip
def test_a_tokenizer_that_loses_a_text_is_refused(
    tmp_path: Path, part: dict[str, Any], said: str
) -> None:
    folder = tiny_llms.MODELS["minicpm"](tmp_path)
    file = folder / "tokenizer.json"
    content = {**json.loads(file.read_text(encoding="utf-8")), **part}
    file.write_text(json.dumps(content), encoding="utf-8")
    settings = folder / "tokenizer_config.json"  # a class whose normalizer is not checked
    settings.write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=said):
        load_scorer(str(folder))
