"""Query and passage each through an embedder, scored by the cosine of their vectors.

The layout of an embedder's folder is sentence-transformers' own: `modules.json`, a pooling
`config.json`, and prompts in `config_sentence_transformers.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bge_rerank_integrations.base.models import DEFAULT_MODEL, find_model
from bge_rerank_integrations.errors import CheckpointError, InvalidInputError, UnsupportedModel
from bge_rerank_integrations.local.load_request import TextRequest, refuse_truncation
from bge_rerank_integrations.local.text.cross_encoder import count_both, describe, encode_both
from bge_rerank_integrations.local.text.method import EncodedTexts, TextOptions, cut_at
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, TokenSequence, join_single
from bge_rerank_integrations.types import FloatArray, Pair, PairLength, Scale

if TYPE_CHECKING:
    # embedders without a checkpoint come here too, where safetensors may not be installed
    from bge_rerank_integrations.local.checkpoint import Checkpoint

Pooling = Literal["cls", "mean"]
MODULES = {"Transformer", "Pooling", "Normalize"}


@dataclass(frozen=True, slots=True)
class BiEncoding:
    """The method of embedders; see `method.Method`. Each distinct text is encoded once."""

    options: TextOptions
    pooling: Pooling
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
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        unit: FloatArray = rows / np.maximum(norms, np.float32(1e-12))
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
    text: TextRequest,
    checkpoint: Checkpoint,
    *,
    limit: int,
    pooling: Pooling,
) -> BiEncoding:
    """The method with the caller's options filled up by what the embedder's folder says.

    Raises `InvalidInputError` as `with_defaults` does.
    """
    return with_defaults(
        tokenizer,
        text,
        limit=limit,
        pooling=pooling,
        instructions=default_instructions(checkpoint),
        max_length=default_max_length(checkpoint),
    )


def with_defaults(
    tokenizer: TextTokenizer,
    text: TextRequest,
    *,
    limit: int,
    pooling: Pooling,
    instructions: tuple[str, str],
    max_length: int,
) -> BiEncoding:
    """The method with the caller's options filled up by `instructions` (for query and passage).

    Raises `InvalidInputError`, with the allowed range, for lengths beyond the model's `limit`.
    """
    refuse_truncation(text)
    least = len(tokenizer.single_template) + 1
    length = min(max_length, limit) if text.max_length is None else text.max_length
    query = length if text.query_max_length is None else text.query_max_length
    for name, number in (("max_length", length), ("query_max_length", query)):
        if not least <= number <= limit:
            raise InvalidInputError(
                f"{name} is {number}; this model takes {least} to {limit} tokens"
            )
    given = text.query_instruction, text.passage_instruction
    return BiEncoding(
        TextOptions(
            max_length=length,
            query_max_length=query,
            query_instruction=instructions[0] if given[0] is None else given[0],
            passage_instruction=instructions[1] if given[1] is None else given[1],
            special_tokens=text.special_tokens,
        ),
        pooling,
    )


def read_pooling(checkpoint: Checkpoint) -> Pooling:
    """CLS or mean, as the folder's sentence-transformers files say.

    Raises `UnsupportedModel` for an encoder that has neither a relevance head nor such files, and
    for poolings or extra modules that are not supported.
    """
    architecture = (checkpoint.config.get("architectures") or ["unknown"])[0]
    if not (checkpoint.folder / "modules.json").is_file():
        raise UnsupportedModel(
            f"{checkpoint.model} is a {architecture} with no relevance head and no modules.json "
            f"that says how its vectors are pooled; use a reranker such as {DEFAULT_MODEL}, or an "
            "embedder saved by sentence-transformers"
        )
    modules = checkpoint.read_json("modules.json")
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and "type" in module for module in modules
    ):
        raise CheckpointError(f"{checkpoint.folder / 'modules.json'} holds no list of modules")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if unknown := sorted(set(kinds) - MODULES):
        raise UnsupportedModel(
            f"{checkpoint.model} has the module {unknown[0]}; "
            f"supported: {', '.join(sorted(MODULES))}"
        )
    if "Pooling" not in kinds:
        raise UnsupportedModel(f"{checkpoint.model} has no Pooling module in modules.json")
    path = modules[kinds.index("Pooling")].get("path", "")
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise CheckpointError(f"{checkpoint.folder / 'modules.json'} points outside its folder")
    return _pooling_mode(checkpoint, checkpoint.read_json(f"{path}/config.json"))


def _pooling_mode(checkpoint: Checkpoint, config: dict[str, Any]) -> Pooling:
    modes = config.get("pooling_mode")
    if modes is None:  # sentence-transformers before 6 wrote one flag per mode
        modes = [
            name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            for name, on in config.items()
            if name.startswith("pooling_mode_") and on
        ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if modes == ["cls"]:
        return "cls"
    if modes == ["mean"] and config.get("include_prompt", True):
        return "mean"
    raise UnsupportedModel(
        f"{checkpoint.model} pools by {' and '.join(modes) or 'nothing'}"
        f"{'' if config.get('include_prompt', True) else ' without the instruction'}; "
        "supported: cls, mean"
    )


def default_instructions(checkpoint: Checkpoint) -> tuple[str, str]:
    """What the embedder was trained to see before a query and before a passage.

    BGE's own from the table of models by exact id, otherwise the folder's prompts.
    """
    spec = find_model(checkpoint.model)
    if spec is not None:
        return spec.query_instruction or "", ""
    file = "config_sentence_transformers.json"
    prompts: dict[str, str] = {}
    if (checkpoint.folder / file).is_file():
        prompts = checkpoint.read_json(file).get("prompts") or {}
    passage = next(
        (prompts[name] for name in ("document", "passage", "corpus") if name in prompts), ""
    )
    return prompts.get("query", ""), passage


def default_max_length(checkpoint: Checkpoint) -> int:
    """`max_seq_length` of the folder's sentence-transformers files, else 512."""
    file = "sentence_bert_config.json"
    if (checkpoint.folder / file).is_file():
        length = checkpoint.read_json(file).get("max_seq_length")
        if length:
            return int(length)
    return 512
