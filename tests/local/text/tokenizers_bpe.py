"""BPE tokenizers like those of Gemma and Llama 3, trained on the same small text as the others."""

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.models import BPE

from tests.tiny_models import TEXT

GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
LLAMA_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]


def build_gemma_tokenizer(folder: Path) -> Path:
    """Like SentencePiece: spaces become `▁`, unknown characters their bytes."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.ByteFallback()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*GEMMA_SPECIAL, *(f"<0x{number:02X}>" for number in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return _save(tokenizer, folder, GEMMA_SPECIAL, bos="<bos>")


def build_llama_tokenizer(folder: Path) -> Path:
    """Byte-level without an unknown token; whole words that are pieces need no merges."""
    tokenizer = Tokenizer(BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s*\S+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=LLAMA_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return _save(tokenizer, folder, LLAMA_SPECIAL, bos="<|begin_of_text|>")


def _save(tokenizer: Tokenizer, folder: Path, special: list[str], *, bos: str) -> Path:
    # to the trainer byte pieces are special too; in the published files they are ordinary ones
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in special]
    saved = Tokenizer.from_str(json.dumps(content))
    saved.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    saved.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    saved.save(str(folder / "tokenizer.json"))
    return folder
