"""The base of both adapters: fields, lazy loading, `rank` and `embed`.

Constructing an adapter loads nothing; the first use does, or `warm_up()`. Pickles and dumps hold
the fields only, never weights or secrets.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from bge_rerank_integrations.base.contract import check_scorer, check_several, is_blank
from bge_rerank_integrations.base.models import DEFAULT_EMBEDDER, DEFAULT_MODEL
from bge_rerank_integrations.base.option_group import Options
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.load import open_embedder, open_wrapped_scorer, release_model
from bge_rerank_integrations.options import (
    EmbedderOptions,
    ModelName,
    RankingOptions,
    ScorerOptions,
    WrapperOptions,
    reject_inapplicable_options,
)
from bge_rerank_integrations.ranking.passages import about_blanks, refuse_blanks
from bge_rerank_integrations.ranking.reranker import Reranker
from bge_rerank_integrations.types import RerankResult, Scorer

logger = logging.getLogger("bge_rerank_integrations")

RAW_SCORE_KEY = "rerank_raw_score"
"""Metadata key that `include_logit` writes, in both frameworks."""

SCORED_KEY = "rerank_scored"
"""Metadata key, in both frameworks: False if scoring failed and `on_error` is "keep"."""

EVIDENCE_KEYS = {
    "rerank_evidence": "text",
    "rerank_evidence_start": "start",
    "rerank_evidence_end": "end",
    "rerank_evidence_score": "score",
}
"""Metadata keys that `explain` writes in both frameworks, each with its field of `Evidence`.

Many stores take flat values only. The text shows whether the offsets still fit a changed passage.
"""

NOTE_KEYS = frozenset({RAW_SCORE_KEY, SCORED_KEY, *EVIDENCE_KEYS})

OnTrace = Callable[[RerankTrace], object]
Item = TypeVar("Item")


def read_items(
    given: object, kind: type[Item], name: str, remedy: Callable[[Any], str]
) -> list[Item]:
    """The framework's objects in a new list; raises `InvalidInputError` for anything else.

    `name` is the framework's word for such an object; `remedy` says how to convert another object.
    """
    # these iterate too, over characters, keys or fields, and would fail far from the cause
    if isinstance(given, str | Mapping | kind) or not isinstance(given, Iterable):
        raise InvalidInputError(
            f"{name}s is {type(given).__name__}; pass a list of {kind.__name__}, [] for none"
        )
    items: list[Any] = list(given)
    for index, item in enumerate(items):
        if not isinstance(item, kind):
            found, package = type(item), kind.__module__.partition(".")[0]
            # name the module too: both frameworks have a `Document`
            place = "" if found.__module__ == "builtins" else f"{found.__module__}."
            raise InvalidInputError(
                f"the item at position {index} is {place}{found.__name__}, not a {kind.__name__} "
                f"of {package}; {remedy(item)}",
                index=index,
            )
    return items


class ModelFields(Options):
    """The fields that name a model or a scorer, and its lazy loading."""

    model_config = ConfigDict(validate_assignment=True)

    model: ModelName = DEFAULT_MODEL
    lazy_load: bool = True
    """False loads the model at construction."""
    scorer: Annotated[Any, Field(exclude=True, repr=False)] = None
    """A scorer to use instead of loading `model`; it cannot be serialized."""

    _bge_groups: ClassVar[tuple[type[Options], ...]]
    """The options that decide what is loaded."""
    _bge_open: ClassVar[Callable[..., Scorer]]
    """Loads the model with these options."""

    # No lock: loading is thread-safe, and two threads that load at the same time get two light
    # scorers over one shared engine.
    _bge_loaded: tuple[tuple[Any, ...], Any] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _bge_check_scorer(self) -> Self:
        if self.scorer is not None:
            check_scorer(self.scorer, "scorer")
            reject_inapplicable_options(self, "with a scorer")
        return self

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if not self.lazy_load:
            self.warm_up()

    def warm_up(self) -> Self:
        """Load the model now rather than at first use; returns the adapter itself."""
        self.loaded_scorer()
        return self

    def close(self) -> None:
        """Release the model, also from `keep_alive`; the next use loads it again.

        Its memory is freed as soon as no other adapter or scorer uses it.
        """
        self._bge_loaded = None
        release_model(self.model)

    def loaded_scorer(self) -> Any:
        """The adapter's scorer, loaded on the first call; any number of threads may call this."""
        if self.scorer is not None:
            return self.scorer
        groups, loaded = [self.group(group) for group in self._bge_groups], self._bge_loaded
        # The process is part of the key: a model loaded before a fork cannot be used after it.
        key = (os.getpid(), self.model, *groups)
        if loaded is None or loaded[0] != key:
            loaded = self._bge_loaded = (key, self._bge_open(self.model, *groups))
        return loaded[1]

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        values = self.__dict__  # empty if a traceback shows an object whose validation failed
        scorer = values.get("scorer")
        yield "model", values.get("model") if scorer is None else scorer.name
        for name, field in type(self).model_fields.items():
            value = values.get(name, field.default)
            if name != "model" and field.repr and not field.exclude and value != field.default:
                yield name, value

    @model_serializer(mode="wrap")
    def _bge_serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        if self.scorer is not None:
            raise InvalidInputError(
                f"this adapter was given a scorer object ({self.scorer.name}), which cannot be "
                "serialized; give model=... instead to serialize or pickle the adapter"
            )
        fields: dict[str, Any] = handler(self)
        return fields

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        return partial(type(self), **self.model_dump()), ()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()  # the weights are shared by design

    def __eq__(self, other: object) -> bool:
        # Only settings: pydantic would also compare loaded models, and secrets and callback
        # managers, which a round trip does not restore.
        if type(self) is not type(other) or not isinstance(other, ModelFields):
            return NotImplemented
        settings = [name for name, field in type(self).model_fields.items() if not field.exclude]
        return self.scorer is other.scorer and all(
            getattr(self, name) == getattr(other, name) for name in settings
        )


