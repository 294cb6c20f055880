"""A tiny classifier of any architecture that transformers knows, in a folder of its own."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

LEFT_OUT = {
    "mega", "qdqbert", "transfo-xl",
    "cohere_compass_text", "gemma3", "layoutlmv2", "layoutlmv3", "modernvbert", "mra",
    "perceiver", "qwen3_5", "t5gemma", "t5gemma2", "tapas", "ultravbert", "zamba", "zamba2",
}  # fmt: skip
"""Not built small from sizes alone; or their input is not ids; or a GPU's own kernel (mra)."""

KINDS = sorted(set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES) - LEFT_OUT)

_SMALL = {
    32: "hidden_size d_model n_embd dim emb_dim embedding_size word_embed_proj_dim",
    48: "intermediate_size hidden_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim ffn_dim d_inner "
    "dff moe_intermediate_size shared_expert_intermediate_size",
    130: "max_position_embeddings n_positions max_seq_len",
    8: "head_dim d_kv",
    4: "num_attention_heads n_heads num_heads n_head encoder_attention_heads num_key_value_heads "
    "decoder_attention_heads",
    2: "num_hidden_layers n_layers num_layers n_layer encoder_layers decoder_layers "
    "num_decoder_layers num_experts num_local_experts n_routed_experts type_vocab_size",
    1: "num_experts_per_tok",
}
SIZES = {name: size for size, names in _SMALL.items() for name in names.split()}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
_LATENT_ATTENTION: dict[str, Any] = {
    **_LATENT,
    "v_head_dim": 8,
    "head_dim": None,
    "n_group": 1,
    "topk_group": 1,
}
MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "mistral4"), _LATENT_ATTENTION),
    "big_bird": {"attention_type": "original_full"},
    "falcon": {"head_dim": None},
    "funnel": {"num_hidden_layers": None, "block_sizes": [1, 1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "jamba": {"use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lilt": {"hidden_size": 48},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "shape_vocab_size": 8},
    "xlnet": {"max_position_embeddings": None},
    "t5": {"decoder_start_token_id": 0},
    "mt5": {"decoder_start_token_id": 0},
    "umt5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
}


def config_of(kind: str, **given: Any) -> Any:
    """The architecture's config in the smallest size; `given` is set besides."""
    make = CONFIG_MAPPING[kind]
    default, renamed = make(), getattr(make, "attribute_map", {})
    sizes = {
        name: size
        for name, size in SIZES.items()
        if name not in renamed and isinstance(getattr(default, name, ""), int | None)
    }
    chosen = {**sizes, **given, **MORE.get(kind, {})}
    return make(**{name: value for name, value in chosen.items() if value is not None})


def takes_types(model: torch.nn.Module) -> bool:
    return "token_type_ids" in inspect.signature(model.forward).parameters


def build_model(kind: str, **given: Any) -> PreTrainedModel:
    """Random weights, drawn so wide that a wrong token or mask moves a score."""
    torch.manual_seed(0)
    kinds: Any = AutoModelForSequenceClassification
    model: PreTrainedModel = kinds.from_config(config_of(kind, **given)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.25)
            elif name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return model


def write_folder(model: PreTrainedModel, tokens_from: Path, folder: Path) -> Path:
    """Save the model beside another folder's tokenizer, which gives types only if it reads them."""
    model.save_pretrained(folder)
    shutil.copy(tokens_from / "tokenizer.json", folder)
    settings = json.loads((tokens_from / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = ["input_ids", "attention_mask"]
    masked = "attention_mask" in inspect.signature(model.forward).parameters
    typed = takes_types(model) and settings["tokenizer_class"] == "BertTokenizer"
    settings["model_input_names"] = names[: 1 + masked] + ["token_type_ids"] * typed
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
