"""The passages of one rerank: checked, and which of them are scored, come last or are left out."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from bge_rerank_integrations.base.contract import (
    CheckedPairs,
    check_several,
    check_str,
    check_text,
    is_blank,
)
from bge_rerank_integrations.base.deadline import cancellable
from bge_rerank_integrations.base.option_group import no_such_option
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.options import RankingOptions

REMEDY = "[text, ...], such as the values of a dict or one column of a table"


class Beside(TypedDict, total=False):
    """Lists with one item for each passage, where a passage is more than its own text.

    `evidence_texts` are the passages' own texts, without a title put before them: `explain` looks
    for sentences in them, `no_text` and `drop_duplicates` judge them. `read_texts` are the texts
    that will be read in the end, which `token_budget` counts. `ids` are for `drop_duplicates`.
    """

    evidence_texts: Iterable[str] | None
    read_texts: Iterable[str] | None
    ids: Iterable[str | None] | None


@dataclass(frozen=True, slots=True)
class Passages:
    """The caller's texts, for `own` and `read` see `Beside`, and positions among them.

    Those of `scored` are scored, those of `late` follow without a score; `blank` have no text.
    """

    pairs: CheckedPairs
    given: Sequence[str]
    own: Sequence[str]
    read: Sequence[str]
    blank: Collection[int]
    scored: Sequence[int]
    late: Sequence[int]
    duplicates: int

    def warning(self, options: RankingOptions) -> str | None:
        """About a blank query or blank passages."""
        if self.pairs and is_blank(self.pairs[0][0]):
            return (
                f"The query is blank, and the order of {len(self.pairs)} passages means nothing: "
                "ask with a text"
            )
        if self.blank and options.no_text == "last":
            return about_blanks(len(self.blank), len(self.pairs), "passages")
        return None


def read_passages(
    query: str, passages: Iterable[str], beside: Beside, options: RankingOptions
) -> Passages:
    """Check the texts of a rerank; raises `InvalidInputError` as `Reranker.rerank` says."""
    for name in beside.keys() - Beside.__annotations__.keys():
        known = ["top_n", *Beside.__annotations__]
        raise InvalidInputError(no_such_option(name, known, "rerank"))
    query = check_text(query, "query")
    given = list(check_several(passages, "passages", REMEDY))
    pairs = CheckedPairs(
        [(query, check_text(text, "passage", i)) for i, text in enumerate(cancellable(given))]
    )
    own = _one_for_each(beside.get("evidence_texts"), given, "evidence text")
    read = _one_for_each(beside.get("read_texts"), given, "read text")
    judged = [own] if own is given else [own, given]
    blank = {i for texts in judged for i, text in enumerate(cancellable(texts)) if is_blank(text)}
    if options.no_text == "raise":
        refuse_blanks(blank, lambda index: f"the passage at position {index}")
    kept: Sequence[int] = range(len(given))
    if options.drop_duplicates:
        kept = _first_of_equals(own, beside.get("ids"), blank)
    scored = [index for index in kept if index not in blank]
    late = options.blanks_kept([index for index in kept if index in blank])
    return Passages(pairs, given, own, read, blank, scored, late, len(given) - len(kept))


def _one_for_each(texts: Iterable[str] | None, passages: list[str], what: str) -> list[str]:
    if texts is None:
        return passages
    checked = list(check_several(texts, f"{what}s", REMEDY))
    if len(checked) != len(passages):
        raise InvalidInputError(
            f"there are {len(checked)} {what}s for {len(passages)} passages; give one for each"
        )
    for index, (text, passage) in enumerate(zip(checked, passages, strict=True)):
        if text != passage:  # else it is checked already
            check_str(text, what, index)
    return checked


def _first_of_equals(
    own: Sequence[str], ids: Iterable[str | None] | None, blank: Collection[int]
) -> list[int]:
    """Positions of the passages that share neither text nor id with one that is kept before them.

    Passages without text, such as images, are compared by id alone.
    """
    kept, seen = [], set[tuple[str, str]]()
    each = zip(own, ids or [None] * len(own), strict=True)
    for index, (text, known) in enumerate(cancellable(each)):
        keys = {("id", known)} if known is not None else set()
        keys |= {("text", text)} if index not in blank else set()
        if seen.isdisjoint(keys):
            kept.append(index)
            seen |= keys
    return kept


def refuse_blanks(blank: Iterable[int], name: Callable[[int], str]) -> None:
    """Raise `InvalidInputError` for the first of the passages without text, with its name."""
    for index in sorted(blank):
        raise InvalidInputError(
            f"{name(index)} has no text; leave it out, or set no_text to 'last' or 'drop'",
            index=index,
        )


def about_blanks(blank: int, given: int, items: str) -> str:
    """A warning about passages without text."""
    return (
        f"{blank} of {given} {items} have no text and are not scored: they come last, without a "
        "score, or not at all under a threshold or cut-off; no_text='drop', of BGERerank and "
        "Reranker, leaves them out"
    )
