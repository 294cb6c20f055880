"""What LangChain's adapter is given: requests and documents, read and checked."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document
from typing_extensions import TypedDict  # pydantic refuses typing's before Python 3.12

from bge_rerank_integrations.base.contract import check_text
from bge_rerank_integrations.errors import InvalidInputError


class RerankInput(TypedDict):
    """What `BGERerank.as_runnable()` is invoked with; further keys are ignored."""

    documents: Sequence[Document]
    query: str


def read_request(request: Any) -> RerankInput:
    """The request with a list of its own, checked; raises `InvalidInputError`."""
    if not isinstance(request, Mapping) or not {"documents", "query"} <= request.keys():
        has = sorted(map(str, request)) if isinstance(request, Mapping) else type(request).__name__
        raise InvalidInputError(
            f'the input must be a mapping with "documents" and "query"; it is {has}'
        )
    query, documents = request["query"], list(items(request["documents"]))
    if query is None:
        raise InvalidInputError("no query was given; reranking orders documents for a query")
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InvalidInputError(
                f"the item at position {index} is {type(document).__name__}, not a Document; "
                "wrap a text as Document(page_content=text)",
                index=index,
            )
        check_text(document.page_content, "page_content of the document", index)
    return {"documents": documents, "query": check_text(query, "query")}


def nothing_to_score(request: RerankInput) -> bool:
    """Whether there is no document, or no question."""
    return not request["documents"] or not request["query"].strip()


def items(documents: Any) -> Iterable[Any]:
    """The documents, which must be several things; raises `InvalidInputError`."""
    # all of these but None iterate, over characters, keys or fields: an error far from its cause
    if isinstance(documents, str | Mapping | Document) or not isinstance(documents, Iterable):
        raise InvalidInputError(
            f"documents is {type(documents).__name__}; pass a list of documents, [] for none"
        )
    return documents


def to_document(item: Any, index: int) -> Any:
    """A string or mapping as a `Document`; anything else as it is, for `read_request` to judge."""
    if isinstance(item, str):
        return Document(page_content=item)
    if not isinstance(item, Mapping):
        return item
    if "page_content" in item:
        text, metadata = item["page_content"], item.get("metadata") or {}
    elif "text" in item:
        text, metadata = item["text"], {key: item[key] for key in item if key != "text"}
    else:
        raise InvalidInputError(
            f'the document at position {index} has neither "text" nor "page_content"; '
            f"its keys are {sorted(map(str, item))}",
            index=index,
        )
    # checked here: pydantic's own message would hold the value
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(
            f"the metadata of the document at position {index} is {type(metadata).__name__}, "
            "not a mapping",
            index=index,
        )
    return Document(
        page_content=check_text(text, "text of the document", index), metadata=dict(metadata)
    )
