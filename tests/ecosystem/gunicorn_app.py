"""A WSGI application with an adapter that is made before gunicorn forks.

With LOADED=1 in the environment its model is loaded and has scored before the fork, too.
"""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from langchain_core.documents import Document

from bge_rerank_integrations.langchain import BGERerank
from tests.ecosystem.passages import QUERY, TEXTS

reranker = BGERerank(model=os.environ["MODEL"], device="cpu", top_n=3)


def ranking() -> list[tuple[str, float]]:
    found = reranker.compress_documents([Document(page_content=text) for text in TEXTS], QUERY)
    return [(document.page_content, document.metadata["relevance_score"]) for document in found]


if os.environ.get("LOADED") == "1":
    ranking()


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    answer = json.dumps({"pid": os.getpid(), "ranking": ranking()}).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [answer]
