"""A search service with several workers: candidates at once, then the reranked order.

    PYTHONPATH=examples uvicorn fastapi_service:app --workers 2
    curl -N "http://127.0.0.1:8000/search?query=Who+first+used+the+word+oxygen"

Each worker loads the model once, at its start; all its requests share it. The answer is a stream of
JSON lines: first the candidates of BM25, then the best passages with their scores. `arerank` leaves
the event loop free meanwhile, and with a time limit BM25's order is kept if scoring takes too long.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import StreamingResponse
from first_stage import choose_model, open_first_stage

from bge_rerank_integrations import load_reranker

CANDIDATES, KEPT = 20, 3


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model before the first request."""
    app.state.search = open_first_stage("bm25")
    app.state.reranker = load_reranker(choose_model(None), top_n=KEPT, timeout=30, on_error="keep")
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/search")
async def search(query: Annotated[str, Query(min_length=1, max_length=1000)]) -> StreamingResponse:
    """JSON lines: `{"candidates": [texts]}`, then `{"best": [{"score", "text"}]}`."""
    (found,) = app.state.search.candidates([query], CANDIDATES)
    texts = [passage.text for passage, _ in found]

    async def lines() -> AsyncIterator[str]:
        yield line(candidates=texts[:KEPT])
        results = await app.state.reranker.arerank(query, texts)
        yield line(
            best=[
                {"score": result.score if result.scored else None, "text": texts[result.index]}
                for result in results[:KEPT]
            ]
        )

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def line(**content: Any) -> str:
    """One line of the stream."""
    return json.dumps(content, ensure_ascii=False) + "\n"
