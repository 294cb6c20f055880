"""Query and passage each through an embedder, scored by the cosine of their vectors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bge_rerank_integrations.base.deadline import cancellable
from bge_rerank_integrations.errors import UnsupportedModel
from bge_rerank_integrations.local.st_config import FolderSettings
from bge_rerank_integrations.local.text.cross_encoder import (
    JOINING,
    EncodedTexts,
    Method,
    check_length,
    encode_both,
    text_options,
)
from bge_rerank_integrations.local.text.head import NO_HEAD, Head
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, TokenSequence, join_single
from bge_rerank_integrations.options import PairOptions, reject_inapplicable_options
from bge_rerank_integrations.types import FloatArray, Pair, Scale

Pooling = Literal["cls", "mean"]


@dataclass(frozen=True, slots=True)
class BiEncoding(Method):
    """The method of embedders. Each distinct text is encoded once."""

    pooling: Pooling
    head: Head = NO_HEAD

    @property
    def scale(self) -> Scale:
        return "cosine"

    @property
    def description(self) -> str:
        return f"{self.pooling} pooling,{self.options.description}"

    def limits(self, query: int, passage: int, tokenizer: TextTokenizer) -> tuple[int, int]:  # noqa: ARG002
        control = len(tokenizer.single_template)
        return self.options.query_max_length - control, self.options.max_length - control

    def encode(
        self, pairs: Sequence[Pair], positions: Sequence[int], tokenizer: TextTokenizer
    ) -> EncodedTexts:
        limits, template = self.limits(0, 0, tokenizer), tokenizer.single_template
        both = encode_both(tokenizer, pairs, positions, self.options)
        # one row per distinct input: a query and a passage of the same ids share it
        rows: dict[bytes, int] = {}
        inputs: list[TokenSequence] = []
        owners: list[int] = []
        places: list[list[int]] = []
        cut: Counter[str] = Counter()
        for pair, position in cancellable(zip(pairs, positions, strict=True), JOINING):
            query, passage = (ids[text] for ids, text in zip(both, pair, strict=True))
            cut.update(self.cut_by(query, passage, limits))
            kept = [query[: limits[0]], passage[: limits[1]]]
            for ids in kept:
                if ids.tobytes() not in rows:
                    rows[ids.tobytes()] = len(rows)
                    inputs.append(join_single(ids, template))
                    owners.append(position)
            places.append([rows[ids.tobytes()] for ids in kept])
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
        ids, limit = sides[not as_queries], self.limits(0, 0, tokenizer)[not as_queries]
        template = tokenizer.single_template
        return EncodedTexts([join_single(ids[text][:limit], template) for text in texts], positions)

    def vectors(self, rows: FloatArray) -> FloatArray:
        """The unit vectors of the rows, [texts, width]."""
        found = self.head(rows)
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        unit: FloatArray = found / np.maximum(norms, np.float32(1e-12))
        return unit


def bi_encoding(
    tokenizer: TextTokenizer,
    text: PairOptions,
    settings: FolderSettings,
    *,
    limit: int,
) -> BiEncoding:
    """The method, with the folder's settings for every option that the caller leaves out.

    Raises `InvalidInputError`, with the allowed range, for lengths beyond the model's `limit`, and
    `UnsupportedModel` where the folder's prompt for a passage is not certain.
    """
    reject_inapplicable_options(text, "not a cross-encoder", model="this model")
    lowest = len(tokenizer.single_template) + 1
    length = settings.default_length(limit, limit) if text.max_length is None else text.max_length
    query = length if text.query_max_length is None else text.query_max_length
    check_length("max_length", length, text.max_length, least=lowest, most=limit)
    check_length("query_max_length", query, text.query_max_length, least=lowest, most=limit)
    if text.passage_instruction is None and settings.passage_prompt is None:
        raise UnsupportedModel(
            "config_sentence_transformers.json has a prompt named passage or corpus and none named "
            "document, and sentence-transformers 6 leaves such a prompt out: give it as "
            "passage_instruction, or give passage_instruction='' for none"
        )
    prompts = settings.query_prompt, settings.passage_prompt or ""
    pooling: Pooling = "mean" if settings.output == "mean" else "cls"
    return BiEncoding(
        text_options(tokenizer, text, (length, query), prompts), pooling, settings.head
    )
