"""Check the passages of a rerank, and find which are scored, come last or are left out."""

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


class PassageLists(TypedDict, total=False):
    """Lists with one item for each passage, if a passage is more than its own text.

    `evidence_texts` are the passages' own texts, without a title put before them: `explain` looks
    for sentences in them, and `no_text` and `drop_duplicates` apply to them. `token_budget` counts
    the tokens of `read_texts`, which an LLM will read. `ids` are for `drop_duplicates`.
    """

    evidence_texts: Iterable[str] | None
    read_texts: Iterable[str] | None
    ids: Iterable[str | None] | None


@dataclass(frozen=True, slots=True)
class Passages:
    """The caller's texts (`own` and `read`: see `PassageLists`), and positions among them.

    Those in `scored` are scored, those in `late` follow unscored; those in `blank` have no text.
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
        """The warning about a blank query or blank passages, if there is one."""
        if self.pairs and is_blank(self.pairs[0][0]):
            return (
                f"The query is blank, so the order of {len(self.pairs)} passages means nothing: "
                "give a query with text"
            )
        if self.blank and options.no_text == "last":
            return about_blanks(len(self.blank), len(self.pairs), "passages")
        return None


def read_passages(
    query: str, passages: Iterable[str], lists: PassageLists, options: RankingOptions
) -> Passages:
    """Check the texts of a rerank; raises `InvalidInputError` as `Reranker.rerank` says."""
    for name in lists.keys() - PassageLists.__annotations__.keys():
        known = ["top_n", *PassageLists.__annotations__]
        raise InvalidInputError(no_such_option(name, known, "rerank"))
    query = check_text(query, "query")
    given = list(check_several(passages, "passages", REMEDY))
    pairs = CheckedPairs(
        [(query, check_text(text, "passage", i)) for i, text in enumerate(cancellable(given))]
    )
    own = _one_for_each(lists.get("evidence_texts"), given, "evidence text")
    read = _one_for_each(lists.get("read_texts"), given, "read text")
    judged = [own] if own is given else [own, given]
    blank = {i for texts in judged for i, text in enumerate(cancellable(texts)) if is_blank(text)}
    if options.no_text == "raise":
        refuse_blanks(blank, lambda index: f"the passage at position {index}")
    kept: Sequence[int] = range(len(given))
    if options.drop_duplicates:
        kept = _first_of_equals(own, lists.get("ids"), blank)
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
        if text != passage:  # otherwise it was checked as a passage
            check_str(text, what, index)
    return checked


def _first_of_equals(
    own: Sequence[str], ids: Iterable[str | None] | None, blank: Collection[int]
) -> list[int]:
    """Positions of the passages that share neither text nor id with an earlier one that is kept.

    Passages without text, such as images, are compared by id only.
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
    """Raise `InvalidInputError`, with its name, for the first of the passages without text."""
    for index in sorted(blank):
        raise InvalidInputError(
            f"{name(index)} has no text; leave it out, or set no_text to 'last' or 'drop'",
            index=index,
        )


def about_blanks(blank: int, given: int, items: str) -> str:
    """A warning about passages without text."""
    return (
        f"{blank} of {given} {items} have no text and are not scored: they come last, without a "
        "score, or are dropped if a threshold or cut-off is set; no_text='drop' of BGERerank and "
        "Reranker always drops them"
    )
