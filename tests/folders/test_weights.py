"""Weight files: transformers' score of the same folder, or a refusal that names the tensor."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from bge_rerank_integrations import CheckpointError, UnsupportedModel, load_scorer
from bge_rerank_integrations.local.checkpoint import QUANTIZERS, Checkpoint
from tests.folders.changes import (
    PAIRS,
    TOLERANCE,
    change_config,
    change_weights,
    copy_of,
    library_scores,
    scores,
)
from tests.local.llm import tiny_llms

LAYER = "roberta.encoder.layer.0."


@pytest.fixture
def folder(reranker_base: Path, tmp_path: Path) -> Path:
    return copy_of(reranker_base, tmp_path)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llms.MODELS["gemma"](tmp_path_factory.mktemp("gemma"))


@pytest.fixture
def resaved(folder: Path) -> Path:
    """Saved in shards, changed, and saved again as one file: the old shards and index stay."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    shards = {file: file.read_bytes() for file in folder.glob("model*-of-*")}
    index = (folder / "model.safetensors.index.json").read_bytes()
    assert len(shards) > 2
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    model.save_pretrained(folder)
    for file, content in shards.items():
        file.write_bytes(content)
    (folder / "model.safetensors.index.json").write_bytes(index)
    return folder


@pytest.mark.parametrize("without_shards", [False, True])
def test_a_single_file_counts_before_an_old_index(
    resaved: Path, reranker_base: Path, without_shards: bool
) -> None:
    for shard in resaved.glob("model*-of-*") if without_shards else ():
        shard.unlink()
    assert scores(resaved) == pytest.approx(library_scores(resaved), abs=TOLERANCE)
    assert scores(resaved) != pytest.approx(scores(reranker_base), abs=0.01)


@pytest.mark.parametrize("name", ["../model-1.safetensors", "a/b.safetensors", 7, None])
def test_an_index_names_files_of_its_folder(resaved: Path, name: object) -> None:
    (resaved / "model.safetensors").unlink()
    index = {"weight_map": {"classifier.dense.weight": name}}
    (resaved / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match=re.escape(repr(name))):
        scores(resaved)


def test_a_tensor_of_which_the_index_says_nothing_is_refused(resaved: Path) -> None:
    (resaved / "model.safetensors").unlink()
    file = resaved / "model.safetensors.index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    del index["weight_map"]["classifier.dense.bias"]
    file.write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"says that 'classifier\.dense\.bias' is in None, and it"
    ):
        scores(resaved)


def rename_norms(weights: dict[str, Tensor]) -> None:
    for name in list(weights):
        new = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        weights[new.replace("LayerNorm.bias", "LayerNorm.beta")] = weights.pop(name)


@pytest.mark.parametrize("model", ["reranker_base", "bert_reranker"])
def test_gamma_and_beta_are_a_layer_norm_s_weight_and_bias(
    request: pytest.FixtureRequest, tmp_path: Path, model: str
) -> None:
    original: Path = request.getfixturevalue(model)
    folder = change_weights(copy_of(original, tmp_path), rename_norms)
    assert scores(folder) == scores(original)
    assert scores(folder) == pytest.approx(library_scores(folder), abs=TOLERANCE)


def test_both_names_of_a_layer_norm_are_refused(folder: Path) -> None:
    name = f"{LAYER}output.LayerNorm."
    change_weights(folder, lambda w: w.update({f"{name}gamma": 2 * w[f"{name}weight"]}))
    with pytest.raises(CheckpointError, match=re.escape(f"{name}weight")):
        scores(folder)


DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "empty, as ZeRO-3 saves it": lambda t: torch.zeros(0),
    "a single number": lambda t: t.reshape(-1)[0],
    "one element": lambda t: t.reshape(-1)[:1],
    "a row more": lambda t: torch.cat([t, t[:1]]),
    "a row less": lambda t: t[:-1],
    "a dimension more": lambda t: t[None],
    "a column": lambda t: t[:, :1] if t.ndim == 2 else t[:, None],
    "transposed": lambda t: t.T[:, : t.shape[1] // 2] if t.ndim == 2 else t[None].T,
}
SHAPED = {
    "reranker_base": [
        "roberta.embeddings.word_embeddings.weight",
        "roberta.embeddings.position_embeddings.weight",
        "roberta.embeddings.token_type_embeddings.weight",
        "roberta.embeddings.LayerNorm.bias",
        *(
            f"{LAYER}{part}.{kind}"
            for part in (
                "attention.self.query", "attention.self.key", "attention.self.value",
                "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense",
                "output.dense", "output.LayerNorm",
            )
            for kind in ("weight", "bias")
        ),
        "classifier.dense.weight", "classifier.dense.bias",
        "classifier.out_proj.weight", "classifier.out_proj.bias",
    ],
    "bert_reranker": [
        "bert.pooler.dense.weight", "bert.pooler.dense.bias",
        "classifier.weight", "classifier.bias",
        "bert.embeddings.token_type_embeddings.weight",
    ],
    "gemma": [
        "model.embed_tokens.weight", "model.norm.weight",
        *(
            f"model.layers.1.{part}.weight"
            for part in (
                "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm",
                "post_attention_layernorm",
            )
        ),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "name"), [(model, name) for model, names in SHAPED.items() for name in names]
)
def test_a_tensor_of_another_shape_is_refused_by_name(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, name: str
) -> None:
    original: Path = request.getfixturevalue(model)
    refused = 0
    for damage in DAMAGES.values():
        folder = copy_of(original, tmp_path)
        before: list[torch.Size] = []

        def change(weights: dict[str, Tensor], damage: Any = damage, before: Any = before) -> None:
            whole = weights[name]
            weights[name] = damage(whole)
            before.extend([whole.shape, weights[name].shape])

        change_weights(folder, change)
        if before[0] == before[1]:  # one row is all there is
            continue
        with pytest.raises(CheckpointError, match=re.escape(f"'{name}' in {folder}")) as error:
            scores(folder)
        assert " x ".join(map(str, before[0])) in str(error.value)
        assert ("ZeRO-3" in str(error.value)) == (0 in before[1])
        refused += 1
    assert refused > 4


