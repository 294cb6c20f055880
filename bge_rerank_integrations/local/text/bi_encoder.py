"""Query and passage each through an embedder, scored by the cosine of their vectors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bge_rerank_integrations.errors import InvalidInputError, UnsupportedModel
from bge_rerank_integrations.local.st_config import FolderSettings
from bge_rerank_integrations.local.text.cross_encoder import (
    EncodedTexts,
    TextOptions,
    count_both,
    cut_at,
    describe,
    encode_both,
)
from bge_rerank_integrations.local.text.head import NO_HEAD, Head
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, TokenSequence, join_single
from bge_rerank_integrations.options import PairOptions, reject_inapplicable_options
from bge_rerank_integrations.types import FloatArray, Pair, PairLength, Scale

Pooling = Literal["cls", "mean"]


@dataclass(frozen=True, slots=True)
class BiEncoding:
    """The method of embedders; see `cross_encoder.Method`. Each distinct text is encoded once."""

    options: TextOptions
    pooling: Pooling
    head: Head = NO_HEAD
    scale: Scale = "cosine"
    columns: int = 1

    @property
    def description(self) -> str:
        return f"{self.pooling} pooling,{describe(self.options)}"

    def encode(
        self, pairs: Sequence[Pair], positions: Sequence[int], tokenizer: TextTokenizer
    ) -> EncodedTexts:
        template = tokenizer.single_template
        query_limit, passage_limit = self._limits(tokenizer)
        queries, passages = encode_both(tokenizer, pairs, positions, self.options)
        # one row per distinct input: a query and a passage of the same ids are one
        rows: dict[bytes, int] = {}
        inputs: list[TokenSequence] = []
        owners: list[int] = []
        places: list[list[int]] = []
        cut: Counter[str] = Counter()
        for (query, passage), position in zip(pairs, positions, strict=True):
            place = []
            for ids, limit in (
                (queries[query], query_limit),
                (passages[passage], passage_limit),
            ):
                kept = ids[:limit]
                if kept.tobytes() not in rows:
                    rows[kept.tobytes()] = len(rows)
                    inputs.append(join_single(kept, template))
                    owners.append(position)
                place.append(rows[kept.tobytes()])
            places.append(place)
            lost = len(queries[query]) > query_limit, len(passages[passage]) > passage_limit
            cut.update(cut_at(self.options, query=lost[0], passage=lost[1]))
        return EncodedTexts(inputs, owners, cut, np.asarray(places))

    def decode(self, rows: FloatArray, encoded: EncodedTexts) -> FloatArray:
        vectors = self.vectors(rows)
        left, right = encoded.rows.T
        cosines = np.einsum("ij,ij->i", vectors[left], vectors[right])
        # rounding can leave a cosine a hair outside
        scores: FloatArray = np.clip(cosines, -1, 1)[:, None]
        return scores

    def encode_texts(
        self, texts: Sequence[str], tokenizer: TextTokenizer, *, as_queries: bool
    ) -> EncodedTexts:
        positions = range(len(texts))
        sides = encode_both(tokenizer, [(text, text) for text in texts], positions, self.options)
        ids, limit = sides[not as_queries], self._limits(tokenizer)[not as_queries]
        template = tokenizer.single_template
        return EncodedTexts([join_single(ids[text][:limit], template) for text in texts], positions)

    def vectors(self, rows: FloatArray) -> FloatArray:
        found = self.head(rows)
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        unit: FloatArray = found / np.maximum(norms, np.float32(1e-12))
        return unit

    def measure(
        self, pairs: Sequence[Pair], positions: Sequence[int], tokenizer: TextTokenizer
    ) -> list[PairLength]:
        query_limit, passage_limit = self._limits(tokenizer)
        return [
            PairLength(query, query_limit, passage, passage_limit)
            for query, passage in count_both(tokenizer, pairs, positions, self.options)
        ]

    def _limits(self, tokenizer: TextTokenizer) -> tuple[int, int]:
        """Most tokens of a query and of a passage."""
        control = len(tokenizer.single_template)
        return self.options.query_max_length - control, self.options.max_length - control


def bi_encoding(
    tokenizer: TextTokenizer,
    text: PairOptions,
    settings: FolderSettings,
    *,
    limit: int,
) -> BiEncoding:
    """The method with the caller's options filled up by what the embedder's folder says.

    Raises `InvalidInputError`, with the allowed range, for lengths beyond the model's `limit`, and
    `UnsupportedModel` where the folder's prompt for a passage is not certain.
    """
    reject_inapplicable_options(text, "no cross-encoder", model="this model")
    least = len(tokenizer.single_template) + 1
    length = settings.default_length(limit, limit) if text.max_length is None else text.max_length
    query = length if text.query_max_length is None else text.query_max_length
    for name, number in (("max_length", length), ("query_max_length", query)):
        if not least <= number <= limit:
            raise InvalidInputError(
                f"{name} is {number}; this model takes {least} to {limit} tokens"
            )
    before_query, before_passage = text.query_instruction, text.passage_instruction
    if before_passage is None and settings.passage_prompt is None:
        raise UnsupportedModel(
            "config_sentence_transformers.json has a prompt named passage or corpus and none named "
            "document, and sentence-transformers 6 leaves such a prompt out: give it as "
            "passage_instruction, or give passage_instruction='' for none"
        )
    return BiEncoding(
        TextOptions(
            max_length=length,
            query_max_length=query,
            query_instruction=settings.query_prompt if before_query is None else before_query,
            passage_instruction=settings.passage_prompt or ""
            if before_passage is None
            else before_passage,
            special_tokens=text.special_tokens,
        ),
        "mean" if settings.output == "mean" else "cls",
        settings.head,
    )
