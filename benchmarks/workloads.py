"""What is scored: one question and many passages, of the same lengths on every run.

The words are those of the examples' corpus, the order is drawn from a seed. Passages are cut to a
number of tokens by the model's own tokenizer, and no pair is long enough to be truncated, so that
every library sees the same input.
"""

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CORPUS = Path(__file__).resolve().parent.parent / "examples" / "corpus"
LONGEST = 440
"""Most tokens of a passage drawn at random: with any of the questions it stays below 512."""
LLM_PROMPT = (
    "A: \nB: \nGiven a query A and a passage B, determine whether the passage contains an answer "
    "to the query by providing a prediction of either 'Yes' or 'No'."
)
"""What stands around a pair for an LLM reranker, to count its tokens."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One question, its passages, and the tokens of each pair with its control tokens."""

    name: str
    query: str
    passages: tuple[str, ...]
    lengths: tuple[int, ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(self.query, passage) for passage in self.passages]


@dataclass(frozen=True, slots=True)
class Passages:
    """So many passages of log-normal length around a mean."""

    count: int
    mean: int
    spread: float = 0.45

    def draw(self, texts: "Texts") -> Workload:
        name = f"{self.count:,} passages of about {self.mean} tokens"
        return texts.workload(name, self.count, mean=self.mean, spread=self.spread)

    def small(self) -> "Passages":
        """As few and short as a smoke run wants them."""
        return Passages(min(self.count, 8), min(self.mean, 30), self.spread)


@dataclass(frozen=True, slots=True)
class EqualPairs:
    """So many pairs, all of one length in tokens."""

    count: int
    tokens: int

    def draw(self, texts: "Texts") -> Workload:
        return texts.equal_pairs(self.count, pair_tokens=self.tokens)

    def small(self) -> "EqualPairs":
        """As few and short as a smoke run wants them."""
        return EqualPairs(min(self.count, 8), min(self.tokens, 64))


class Texts:
    """Draws questions and passages whose length is counted by `count`, word by word.

    `count` gives the tokens of one word, and `control` is how many control tokens a pair has.
    """

    def __init__(self, count: Callable[[str], int], control: int, *, seed: int = 0) -> None:
        self._count = cache(count)
        self._control = control
        self._random = random.Random(seed)  # noqa: S311  # drawn for variety, not for secrecy

    def workload(self, name: str, passages: int, *, mean: int, spread: float) -> Workload:
        """Passages of log-normal length around `mean` tokens; a `spread` of 0 makes all equal."""
        drawn = (
            self._random.lognormvariate(math.log(mean) - spread**2 / 2, spread)
            for _ in range(passages)
        )
        return self._workload(name, [max(8, min(LONGEST, round(tokens))) for tokens in drawn])

    def equal_pairs(self, passages: int, *, pair_tokens: int) -> Workload:
        """Pairs of at most `pair_tokens` tokens, short of that by less than a word."""
        query = self._passage(min(12, pair_tokens // 3), read_lines("queries"))
        room = pair_tokens - self._control - self.tokens(query)
        name = f"{passages} of {pair_tokens:,} tokens"
        return self._workload(name, [room] * passages, query)

    def tokens(self, text: str) -> int:
        return sum(self._count(word) for word in text.split())

    def _workload(self, name: str, tokens: list[int], query: str | None = None) -> Workload:
        query = self._random.choice(read_lines("queries")) if query is None else query
        passages = tuple(self._passage(number, read_lines("corpus")) for number in tokens)
        around = self._control + self.tokens(query)
        return Workload(
            name, query, passages, tuple(around + self.tokens(passage) for passage in passages)
        )

    def _passage(self, tokens: int, sentences: tuple[str, ...]) -> str:
        words: list[str] = []
        for word in self._words(sentences):
            tokens -= self._count(word)
            if tokens < 0:
                break
            words.append(word)
        return " ".join(words)

    def _words(self, sentences: tuple[str, ...]) -> Iterator[str]:
        while True:
            yield from self._random.choice(sentences).split()


def texts_for(folder: Path, *, seed: int = 0) -> Texts:
    """Texts measured by the tokenizer of this model folder."""
    from tokenizers import Tokenizer  # late: some contenders bring their own release

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] == "gemma":
        return Texts(count, count(LLM_PROMPT), seed=seed)
    return Texts(count, tokenizer.num_special_tokens_to_add(is_pair=True), seed=seed)


@cache
def read_lines(name: str) -> tuple[str, ...]:
    """The texts of the examples' `corpus` or `queries`."""
    lines = (CORPUS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line)["text"] for line in lines)
