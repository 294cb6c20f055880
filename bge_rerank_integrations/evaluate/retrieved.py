"""Get judged queries from the user's own retriever and questions."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bge_rerank_integrations.base.contract import check_text
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.evaluate.judged import JudgedQuery

Relevant = Mapping[str, int] | Iterable[str]
"""The ids of the passages that answer a question, or their grades by id."""


def retrieve_candidates(
    retriever: Any,
    questions: Mapping[str, Relevant],
    *,
    passage_id: Callable[[Any], str] | None = None,
    passage_text: Callable[[Any], str] | None = None,
) -> list[JudgedQuery]:
    """Ask the retriever each question; what it returns are the candidates, in its order.

    `retriever` is a LlamaIndex or LangChain retriever, or a function from a question to a list.
    `questions` maps each question to the ids of the passages that answer it, or to their grades. A
    passage's id is a node's `node_id` or a document's `id`, and its text what the adapters score: a
    node's text with its metadata for embedding, a document's `page_content`. `passage_id` and
    `passage_text` read others, for example `lambda document: document.metadata["source"]`. A
    repeated passage counts at its first position. Retrieved objects are not changed.

    Raises `InvalidInputError` for a retriever or passage of another kind without these functions, a
    passage without an id, one id with different texts, and no questions.
    """
    if not isinstance(questions, Mapping) or not questions:
        raise InvalidInputError(
            "questions must map at least one question to the ids that answer it, as in "
            '{"What do pandas eat?": ["node-17"]}'
        )
    ask = _asking(retriever)
    queries = []
    for number, (question, relevant) in enumerate(questions.items(), start=1):
        candidates: dict[str, str] = {}
        found = ask(check_text(question, "question"))
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise InvalidInputError(
                f"the retriever gave a {type(found).__name__} for question {number}; it must give "
                "a list of passages, which may be empty"
            )
        for item in found:
            key = _checked_id((passage_id or _own_id)(item), number)
            text = check_text((passage_text or _own_text)(item), f"passage {key!r}")
            if candidates.setdefault(key, text) != text:
                raise InvalidInputError(
                    f"question {number} has two candidates of the id {key!r} with different texts: "
                    "give a passage_id that distinguishes passages"
                )
        grades = _grades(relevant, number)
        queries.append(JudgedQuery(str(number), question, candidates, grades))
    return queries


def _asking(retriever: Any) -> Callable[[str], Iterable[Any]]:
    # a LlamaIndex retriever has no `invoke`, and a LangChain one no `retrieve`
    for method in ("retrieve", "invoke"):
        found = getattr(retriever, method, None)
        if callable(found):
            return found  # type: ignore[no-any-return]
    if callable(retriever):
        return retriever  # type: ignore[no-any-return]
    raise InvalidInputError(
        f"retriever is a {type(retriever).__name__}; it must be a LlamaIndex or LangChain "
        "retriever, or a function from a question to a list of passages"
    )


def _own_id(item: Any) -> Any:
    node = getattr(item, "node", None)
    return getattr(item, "id", None) if node is None else node.node_id


def _own_text(item: Any) -> Any:
    node = getattr(item, "node", None)
    if node is not None:
        return node.get_content(metadata_mode="embed")
    if hasattr(item, "page_content"):
        return item.page_content
    raise InvalidInputError(
        f"the retriever gave a {type(item).__name__}, neither a LlamaIndex NodeWithScore nor a "
        "LangChain Document: give passage_text and passage_id"
    )


def _checked_id(key: object, number: int) -> str:
    if not isinstance(key, str) or not key:
        raise InvalidInputError(
            f"a candidate of question {number} has the id {key!r}, not a str: set ids when you "
            "index, or give a passage_id that reads the metadata"
        )
    return key


def _grades(relevant: Relevant, number: int) -> dict[str, int]:
    if isinstance(relevant, str) or not isinstance(relevant, Iterable):
        raise InvalidInputError(
            f"the answers to question {number} are a {type(relevant).__name__}; give a list of "
            "ids, or grades by id"
        )
    return dict(relevant) if isinstance(relevant, Mapping) else dict.fromkeys(relevant, 1)
