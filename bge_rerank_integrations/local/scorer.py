"""The scorer of a model in this process: a shared engine, with text options of its own."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from bge_rerank_integrations.base.contract import check_text, like_input, read_pairs
from bge_rerank_integrations.base.deadline import cancellable, off_main_thread, seconds_left
from bge_rerank_integrations.base.trace import is_recorded, note, timed
from bge_rerank_integrations.errors import (
    RerankError,
    ScoringTimeout,
    UnsupportedModel,
    missing_extra,
)
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.engine import Engine, stop_at_exit
from bge_rerank_integrations.local.keep_alive import keep_alive, release
from bge_rerank_integrations.local.text.bi_encoder import BiEncoding
from bge_rerank_integrations.local.text.cross_encoder import EncodedTexts, JoinedPairs, Method
from bge_rerank_integrations.options import BatchOptions
from bge_rerank_integrations.types import FloatArray, Pair, PairLength, Scale

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger("bge_rerank_integrations")

PART_CHARACTERS = 2_000_000
"""Pairs are tokenized and computed in parts of this many characters, which bounds memory.

Parts are a fifth as long under a time limit, so that finished parts keep their scores, and with a
progress bar, which moves only after the first batch of a part.
"""


class LocalScorer:
    """A loaded model with its text options; see `types.Scorer` for the laws that it obeys."""

    def __init__(
        self,
        engine: Engine,
        method: Method,
        *,
        limits: BatchOptions,
        show_progress: bool,
        reasons: Sequence[str] = (),
        keep_seconds: float = 0.0,
    ) -> None:
        self._engine: Engine | None = engine
        self._kept = keep_alive(self, engine, keep_seconds) if keep_seconds else None
        self._model = engine.model
        self._fingerprint = engine.fingerprint
        self._arithmetic = engine.plan.arithmetic
        self._method = method
        self._limits = limits
        self._reasons = reasons
        self._show_progress = show_progress
        self._first_warning = iter([True])

    def __repr__(self) -> str:
        return f"LocalScorer({self._model!r}, {self._method.description})"

    @property
    def name(self) -> str:
        """Model, fingerprint of its files, arithmetic and every option that changes a score."""
        about = f"{self._arithmetic},{self._method.description}"
        return f"{self._model}#{self._fingerprint()}[{about}]"

    @property
    def scale(self) -> Scale:
        return self._method.scale

    @property
    def plan(self) -> DevicePlan:
        """The chosen device, precision and kernels, with the reasons; print it to read them."""
        return self._plan_on(self._loaded())

    def _plan_on(self, engine: Engine) -> DevicePlan:
        plan, limits = engine.plan, self._limits
        given = [
            f"batches of at most {limit} {what}: requested"
            for limit, what in ((limits.max_batch_tokens, "tokens"), (limits.batch_size, "texts"))
            if limit is not None
        ]
        return replace(
            plan,
            max_batch_tokens=limits.max_batch_tokens or plan.max_batch_tokens,
            reasons=(*self._reasons, *plan.reasons, *given),
        )

    def score(self, pairs: Iterable[Any]) -> FloatArray:
        """One raw score per pair, float32, in the order given.

        `pairs` is a list of (query, passage), a list of {"query":, "passage":}, or a pandas
        DataFrame with those columns, for which a Series with its index is returned. Equal pairs
        are scored once. Raises `InvalidInputError`, `OutOfMemoryError`, `NonFiniteScoreError`, and
        under a time limit `ScoringTimeout`, which holds the scores computed so far.
        """
        scores = off_main_thread(self._score, read_pairs(pairs))
        return like_input(pairs, scores[:, -1])

    def score_layers(self, pairs: Iterable[Any]) -> FloatArray:
        """Raw scores at every layer of `cutoff_layers`: [pairs, layers], in ascending order.

        `score` gives the last column. Models without that option have one column.
        """
        return off_main_thread(self._score, read_pairs(pairs))

    def _score(self, pairs: Sequence[Pair]) -> FloatArray:
        stop_at_exit()
        engine, method = self._loaded(), self._method
        if not pairs:
            return np.empty((0, method.columns), dtype=np.float32)
        places: dict[Pair, int] = {}
        positions = []
        for position, pair in enumerate(cancellable(pairs, "pairs were compared")):
            if pair not in places:
                places[pair] = len(places)
                positions.append(position)
        distinct, cut = list(places), Counter[str]()
        found: list[FloatArray] = []
        with self._progress(len(distinct)) as bar:
            for part in self._parts(distinct):
                try:
                    with timed("tokenizing"):
                        encoded = method.encode(distinct[part], positions[part], engine.tokenizer)
                    rows = self._run(engine, encoded, part.stop - part.start, bar)
                except ScoringTimeout:
                    if not found:
                        raise
                    late_part = (len(distinct) - part.start, found[0].shape[1])
                    found.append(np.full(late_part, np.nan, dtype=np.float32))
                    break
                found.append(method.decode(rows, encoded))
                cut += encoded.cut
        scores = np.concatenate(found)
        if is_recorded():
            plan = self._plan_on(engine)
            note(
                {"computed": len(places), "cut": cut.total()},
                {
                    "model": self._model,
                    "device": plan.device,
                    "precision": plan.precision,
                    "plan": str(plan).partition("\n")[0],
                    "paths": plan.paths,
                },
            )
        self._warn_once(cut, len(places))
        scores = scores[[places[pair] for pair in pairs]]
        if np.isnan(scores).any():  # the engine lets no other NaN through
            late = int(np.isnan(scores[:, -1]).sum())
            raise ScoringTimeout(
                f"the time limit passed with {late} of {len(pairs)} pairs unscored by "
                f"{self._model} on {engine.plan.device}; allow more time, or fewer passages, or "
                "keep the retrieval order for the rest with on_error='keep'",
                partial=scores[:, -1],
            )
        return scores

    def _parts(self, pairs: Sequence[Pair]) -> Iterator[slice]:
        """The pairs to tokenize and compute at once.

        An embedder reads each distinct text once, so pairs of several queries stay together.
        """
        together = not isinstance(self._method, JoinedPairs) and any(
            query != pairs[0][0] for query, _ in pairs
        )
        watched = self._show_progress or seconds_left() is not None
        limit = PART_CHARACTERS // 5 if watched else PART_CHARACTERS
        start = size = 0
        for place, (query, passage) in enumerate(pairs):
            length = len(query) + len(passage)
            size += length
            if size > limit and place > start and not together:
                yield slice(start, place)
                start, size = place, length
        yield slice(start, len(pairs))

    def embed(self, texts: Sequence[str], *, as_queries: bool = False) -> FloatArray:
        """An embedder's unit vectors, [texts, width] float32, for example for an index.

        `as_queries` puts the query's instruction before each text, else the passage's. The dot
        product of a query's and a passage's vector is the pair's `score`. Raises
        `UnsupportedModel` for a model that reads both together and has no vectors.
        """
        method = self._method
        if not isinstance(method, BiEncoding):
            raise UnsupportedModel(
                f"{self._model} reads query and passage together and has no vectors; use an "
                "embedder, such as BAAI/bge-m3"
            )
        engine = self._loaded()
        if not texts:
            return np.empty((0, 0), dtype=np.float32)
        checked = _check_texts(texts)

        def work() -> FloatArray:
            encoded = method.encode_texts(checked, engine.tokenizer, as_queries=as_queries)
            with self._progress(len(checked)) as bar:
                return method.vectors(self._run(engine, encoded, len(checked), bar))

        vectors = off_main_thread(work)
        if np.isnan(vectors).any():  # the engine lets no other NaN through
            raise ScoringTimeout(
                f"the time limit passed before {self._model} had embedded all texts; allow more "
                "time, or fewer texts"
            )
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens the model makes of each text, uncut, without control tokens."""
        encode = self._loaded().tokenizer.encode
        return [len(ids) for ids in off_main_thread(encode, _check_texts(texts), range(len(texts)))]

    def measure(self, pairs: Iterable[Any]) -> list[PairLength]:
        """See `types.MeasuresPairs`; raises `InvalidInputError` as `score` does."""
        read, tokenizer = read_pairs(pairs), self._loaded().tokenizer
        return off_main_thread(self._method.measure, read, range(len(read)), tokenizer)

    def token_offsets(self, passages: Sequence[str]) -> list[NDArray[np.int64]]:
        """See `types.MeasuresPairs`."""
        options, tokenizer = self._method.options, self._loaded().tokenizer
        instruction = options.passage_instruction
        begin, found = len(instruction), []
        texts = [instruction + text for text in _check_texts(passages, "passage")]
        for offsets in tokenizer.offsets(texts, special_tokens=options.special_tokens):
            own = offsets[offsets[:, 1] > begin] if begin else offsets
            found.append(np.maximum(own - begin, 0))
        return found

    def close(self) -> None:
        """Release the model, also from `keep_alive`.

        Its memory is freed when the last scorer that shares it is closed.
        """
        if self._engine is not None:
            engine, self._engine = self._engine, None
            if self._kept is not None:
                self._kept.detach()
                release(self._model)
            engine.release_memory()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a LocalScorer is not pickled or copied, because it holds a loaded model: call "
            "load_scorer where it is needed, which shares the model within a process, or pickle "
            "an adapter, which loads again by itself"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _progress(self, texts: int) -> "AbstractContextManager[tqdm[Any] | None]":
        """A progress bar, if `show_progress` is set."""
        if not self._show_progress:
            return nullcontext()
        with missing_extra("cli"):
            from tqdm.auto import tqdm
        bar = tqdm(total=texts, desc="reranking", unit="text")
        return cast("AbstractContextManager[tqdm[Any]]", bar)

    def _run(
        self, engine: Engine, encoded: EncodedTexts, expected: int, bar: "tqdm[Any] | None"
    ) -> FloatArray:
        """The model's rows. The bar expects `expected` rows; an embedder has one per text."""
        run = partial(engine.run, encoded.sequences, encoded.positions, self._limits)
        if bar is None:
            return run()
        bar.total += len(encoded.sequences) - expected
        return run(on_batch=bar.update)

    def _warn_once(self, cut: Counter[str], pairs: int) -> None:
        if not cut:
            return
        if next(self._first_warning, False):
            logger.warning(
                "%d of %d pairs were longer than %s tokens and were cut; logged once per scorer",
                cut.total(),
                pairs,
                " or ".join(f"{name}={getattr(self._method.options, name)}" for name in cut),
            )

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise RerankError(f"the scorer of {self._model} was closed; load it again")
        return self._engine


def _check_texts(texts: Sequence[str], what: str = "text") -> list[str]:
    return [check_text(text, what, index) for index, text in enumerate(texts)]
