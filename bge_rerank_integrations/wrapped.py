"""A loaded scorer with what the caller wants around it: windows for long passages, a cache."""

from bge_rerank_integrations.base.address import is_address
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.types import LongPassages, Scorer
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore, ScoreStore
from bge_rerank_integrations.wrappers.windows import UncutScorer, WindowedScorer

IN_MEMORY = ":memory:"


def wrapped_scorer(
    scorer: Scorer,
    *,
    model: str,
    long_passages: LongPassages = "cut",
    score_cache: str | None = None,
) -> Scorer:
    """The scorer of `model`, or a `WindowedScorer`, `UncutScorer` or `CachedScorer` around it.

    `score_cache` is a file's path, or ":memory:" for a cache of this process. Raises
    `InvalidInputError` for an unknown `long_passages`, for windows around a scorer whose tokenizer
    is not here, and for a file of scores from a server that was given without a model's name.
    """
    if long_passages == "windows":
        scorer = WindowedScorer(scorer)
    elif long_passages not in ("cut", "error"):
        raise InvalidInputError(
            f"long_passages is {long_passages!r}; it must be 'cut', 'windows' or 'error'"
        )
    loaded = scorer
    if score_cache is not None:
        scorer = CachedScorer(scorer, _open_store(score_cache, model))
    return UncutScorer(scorer, measured_by=loaded) if long_passages == "error" else scorer


def _open_store(place: str, model: str) -> ScoreStore:
    if place == IN_MEMORY:
        return MemoryStore()
    if is_address(model):
        raise InvalidInputError(
            "score_cache is a file, and nothing says which model the server runs, now and later: "
            "give its name as model, and the address as base_url"
        )
    from bge_rerank_integrations.wrappers.sqlite_store import (
        SqliteStore,  # a Python may lack sqlite3
    )

    return SqliteStore(place)
