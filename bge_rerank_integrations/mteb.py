"""Wrap a scorer as a model that `mteb` can evaluate on its reranking tasks."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bge_rerank_integrations.base.contract import check_scorer, checked_scores
from bge_rerank_integrations.errors import InvalidInputError, missing_extra
from bge_rerank_integrations.types import FloatArray, Scorer

with missing_extra("mteb"):
    from mteb.models.model_meta import ModelMeta


class MTEBReranker:
    """A scorer behind mteb's cross-encoder interface: `mteb.evaluate(MTEBReranker(scorer), tasks)`.

    mteb joins a document's title and text, and a query and its instruction, before it calls the
    model. Its batch size is not used: a scorer makes its own batches, which change no score.

    `name` is the "organization/model" under which mteb stores the results; the default is the start
    of the scorer's name, without the details. mteb reuses stored results of the same name and
    revision. The revision is therefore a hash of the scorer's whole name: scorers with equal names
    give equal scores.

    Raises `InvalidInputError` if `scorer` is not a scorer or `name` has not exactly one slash.
    """

    def __init__(self, scorer: Scorer, *, name: str | None = None) -> None:
        check_scorer(scorer, "scorer")
        self.scorer = scorer
        name = _own_name(scorer.name) if name is None else name
        if name.count("/") != 1 or not all(name.split("/")):
            raise InvalidInputError(f"name is {name!r}; mteb requires 'organization/model'")
        digest = hashlib.sha256(scorer.name.encode("utf-8", "backslashreplace")).hexdigest()
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": name,
                "revision": digest[:40],
                "model_type": ["cross-encoder"],
                "modalities": ["text"],
            }
        )

    def predict(
        self,
        inputs1: Iterable[Mapping[str, Sequence[str]]],
        inputs2: Iterable[Mapping[str, Sequence[str]]],
        *,
        task_metadata: Any,  # noqa: ARG002
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: Any = None,  # noqa: ARG002
        **options: Any,  # noqa: ARG002  # batch_size and the like, of mteb's interface
    ) -> FloatArray:
        """The raw score of each query in `inputs1` with its document in `inputs2`.

        One float32 per pair, in the same order. Raises `InvalidInputError` for inputs that are not
        text or differ in number, and what the scorer raises.
        """
        queries, documents = _texts(inputs1), _texts(inputs2)
        if len(queries) != len(documents):
            raise InvalidInputError(
                f"mteb gave {len(queries)} queries for {len(documents)} documents; it must give "
                "one for each"
            )
        return checked_scores(self.scorer, list(zip(queries, documents, strict=True)))


def _own_name(name: str) -> str:
    """The hub id at the start of a scorer's name, or "local/" and the last part of its path."""
    model = name.partition("#")[0]
    if model.count("/") == 1 and all(model.split("/")):
        return model
    parts = [part for part in model.split("/") if part]
    return f"local/{parts[-1] if parts else 'scorer'}"


def _texts(batches: Iterable[Mapping[str, Sequence[str]]]) -> list[str]:
    texts: list[str] = []
    for batch in batches:
        if "text" not in batch:
            raise InvalidInputError(
                f"mteb gave inputs of {sorted(batch)} and no text; only text can be reranked here"
            )
        texts += batch["text"]
    return texts
