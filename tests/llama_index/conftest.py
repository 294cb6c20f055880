"""What the LlamaIndex tests share: the candidate nodes and recorders of events."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation.span_handlers import SimpleSpanHandler
from pydantic import Field, PrivateAttr

TEXTS = ["the dog sleeps", "red wine", "a red fox", "the fox"]
"""For the query "red fox": 0, 1, 2 and 1 words in common."""


class EventRecorder(BaseEventHandler):
    """Keeps every event, and lets a test wait for a rerank's end."""

    events: list[Any] = Field(default_factory=list)
    _ended: threading.Event = PrivateAttr(default_factory=threading.Event)

    @classmethod
    def class_name(cls) -> str:
        return "EventRecorder"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.events.append(event)
        if isinstance(event, ReRankEndEvent):
            self._ended.set()

    def wait_for_end(self) -> bool:
        return self._ended.wait(60)

    @property
    def reranks(self) -> list[ReRankStartEvent | ReRankEndEvent]:
        return [e for e in self.events if isinstance(e, ReRankStartEvent | ReRankEndEvent)]


class CallbackRecorder(BaseCallbackHandler):
    """Keeps the payloads of the reranking events of the older callback system."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.starts: list[dict[EventPayload, Any] | None] = []
        self.ends: list[dict[EventPayload, Any] | None] = []

    def on_event_start(
        self, event_type: CBEventType, payload: Any = None, *args: Any, **kwargs: Any
    ) -> str:
        if event_type == CBEventType.RERANKING:
            self.starts.append(payload)
        return ""

    def on_event_end(
        self, event_type: CBEventType, payload: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        if event_type == CBEventType.RERANKING:
            self.ends.append(payload)

    def start_trace(self, trace_id: str | None = None) -> None:
        pass

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        pass


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    """Four nodes n0..n3 with the retrieval scores 0.9, 0.8, 0.7, 0.6."""
    return [
        NodeWithScore(node=TextNode(id_=f"n{index}", text=text), score=0.9 - index / 10)
        for index, text in enumerate(TEXTS)
    ]


@pytest.fixture
def recorder() -> Iterator[EventRecorder]:
    dispatcher = get_dispatcher("bge_rerank_integrations.llama_index")
    before = list(dispatcher.event_handlers)
    recorder = EventRecorder()
    dispatcher.add_event_handler(recorder)
    yield recorder
    dispatcher.event_handlers = before


@pytest.fixture
def spans() -> Iterator[SimpleSpanHandler]:
    dispatcher = get_dispatcher("bge_rerank_integrations.llama_index")
    before = list(dispatcher.span_handlers)
    # given fresh containers, because this class's defaults are shared by all its instances
    spans = SimpleSpanHandler(open_spans={}, completed_spans=[], dropped_spans=[])
    dispatcher.add_span_handler(spans)
    yield spans
    dispatcher.span_handlers = before
