r"""Query, passage and question in one prompt: the input of the LLM rerankers.

    <bos> A: query \n B: passage \n prompt

By the rule of FlagEmbedding 1.4: each piece is tokenized by itself, the query cut to three
quarters of `max_length`, the passage to `max_length`, and then the passage until both fit into
`max_length` with separators and prompt on top.
"""

from dataclasses import dataclass

import numpy as np

from bge_rerank_integrations.base.models import Family
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.local.decoder_spec import DecoderSpec
from bge_rerank_integrations.local.text.cross_encoder import (
    DEFAULT_MAX_LENGTH,
    JoinedPairs,
    text_options,
)
from bge_rerank_integrations.local.text.tokenizer import Ids, TextTokenizer, TokenSequence
from bge_rerank_integrations.options import PairOptions, reject_inapplicable_options
from bge_rerank_integrations.types import SpecialTokens

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
class Prompting(JoinedPairs):
    """The method of the LLM rerankers."""

    prompt: str
    separator_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    bos: int
    spec: DecoderSpec

    @property
    def columns(self) -> int:
        return len(self.spec.layers)

    @property
    def description(self) -> str:
        return f"{self.spec.description},{self.options.description},prompt={self.prompt!r}"

    def limits(self, query: int, passage: int, tokenizer: TextTokenizer) -> tuple[int, int]:  # noqa: ARG002
        length, limit = self.options.max_length, self.options.query_max_length
        # prompt and both separators are added to max_length, the first token is not
        head = 1 + min(query, limit) + len(self.separator_ids)
        tail = len(self.separator_ids) + len(self.prompt_ids)
        return limit, min(length, length + tail - head)

    def join(self, query: Ids, passage: Ids, tokenizer: TextTokenizer) -> TokenSequence:  # noqa: ARG002
        head = [self.bos, *query, *self.separator_ids]
        tail = [*self.separator_ids, *self.prompt_ids]
        ids = np.concatenate([head, passage, tail]).astype(np.int32)
        return TokenSequence(ids, len(head), len(tail))


def prompting(
    tokenizer: TextTokenizer,
    text: PairOptions,
    spec: DecoderSpec,
    *,
    family: Family,
    bos: int,
    limit: int,
) -> Prompting:
    """The method, with FlagEmbedding's default for each option that the caller leaves out.

    Raises `InvalidInputError`, with the allowed range, for lengths beyond the model's `limit`.
    """
    reject_inapplicable_options(text, "not a cross-encoder", model="this model")
    prompt = PROMPTS[family] if text.prompt is None else text.prompt
    # the prompt is the caller's text, not a document's: it is literal unless all texts are parsed
    mode: SpecialTokens = "parse" if text.special_tokens == "parse" else "literal"
    encoded = tokenizer.encode(["\n", prompt], [0, 0], special_tokens=mode)
    separator, question = (ids.tolist() for ids in encoded)
    # First token, query and passage may fill max_length with one separator and prompt added; a
    # second separator and prompt follow them.
    room = limit - 2 * (len(separator) + len(question))
    length = min(DEFAULT_MAX_LENGTH, room) if text.max_length is None else text.max_length
    if room < 16:
        raise InvalidInputError(
            f"the prompt has {len(question)} tokens, and the model takes {limit} in all, with the "
            "prompt counted twice; shorten it"
        )
    if not 16 <= length <= room:
        raise InvalidInputError(
            f"max_length is {length}; with this prompt the model takes 16 to {room} tokens"
        )
    query = length * 3 // 4 if text.query_max_length is None else text.query_max_length
    longest = length - 1 - 2 * len(separator)
    if not 1 <= query <= longest:
        raise InvalidInputError(
            f"query_max_length is {query}; with max_length={length} it must be 1 to {longest}, so "
            "that a passage fits after the query"
        )
    return Prompting(
        text_options(tokenizer, text, (length, query), ("A: ", "B: ")),
        prompt=prompt,
        separator_ids=tuple(separator),
        prompt_ids=tuple(question),
        bos=bos,
        spec=spec,
    )
