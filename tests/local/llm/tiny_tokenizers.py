"""The tokenizers of the LLM rerankers, written out: BPE with bytes, as in Gemma and in Llama."""

import json
from pathlib import Path
from typing import Any

_TEXT = """\
the a is of and in to that it was what how who panda pandas bear lives mountains China eats bamboo
all day black white water boils degrees level sea mountain ship steel floats because pushes aside
more than its own weight capital France Germany Paris Berlin wrote first program computer people
many live city energy sun heat heart moves blood Yes No Given query passage determine whether
contains an answer by providing prediction either or Predict search engines rank passages
大熊 大熊猫 熊猫 中国 北京 首都 上海 城市 什么 竹子 问题
"""
WORDS = _TEXT.split()

GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
GEMMA_ADDED = ("\n", "\n\n", "▁▁", "▁▁▁▁", "<h1>", "</h1>")
"""Pieces of Gemma's that are found in a text before anything else, but are no control tokens."""
LLAMA_SPECIAL = ("<unk>", "<s>", "</s>")


def write_gemma_tokenizer(folder: Path) -> int:
    """Write the files of a tokenizer like Gemma's; returns how many tokens it has."""
    return _write_tokenizer(folder, gemma_tokenizer(), "GemmaTokenizer", GEMMA_SPECIAL)


def write_llama_tokenizer(folder: Path) -> int:
    """Write the files of a tokenizer like MiniCPM's; returns how many tokens it has."""
    return _write_tokenizer(folder, llama_tokenizer(), "LlamaTokenizer", LLAMA_SPECIAL)


def _write_tokenizer(
    folder: Path, tokenizer: dict[str, Any], kind: str, special: tuple[str, ...]
) -> int:
    """Write the files that belong to a tokenizer; returns how many tokens it has."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(tokenizer, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    gemma = kind == "GemmaTokenizer"
    settings = {
        "tokenizer_class": kind,
        "bos_token": "<bos>" if gemma else "<s>",
        "eos_token": "<eos>" if gemma else "</s>",
        "pad_token": special[0],
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in token if key != "id"}
            for token in tokenizer["added_tokens"]
        },
    }
    if not gemma:
        settings["legacy"] = True
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(tokenizer["model"]["vocab"])


def gemma_tokenizer() -> dict[str, Any]:
    """BPE with bytes for what it does not know; newlines and runs of spaces are pieces."""
    special, added = GEMMA_SPECIAL, GEMMA_ADDED
    return {
        **_tokenizer(special, added, "<bos>", 2),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": None,
    }


def llama_tokenizer() -> dict[str, Any]:
    """BPE with bytes for what it does not know; a space before every text, newlines are bytes."""
    return {
        **_tokenizer(LLAMA_SPECIAL, (), "<s>", 1),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "decoder": None,
    }


def _tokenizer(
    special: tuple[str, ...], added: tuple[str, ...], bos: str, bos_id: int
) -> dict[str, Any]:
    pieces, merges = _pieces()
    names = [*special, *added, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {piece: number for number, piece in enumerate(names)}
    assert len(vocabulary) == len(names)
    sequence = [
        {"SpecialToken": {"id": bos, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocabulary[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token in special,
            }
            for token in (*special, *added)
        ],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": sequence,
            "pair": [*sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _pieces() -> tuple[list[str], list[str]]:
    """Characters, and every beginning of every word, joined letter by letter."""
    ascii_letters = [chr(code) for code in range(33, 127)]
    pieces = dict.fromkeys(["▁", *ascii_letters, *(c for word in WORDS for c in word)])
    merges: dict[str, None] = {}
    for word in [*(f"▁{word}" for word in WORDS), *WORDS]:
        for end in range(1, len(word)):
            merges[f"{word[:end]} {word[end]}"] = None
            pieces[word[: end + 1]] = None
    return list(pieces), list(merges)