NOT_READ = [
    "roberta.encoder.layer.1.attention.self.distance_embedding.weight",
    "roberta.encoder.layer.1.attention.self.query.weight_scale",
    "roberta.encoder.layer.1.attention.self.query.lora_A.weight",
    "roberta.encoder.layer.1.attention.self.query.base_layer.weight",
    "roberta.encoder.layer.3.output.dense.weight",
    "roberta.encoder.relative_attention_bias.weight",
    "embeddings.word_embeddings.weight",
    "classifier.weight",
    "base_model.model.x.lora_B.weight",
    "scales.weight_scale_inv",
]


@pytest.mark.parametrize("name", NOT_READ)
def test_a_weight_that_no_one_reads_is_refused_by_name(folder: Path, name: str) -> None:
    change_weights(folder, lambda weights: weights.update({name: torch.ones(4, 4)}))
    with pytest.raises(CheckpointError, match=f"holds {re.escape(repr(name))}"):
        scores(folder)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.q_proj.lora_A.weight",
     "model.layers.9.input_layernorm.weight", "model.layers.0.self_attn.q_norm.weight",
     "lm_head.bias"],
)  # fmt: skip
def test_a_decoder_s_weight_that_no_one_reads_is_refused_by_name(
    gemma: Path, tmp_path: Path, name: str
) -> None:
    folder = change_weights(copy_of(gemma, tmp_path), lambda w: w.update({name: torch.ones(4)}))
    with pytest.raises(CheckpointError, match=f"holds {re.escape(repr(name))}"):
        scores(folder)


@pytest.mark.parametrize(
    "name",
    ["roberta.embeddings.position_ids", "roberta.embeddings.token_type_ids",
     "roberta.pooler.dense.weight", "roberta.pooler.dense.bias", "lm_head.dense.weight",
     "lm_head.decoder.bias", "cls.predictions.bias"],
)  # fmt: skip
def test_buffers_and_other_tasks_heads_change_no_score(
    folder: Path, reranker_base: Path, name: str
) -> None:
    change_weights(folder, lambda weights: weights.update({name: torch.arange(32.0)}))
    assert scores(folder) == scores(reranker_base)
    assert scores(folder) == pytest.approx(library_scores(folder), abs=TOLERANCE)


def to_float8(weights: dict[str, Tensor]) -> None:
    for name, weight in list(weights.items()):
        if weight.ndim == 2 and "layer" in name:
            scale = weight.abs().max() / 448
            weights[name] = (weight / scale).to(torch.float8_e4m3fn)
            weights[f"{name}_scale"] = scale


