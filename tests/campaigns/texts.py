"""Texts that look like control tokens, or hold any character, through five kinds of tokenizers.

    python -m tests.campaigns.texts --size 20000 --seed 1

The size is the number of texts for each kind. Passes if no text gives a control id; if a text has
the same ids alone, in a batch and cut; if all ids are those of transformers, and texts without a
control token have the same ids in every mode; and if a tokenizer that spells out unknown characters
as bytes loses none of the text.
"""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from bge_rerank_integrations.local.text.tokenizer import Ids, TextTokenizer, join_single
from tests.campaigns.command import run_campaign
from tests.folders.test_tokenizers import write_roberta_tokenizer
from tests.local.llm.tiny_tokenizers import write_gemma_tokenizer, write_llama_tokenizer
from tests.local.text.test_tokens import CONTROL, LOOK_ALIKES, ZERO_WIDTH
from tests.tiny_models import TEXT, build_bert_reranker, build_reranker_base

BATCH = 100
_BYTES = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
# builder, model_type, and what turns pieces back into all characters of the text
FAMILIES: dict[str, tuple[Callable[[Path], object], str, Any]] = {
    "WordPiece": (build_bert_reranker, "bert", None),
    "Unigram": (build_reranker_base, "xlm-roberta", None),
    "byte-level BPE": (write_roberta_tokenizer, "roberta", decoders.ByteLevel()),
    "BPE of Gemma": (write_gemma_tokenizer, "gemma", decoders.Sequence(_BYTES)),
    "BPE of Llama": (write_llama_tokenizer, "llama", decoders.Sequence(_BYTES)),
}
ODD: list[str] = [
    "<unk>", "[UNK]", "<0x0A>", "<h1>", "##ing", "▁", "▁▁", "\n\n", "\r\n", "\t", "  ", "\x00",
    "\ufffd", "\x85", "\u2028", "é", "e\u0301", "ﬁ", "½", "İ", "ß", "ς", "👩‍👩‍👧", "🏳️‍🌈", "שלום",
    "ไทย", "नमस्ते", "한국", "\u1112\u1161\u11ab", "龘", "Ａ", "①", "㍿", "\U0010ffff", *ZERO_WIDTH,
]  # fmt: skip
WORDS = TEXT.split()
# SentencePiece has the second in place of the first, and puts one before a text
SPACES = str.maketrans("", "", " ▁")


def campaign(size: int, seed: int, *names: str) -> Counter[str]:
    """The number of texts by what they were; raises `AssertionError` for wrong ids."""
    counts: Counter[str] = Counter()
    for name in names or FAMILIES:
        build, kind, decoder = FAMILIES[name]
        rng = random.Random(f"{seed}/{name}")
        with tempfile.TemporaryDirectory() as written:
            folder = Path(written)
            build(folder)
            family = _Family(folder, kind, decoder)
            for start in range(0, size, BATCH):
                family.check([draw_text(rng) for _ in range(min(BATCH, size - start))], rng, counts)
    return counts


def draw_text(rng: random.Random) -> str:
    """Words, names of control tokens in disguise, and odd or random characters, up to 300 parts."""
    kinds = (_word, _control, _odd, _characters)
    weights = [rng.random() for _ in kinds]
    count = rng.choice((0, 1, 1, 2, 3, 5, 8, 13, 40, 300))
    parts = [kind(rng) for kind in rng.choices(kinds, weights, k=count)]
    return rng.choice(("", "", " ", "  ")).join(parts)


def _word(rng: random.Random) -> str:
    return rng.choice(WORDS)


def _control(rng: random.Random) -> str:
    """The name of a control token, half of them with characters replaced, joined or doubled."""
    name, disguise = rng.choice(CONTROL), rng.choice((0, 0, 0.2, 1))
    return "".join(
        _disguised(character, rng) if rng.random() < disguise else character for character in name
    )


def _disguised(character: str, rng: random.Random) -> str:
    choices: tuple[str, ...] = (
        str(rng.choice(LOOK_ALIKES.get(character, chr(ord(character) + 0xFEE0)))),
        character + rng.choice(ZERO_WIDTH),
        character.swapcase(),
        f" {character}",
        character * 2,
    )
    return rng.choice(choices)


def _odd(rng: random.Random) -> str:
    piece = rng.choice(ODD)
    times: int = rng.choice((1, 1, 1, 2, 50))
    return piece * times


def _characters(rng: random.Random) -> str:
    last = rng.choice((0x7F, 0x7FF, 0xD7FF, 0x10FFFF))
    codes = (rng.randint(0, last) for _ in range(rng.randint(1, 12)))
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)


class _Family:
    """One tokenizer, read by this package and by transformers."""

    def __init__(self, folder: Path, kind: str, decoder: Any) -> None:
        self._folder, self._decoder = folder, decoder
        self._config = {"model_type": kind}
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        # as it is: transformers 5 builds the classes of XLM-R and Llama anew, with other spaces
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        (folder / "transformers").mkdir()
        (folder / "transformers" / "tokenizer_config.json").write_text(json.dumps(settings))
        content = (folder / "tokenizer.json").read_bytes()
        (folder / "transformers" / "tokenizer.json").write_bytes(content)
        kinds: Any = PreTrainedTokenizerFast
        self._reference = kinds.from_pretrained(folder / "transformers", model_max_length=10**9)
        self._alone = self._open()
        self.control = self._alone.control_ids

    def _open(self) -> TextTokenizer:
        return TextTokenizer(self._folder, config=self._config)

    def check(self, texts: list[str], rng: random.Random, counts: Counter[str]) -> None:
        # a tokenizer of its own, which remembers no ids of these texts
        tokenizer, places = self._open(), range(len(texts))
        literal = tokenizer.encode(texts, places)
        parsed = tokenizer.encode(texts, places, special_tokens="parse")
        expected = self._reference(texts)["input_ids"]
        keep = rng.choice((1, 2, 5, 30))
        begun = self._open().encode(texts, places, keep=keep)
        offsets = tokenizer.offsets(texts)
        for number, text in enumerate(texts):
            ids, whole = literal[number].tolist(), parsed[number]
            joined = join_single(whole, tokenizer.single_template)
            assert joined.ids.tolist() == expected[number], text
            assert self.control.isdisjoint(ids), text
            (alone,) = self._alone.encode([text], [0])
            assert alone.tolist() == ids, text
            assert begun[number][:keep].tolist() == ids[:keep], text
            assert len(offsets[number]) == len(ids), text
            self._compare(text, ids, whole, counts)

    def _compare(self, text: str, ids: list[int], parsed: Ids, counts: Counter[str]) -> None:
        """Texts with a control token stay whole as plain text; all others stay as they are."""
        counts["texts"] += 1
        if self.control.isdisjoint(parsed.tolist()):
            assert ids == parsed.tolist(), text
        else:
            counts["texts with a control token"] += 1
        if self._decoder is not None:
            found = self._decoder.decode(self._reference.convert_ids_to_tokens(ids))
            assert found.translate(SPACES) == text.translate(SPACES), text
            counts["texts spelled out again"] += 1


if __name__ == "__main__":
    run_campaign("texts", campaign, size=20_000)
