r"""Query, passage and question in one prompt: the input of the LLM rerankers.

    <bos> A: query \n B: passage \n prompt

By the rule of FlagEmbedding 1.4: each piece is tokenized by itself, the query cut to three
quarters of `max_length`, the passage to `max_length`, and then the passage until both fit into
`max_length` with separators and prompt on top.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bge_rerank_integrations.base.models import Family
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.local.decoder_spec import DecoderSpec
from bge_rerank_integrations.local.text.cross_encoder import (
    DEFAULT_MAX_LENGTH,
    EncodedTexts,
    TextOptions,
    count_both,
    cut_at,
    describe,
    encode_both,
)
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, TokenSequence
from bge_rerank_integrations.options import PairOptions, reject_inapplicable_options
from bge_rerank_integrations.types import FloatArray, Pair, PairLength, Scale, SpecialTokens

YES_OR_NO = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the "
    "query by providing a prediction of either 'Yes' or 'No'."
)
PROMPTS = {
    Family.CAUSAL: YES_OR_NO,
    Family.LAYERWISE: YES_OR_NO,
    Family.LIGHTWEIGHT: "Predict whether passage B contains an answer to query A.",
}


@dataclass(frozen=True, slots=True)
class Prompting:
    """The method of the LLM rerankers; see `cross_encoder.Method`."""

    options: TextOptions
    prompt: str
    separator_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    bos: int
    spec: DecoderSpec
    scale: Scale = "logit"

    @property
    def columns(self) -> int:
        return len(self.spec.layers)

    @property
    def description(self) -> str:
        return f"{self.spec.description},{describe(self.options)},prompt={self.prompt!r}"

    def encode(
        self, pairs: Sequence[Pair], positions: Sequence[int], tokenizer: TextTokenizer
    ) -> EncodedTexts:
        options = self.options
        queries, passages = encode_both(tokenizer, pairs, positions, options)
        tail = [*self.separator_ids, *self.prompt_ids]
        sequences: list[TokenSequence] = []
        cut: Counter[str] = Counter()
        for query_text, passage_text in pairs:
            query, passage = queries[query_text], passages[passage_text]
            query_limit, passage_limit = self._limits(len(query))
            kept_query, kept = query[:query_limit], passage[:passage_limit]
            head = [self.bos, *kept_query, *self.separator_ids]
            lost = len(kept_query) < len(query), len(kept) < len(passage)
            cut.update(cut_at(options, query=lost[0], passage=lost[1]))
            ids = np.concatenate([head, kept, tail]).astype(np.int32)
            sequences.append(TokenSequence(ids, len(head), len(tail)))
        return EncodedTexts(sequences, positions, cut)

    def decode(self, rows: FloatArray, encoded: EncodedTexts) -> FloatArray:  # noqa: ARG002
        return rows

    def measure(
        self, pairs: Sequence[Pair], positions: Sequence[int], tokenizer: TextTokenizer
    ) -> list[PairLength]:
        lengths = count_both(tokenizer, pairs, positions, self.options)
        return [
            PairLength(query, limits[0], passage, limits[1])
            for query, passage in lengths
            for limits in [self._limits(query)]
        ]

    def _limits(self, query: int) -> tuple[int, int]:
        """Most tokens of a query, and of the passage behind a query of so many."""
        length, limit = self.options.max_length, self.options.query_max_length
        # prompt and both separators ride on top of max_length, the first token does not
        head = 1 + min(query, limit) + len(self.separator_ids)
        tail = len(self.separator_ids) + len(self.prompt_ids)
        return limit, min(length, length + tail - head)


def prompting(
    tokenizer: TextTokenizer,
    text: PairOptions,
    spec: DecoderSpec,
    *,
    family: Family,
    bos: int,
    limit: int,
) -> Prompting:
    """The method with the caller's options filled up by FlagEmbedding's defaults.

    Raises `InvalidInputError`, with the allowed range, for lengths beyond the model's `limit`.
    """
    reject_inapplicable_options(text, "no cross-encoder", model="this model")
    prompt = PROMPTS[family] if text.prompt is None else text.prompt
    # the prompt is the caller's own text and no document: it is literal unless all is to be parsed
    mode: SpecialTokens = "parse" if text.special_tokens == "parse" else "literal"
    encoded = tokenizer.encode(["\n", prompt], [0, 0], special_tokens=mode)
    separator, question = (ids.tolist() for ids in encoded)
    around = 1 + 2 * len(separator) + len(question)
    # first token, query and passage may fill max_length with separator and prompt on top, and
    # behind them stand separator and prompt once more
    most = limit - 2 * (len(separator) + len(question))
    length = min(DEFAULT_MAX_LENGTH, most) if text.max_length is None else text.max_length
    if most < 16:
        raise InvalidInputError(
            f"the prompt has {len(question)} tokens, and the model takes {limit} in all, with the "
            "prompt counted twice; shorten it"
        )
    if not 16 <= length <= most:
        raise InvalidInputError(
            f"max_length is {length}; with this prompt the model takes 16 to {most} tokens"
        )
    query = length * 3 // 4 if text.query_max_length is None else text.query_max_length
    if not 1 <= query <= length - around + len(question):
        raise InvalidInputError(
            f"query_max_length is {query}; with max_length={length} it must be 1 to "
            f"{length - around + len(question)}, so that a passage fits behind the query"
        )
    given = text.query_instruction, text.passage_instruction
    return Prompting(
        TextOptions(
            max_length=length,
            query_max_length=query,
            query_instruction="A: " if given[0] is None else given[0],
            passage_instruction="B: " if given[1] is None else given[1],
            special_tokens=text.special_tokens,
        ),
        prompt=prompt,
        separator_ids=tuple(separator),
        prompt_ids=tuple(question),
        bos=bos,
        spec=spec,
    )