@pytest.mark.parametrize("model", ["reranker_base", "gemma"])
def test_float8_is_refused_without_a_word_in_config(
    request: pytest.FixtureRequest, tmp_path: Path, model: str
) -> None:
    folder = change_weights(copy_of(request.getfixturevalue(model), tmp_path), to_float8)
    with pytest.raises(UnsupportedModel, match="as F8_E4M3: quantized"):
        scores(folder)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantizer_s_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).write_text('{"quantization": {"quant_algo": "FP8"}}', encoding="utf-8")
    with pytest.raises(UnsupportedModel, match=f"has {name}; quantized weights"):
        scores(folder)


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("value", [{"quant_method": "fp8"}, "fp8", ["fp8"]])
def test_a_quantizer_s_key_is_refused_by_name(folder: Path, key: str, value: object) -> None:
    with pytest.raises(UnsupportedModel, match=rf"{key}=.*fp8.*quantized weights"):
        scores(change_config(folder, **{key: value}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_read_as_transformers_does(folder: Path, dtype: torch.dtype) -> None:
    change_weights(folder, lambda w: w.update({name: w[name].to(dtype) for name in w}))
    assert scores(folder) == pytest.approx(library_scores(folder), abs=TOLERANCE)


def add_adapter(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "base_model_name_or_path": "org/base", **changes}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_file({"a.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("task", "kind"),
    [("SEQ_CLS", "AutoModelForSequenceClassification"), ("CAUSAL_LM", "AutoModelForCausalLM"),
     ("FEATURE_EXTRACTION", "AutoModel")],
)  # fmt: skip
@pytest.mark.parametrize("alone", [False, True])
def test_an_adapter_is_refused_with_the_lines_that_merge_it(
    folder: Path, tmp_path: Path, alone: bool, task: str, kind: str
) -> None:
    adapted = add_adapter(tmp_path / "adapter" if alone else folder, task_type=task)
    with pytest.raises(CheckpointError, match="LoRA") as error:
        scores(adapted)
    assert f"model = {kind}.from_pretrained('org/base')\n" in str(error.value)
    assert f"PeftModel.from_pretrained(model, {str(adapted)!r}).merge_and_unload()" in str(
        error.value
    )


def test_a_merged_model_beside_an_adapter_is_named(reranker_base: Path, tmp_path: Path) -> None:
    merged = copy_of(reranker_base, tmp_path).rename(tmp_path / "merged_model")
    with pytest.raises(CheckpointError, match=f"load {re.escape(str(merged))}"):
        scores(add_adapter(tmp_path))


@pytest.mark.parametrize("content", ["[]", "{", '{"base_model_name_or_path": 7}'])
def test_a_damaged_adapter_config_is_refused(folder: Path, content: str) -> None:
    (folder / "adapter_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="adapter_config"):
        scores(folder)


@pytest.mark.parametrize(
    "name",
    ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "modules.json",
     "sentence_bert_config.json", "config_sentence_transformers.json", "chat_template.jinja",
     "2_Dense/config.json", "2_Dense/model.safetensors"],
)  # fmt: skip
def test_every_file_that_decides_a_score_is_in_the_fingerprint(folder: Path, name: str) -> None:
    loaded = Checkpoint("model", folder)
    original = loaded.fingerprint()
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes((file.read_bytes() if file.is_file() else b"{}") + b"\n")
    assert Checkpoint("model", folder).fingerprint() != original
    with pytest.raises(CheckpointError, match="has changed since it was loaded"):
        loaded.check_unchanged()


@pytest.mark.parametrize(
    ("renamed", "reason"),
    [
        (
            "model-00001-of-00001.safetensors",
            r"no model\.safetensors\.index\.json, only model-00001",
        ),
        ("model.fp16.safetensors", r"only model\.fp16\.safetensors; fetch the missing one"),
        ("tf_model.h5", r"only tf_model\.h5; fetch the missing one, or save the model again"),
        ("optimizer.pt", "only other files"),
        ("pytorch_model.bin", r"only as pickle \(pytorch_model\.bin\)"),
    ],
)
def test_weights_of_another_name_are_listed(folder: Path, renamed: str, reason: str) -> None:
    for name in ("optimizer.pt", "rng_state_0.pth", "training_args.bin"):  # of a trainer
        (folder / name).write_bytes(b"")
    (folder / "model.safetensors").rename(folder / renamed)
    with pytest.raises(CheckpointError, match=reason):
        scores(folder)


def test_a_trainer_s_folder_names_its_checkpoints(folder: Path) -> None:
    copy_of(folder, folder / "checkpoint-500").rename(folder / "checkpoint-9")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="folders in it have a model: checkpoint-9"):
        scores(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1112205008\n"
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer of Git LFS .* git lfs pull"):
        scores(folder)


def test_settings_of_a_windows_editor_are_read(folder: Path) -> None:
    expected = scores(folder)
    for name in ("config.json", "tokenizer_config.json"):
        content = (folder / name).read_bytes().replace(b"\n", b"\r\n")
        (folder / name).write_bytes(b"\xef\xbb\xbf" + content)
    assert scores(folder) == expected


def test_code_of_its_own_is_named_where_weights_are_missing(folder: Path) -> None:
    code = {"AutoModelForSequenceClassification": "modeling_x.XForSequenceClassification"}
    change_config(folder, auto_map=code)
    change_weights(folder, lambda weights: weights.pop(f"{LAYER}attention.self.query.weight"))
    with pytest.raises(CheckpointError, match=r"attention\.self\.query\.weight'; its auto_map"):
        scores(folder)


def test_a_hub_id_that_has_no_safetensors_hears_of_pickles(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    snapshot = cache / "models--org--pickled" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (folder / "model.safetensors").unlink()
    folder.rename(snapshot)
    refs = cache / "models--org--pickled" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"org/pickled has no model\.safetensors .* pickle"):
        load_scorer("org/pickled", cache_dir=str(cache), local_files_only=True).score(PAIRS)