class EmbedderFields(EmbedderOptions, ModelFields):
    """The options of an embedder, and its vectors in the form that both frameworks take."""

    _bge_groups: ClassVar = (EmbedderOptions,)
    _bge_open: ClassVar = staticmethod(open_embedder)

    model: ModelName = DEFAULT_EMBEDDER

    @model_validator(mode="after")
    def _bge_check_vectors(self) -> Self:
        if self.scorer is not None and not hasattr(self.scorer, "embed"):
            raise InvalidInputError(
                f"scorer is a {type(self.scorer).__name__}, which gives no vectors; give "
                f"load_scorer({DEFAULT_EMBEDDER!r}) or another embedder"
            )
        return self

    def embed(self, texts: Sequence[str], *, as_queries: bool = False) -> list[list[float]]:
        """A unit vector for each text; see `LocalScorer.embed`. An empty list loads no model."""
        given = list(check_several(texts, "texts", "[text, ...]"))
        if not given:
            return []
        vectors = self.loaded_scorer().embed(given, as_queries=as_queries)
        return [vector.tolist() for vector in vectors]


class ScorerFields(WrapperOptions, ScorerOptions, ModelFields):
    """The options of `load_scorer`, which determine a score."""

    _bge_groups: ClassVar = (ScorerOptions, WrapperOptions)
    _bge_open: ClassVar = staticmethod(open_wrapped_scorer)


class RerankFields(RankingOptions, ScorerFields):
    """The options of `Reranker`, which determine a ranking, in addition to the scorer's."""

    include_logit: bool = False
    """Write the raw score (a cross-encoder's logit) to metadata['rerank_raw_score'] of the returned
    copy."""
    _bge_item: ClassVar[str] = "passage"
    """The framework's word for a passage, in messages."""

    _bge_built: Reranker | None = PrivateAttr(default=None)
    _bge_warned: set[str] = PrivateAttr(default_factory=set)
    """Warnings that were logged; copies share this set."""

    def warm_up(self) -> Self:
        """Load the model and the calibration now; returns the adapter itself.

        Raises what a request would raise, also for settings that this model does not support.
        """
        self.reranker()
        return self

    def close(self) -> None:
        """Release the model; see `ModelFields.close`."""
        self._bge_built = None
        super().close()

    def reranker(self, *, own_span: bool = True) -> Reranker:
        """A reranker with this adapter's current settings over its (shared) scorer.

        It is the same object until a setting changes. `own_span=False` overrides `otel_span`.
        """
        scorer, ranking, built = self.loaded_scorer(), self.group(RankingOptions), self._bge_built
        ranking.otel_span &= own_span
        if built is None or built.scorer is not scorer or built.options != ranking:
            built = self._bge_built = Reranker.from_options(scorer, ranking)
            built.warned_of_blanks = True  # `rank` warns, with the framework's word
        return built

    def rank(
        self,
        query: str,
        texts: Sequence[str],
        own_texts: Sequence[str],
        *,
        on_trace: OnTrace | None = None,
        read_texts: Sequence[str] | None = None,
        ids: Sequence[str | None] | None = None,
        own_span: bool = True,
    ) -> list[tuple[int, RerankResult | None]]:
        """The texts' positions in their new order, each with its result, or None for a blank text.

        `own_texts` are the passages' texts without metadata; for the other lists see
        `PassageLists`. With a blank query the texts keep their order. No model is loaded if there
        is nothing to score.
        """
        everything: Sequence[int] = range(len(texts))
        if is_blank(query):
            if texts:
                logger.warning(
                    "The query is blank: %d %ss keep their order, unscored.",
                    len(texts),
                    self._bge_item,
                )
            return [(index, None) for index in everything[: self.top_n]]
        blank = [index for index, text in enumerate(own_texts) if is_blank(text)]
        if blank and self.no_text == "last" and "no text" not in self._bge_warned:
            self._bge_warned.add("no text")
            about = about_blanks(len(blank), len(texts), f"{self._bge_item}s")
            logger.warning("%s. Logged once per reranker.", about)
        if len(blank) == len(texts):
            return [(index, None) for index in self.blanks_kept(everything)[: self.top_n]]
        reranker = self.reranker(own_span=own_span)
        if on_trace is not None:
            reranker = copy(reranker)
            reranker.on_trace = on_trace
        results = reranker.rerank(
            query, texts, evidence_texts=own_texts, read_texts=read_texts, ids=ids
        )
        return [(one.index, None if one.index in blank else one) for one in results]

    def check_texts(self, own_texts: Sequence[str], name: Callable[[int], str]) -> None:
        """Raise `InvalidInputError`, with its name, for a blank text if `no_text` is "raise"."""
        if self.no_text == "raise":
            refuse_blanks((i for i, text in enumerate(own_texts) if is_blank(text)), name)

    def notes(self, result: RerankResult | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata that a result adds to a passage's own `metadata`."""
        notes: dict[str, Any] = {}
        if self.include_logit:
            notes[RAW_SCORE_KEY] = (
                result.raw_score if result is not None and result.scored else None
            )
        if result is not None and (not result.scored or SCORED_KEY in metadata):
            notes[SCORED_KEY] = result.scored
        if self.explain:
            found = result and result.evidence
            notes |= {key: found and getattr(found, part) for key, part in EVIDENCE_KEYS.items()}
        return notes
