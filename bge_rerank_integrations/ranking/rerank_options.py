"""The options of a `Reranker`, each checked where it is given."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import get_args

from bge_rerank_integrations.base.contract import check_several, check_str
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.option_checks import real_number, whole_number
from bge_rerank_integrations.ranking.calibration import Calibration
from bge_rerank_integrations.ranking.cutoffs import Cutoff
from bge_rerank_integrations.types import CountsTokens, OnError, Scorer


def read_calibration(given: Calibration | str | Path | None, scorer: Scorer) -> Calibration | None:
    """The calibration, read if it is a file; raises `InvalidInputError` if of another scorer."""
    if given is None:
        return None
    calibration = given if isinstance(given, Calibration) else Calibration.load(given)
    calibration.check_scorer(scorer.name)
    return calibration


def check_cutoff(cutoff: Cutoff | None, scorer: Scorer, calibration: Calibration | None) -> Cutoff:
    """The cut-off, without rules for None; `InvalidInputError` if it cannot be applied."""
    if cutoff is None:
        return Cutoff()
    if not isinstance(cutoff, Cutoff):
        raise InvalidInputError(
            f"cutoff is a {type(cutoff).__name__}; give Cutoff(min_n=2), with your rules"
        )
    if cutoff.needs_calibration and calibration is None:
        raise InvalidInputError(
            "min_probability and target_recall need a calibration, which says what a raw score "
            "means on your data: make one with bge-rerank calibrate"
        )
    if cutoff.target_recall is not None and calibration is not None:
        calibration.threshold(cutoff.target_recall)  # too few relevant pairs raise here
    if cutoff.token_budget is not None:
        token_counter(scorer)([])  # a cache has the method, and raises if its scorer has not
    return cutoff


def token_counter(scorer: Scorer) -> Callable[[Sequence[str]], list[int]]:
    """The scorer's `count_tokens`; raises `InvalidInputError` if it has none."""
    if not isinstance(scorer, CountsTokens):
        raise InvalidInputError(
            f"token_budget needs a scorer that can count tokens; {scorer.name} cannot"
        )
    return scorer.count_tokens


def check_threshold(threshold: object, *, most: float) -> float | None:
    """Return the threshold, or None for None; `most` is the highest score that can be shown.

    Raises `InvalidInputError` for what is no number, for NaN and for more than that.
    """
    if threshold is None:
        return None
    number = real_number(threshold)
    if number is None:
        raise InvalidInputError(f"score_threshold is {threshold!r}; it must be a number or None")
    if number > most:
        raise InvalidInputError(
            f"score_threshold is {number}, and no score that is shown is above {most:g}, so "
            "nothing would be kept: give one on that scale, or normalize=False and no calibration "
            "for a threshold on raw scores"
        )
    return number


def check_timeout(timeout: object) -> float | None:
    """Return the seconds; raise `InvalidInputError` unless None or a number above 0."""
    if timeout is None:
        return None
    seconds = real_number(timeout)
    if seconds is None or seconds <= 0:
        raise InvalidInputError(
            f"timeout is {timeout!r}; it must be seconds, more than 0, or None for no limit"
        )
    return seconds


def check_top_n(top_n: object) -> int | None:
    """Return `top_n`; raise `InvalidInputError` unless it is None or a whole number from 1."""
    if top_n is None:
        return None
    number = whole_number(top_n)
    if number is None or number < 1:
        raise InvalidInputError(
            f"top_n is {top_n!r}; it must be a whole number from 1, or None for all"
        )
    return number


def check_on_error(on_error: OnError) -> OnError:
    """Return `on_error`; raise `InvalidInputError` unless it is "raise" or "keep"."""
    if on_error not in get_args(OnError):
        raise InvalidInputError(f"on_error is {on_error!r}; it must be 'raise' or 'keep'")
    return on_error


def check_texts(texts: Iterable[str], what: str) -> list[str]:
    """Return the texts as they are; raise `InvalidInputError` for what is not several strings."""
    remedy = "[text, ...], such as the values of a dict or one column of a table"
    several = check_several(texts, f"{what}s", remedy)
    return [check_str(text, what, index) for index, text in enumerate(several)]


def check_evidence_texts(texts: Iterable[str] | None, passages: list[str]) -> list[str]:
    """Return the texts, or the passages for None; `InvalidInputError` unless one for each."""
    if texts is None:
        return passages
    checked = check_texts(texts, "evidence text")
    if len(checked) != len(passages):
        raise InvalidInputError(
            f"there are {len(checked)} evidence_texts for {len(passages)} passages; give one for "
            "each"
        )
    return checked


def about_blanks(query: str, passages: Sequence[str]) -> str | None:
    """What is to be said of texts that are none, which a model scores all the same."""
    blank = sum(not text or text.isspace() for text in passages)
    if not query or query.isspace():
        return (
            f"The query is blank, and the order of {len(passages)} passages means nothing: ask "
            "with a text"
        )
    if blank:
        return (
            f"{blank} of {len(passages)} passages have no text, and their scores mean nothing: "
            "leave them out"
        )
    return None
