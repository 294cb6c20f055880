"""A model folder of `tests/tiny_models.py` as one GGUF file, which is what llama.cpp loads."""

import base64
import json
from pathlib import Path

import gguf
from safetensors.numpy import load_file


def write_gguf(model: Path, file: Path) -> Path:
    """The XLM-R `model` in float32, for ranking where it has a classification head.

    Metadata as llama.cpp's loader of BERT models wants it: positions begin at 0 there, so the two
    rows that XLM-R's padding takes are left out, and the one row of token types stays.
    """
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    weights = load_file(model / "model.safetensors")
    ranks = any(name.startswith("classifier.") for name in weights)
    padding_rows = config["pad_token_id"] + 1
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.BERT])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"] - padding_rows)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK if ranks else gguf.PoolingType.CLS)
    _add_tokenizer(writer, model / "tokenizer.json", config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, weight in weights.items():
        if name.startswith("pooler."):
            continue  # of use to neither ranking nor embedding
        known = names.get_name(name.removeprefix("roberta."), try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ValueError(f"llama.cpp has no name for the tensor {name!r}")
        rows = weight[padding_rows:] if "position_embeddings" in name else weight
        writer.add_tensor(known, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: gguf.GGUFWriter, path: Path, config: dict[str, int]) -> None:
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    pieces, scores = zip(*tokenizer["model"]["vocab"], strict=True)
    control = {added["id"] for added in tokenizer["added_tokens"] if added["special"]}
    unknown = tokenizer["model"]["unk_id"]
    kinds = [
        gguf.TokenType.UNKNOWN
        if number == unknown
        else gguf.TokenType.CONTROL
        if number in control
        else gguf.TokenType.NORMAL
        for number in range(len(pieces))
    ]
    writer.add_tokenizer_model("t5")  # llama.cpp's name for Unigram
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_precompiled_charsmap(
        base64.b64decode(tokenizer["normalizer"]["precompiled_charsmap"])
    )
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_sep_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_unk_token_id(unknown)
    writer.add_add_bos_token(True)
    writer.add_add_sep_token(True)
    writer.add_add_eos_token(True)
