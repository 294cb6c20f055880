"""What a tracer sees: one run named BGERerank, under its parent, with inputs, outputs, errors."""

import asyncio
import threading
from typing import Any, cast

import pytest
from langchain_core.callbacks import (
    AsyncCallbackHandler,
    AsyncCallbackManager,
    BaseCallbackHandler,
    CallbackManager,
)
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler

from bge_rerank_integrations import InvalidInputError
from bge_rerank_integrations.langchain import BGERerank
from tests.fakes import BrokenScorer, WordOverlapScorer
from tests.langchain.foxes import (
    NO_SUCH_MODEL,
    QUERY,
    documents,
    positions,
    word_overlap_rerank,
)


async def compress(reranker: BGERerank, how: str, *args: Any, **kwargs: Any) -> list[Document]:
    if how == "sync":
        return reranker.compress_documents(*args, **kwargs)
    return await reranker.acompress_documents(*args, **kwargs)


sync_and_async = pytest.mark.parametrize("how", ["sync", "async"])
every_kind_of_callbacks = pytest.mark.parametrize(
    "wrap",
    [
        lambda handler: [handler],
        lambda handler: CallbackManager(handlers=[handler]),
        lambda handler: AsyncCallbackManager(handlers=[handler]),
    ],
    ids=["list", "CallbackManager", "AsyncCallbackManager"],
)


@sync_and_async
@every_kind_of_callbacks
async def test_the_run_holds_query_documents_and_results(how: str, wrap: Any) -> None:
    runs, given = RunCollectorCallbackHandler(), documents()
    ranked = await compress(word_overlap_rerank(), how, given, QUERY, callbacks=wrap(runs))
    (run,) = runs.traced_runs
    assert run.name == "BGERerank"
    assert run.inputs == {"documents": documents(), "query": QUERY}
    assert run.outputs == {"output": ranked}
    assert positions(ranked) == [1, 3, 2]
    assert run.error is None
    assert run.end_time is not None
    assert run.child_runs == []


@sync_and_async
async def test_callbacks_are_optional(how: str) -> None:
    reranker = word_overlap_rerank()
    assert positions(await compress(reranker, how, documents(), QUERY)) == [1, 3, 2]
    assert positions(await compress(reranker, how, documents(), QUERY, None)) == [1, 3, 2]
    assert positions(await compress(reranker, how, documents(), QUERY, [])) == [1, 3, 2]


@sync_and_async
async def test_callbacks_may_be_given_by_position(how: str) -> None:
    runs = RunCollectorCallbackHandler()
    await compress(word_overlap_rerank(), how, documents(), QUERY, [runs])
    assert [run.name for run in runs.traced_runs] == ["BGERerank"]


@sync_and_async
async def test_the_run_is_a_child_of_the_manager_it_was_given(how: str) -> None:
    runs = RunCollectorCallbackHandler()
    parent = CallbackManager.configure([runs]).on_chain_start({}, {"input": 1}, name="parent")
    await compress(word_overlap_rerank(), how, documents(), QUERY, callbacks=parent.get_child())
    parent.on_chain_end({})
    (root,) = runs.traced_runs
    assert [run.name for run in root.child_runs] == ["BGERerank"]


@sync_and_async
async def test_without_callbacks_it_is_a_child_of_the_runnable_around_it(how: str) -> None:
    runs, reranker = RunCollectorCallbackHandler(), word_overlap_rerank()
    step = RunnableLambda(
        lambda query: reranker.compress_documents(documents(), query),
        afunc=lambda query: reranker.acompress_documents(documents(), query),
        name="step",
    )
    if how == "sync":
        step.invoke(QUERY, {"callbacks": [runs]})
    else:
        await step.ainvoke(QUERY, {"callbacks": [runs]})
    (root,) = runs.traced_runs
    assert (root.name, [run.name for run in root.child_runs]) == ("step", ["BGERerank"])


@sync_and_async
async def test_nothing_runs_when_there_is_nothing_to_score(how: str) -> None:
    runs, reranker = RunCollectorCallbackHandler(), word_overlap_rerank()
    assert await compress(reranker, how, [], QUERY, callbacks=[runs]) == []
    assert len(await compress(reranker, how, documents(), " ", callbacks=[runs])) == 3
    assert runs.traced_runs == []
    assert reranker.scorer.calls == 0


@sync_and_async
async def test_a_scorers_error_ends_the_run_and_comes_out_unchanged(how: str) -> None:
    runs, reranker = RunCollectorCallbackHandler(), word_overlap_rerank(scorer=BrokenScorer())
    with pytest.raises(RuntimeError, match="the device is gone"):
        await compress(reranker, how, documents(), QUERY, callbacks=[runs])
    (run,) = runs.traced_runs
    assert (run.name, run.end_time is not None) == ("BGERerank", True)
    assert "RuntimeError('the device is gone')" in str(run.error)
    assert not run.outputs


@sync_and_async
async def test_loading_is_part_of_the_run(how: str) -> None:
    runs, reranker = RunCollectorCallbackHandler(), BGERerank(model=NO_SUCH_MODEL)
    with pytest.raises(FileNotFoundError):
        await compress(reranker, how, documents(), QUERY, callbacks=[runs])
    assert "ModelNotFound" in str(runs.traced_runs[0].error)


@sync_and_async
async def test_the_inputs_in_the_trace_are_a_list_of_their_own(how: str) -> None:
    runs, given = RunCollectorCallbackHandler(), documents()
    await compress(word_overlap_rerank(), how, given, QUERY, callbacks=[runs])
    given.clear()
    assert len(cast("list[Document]", runs.traced_runs[0].inputs["documents"])) == 5


class Events(BaseCallbackHandler):
    """Writes down which event came, and on which thread."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.threads: set[int] = set()

    def _note(self, event: str) -> None:
        self.seen.append(event)
        self.threads.add(threading.get_ident())

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self._note(f"start {kwargs['name']}")

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self._note("end")

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self._note(f"error {type(error).__name__}")


class AsyncEvents(AsyncCallbackHandler):
    """The same, for an asynchronous handler."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self.seen.append(f"start {kwargs['name']}")

    async def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.seen.append("end")

    async def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.seen.append(f"error {type(error).__name__}")


@sync_and_async
@pytest.mark.parametrize("handler_type", [Events, AsyncEvents])
async def test_start_and_end_or_error_are_paired(
    how: str, handler_type: type[Events] | type[AsyncEvents]
) -> None:
    events = handler_type()
    await compress(word_overlap_rerank(), how, documents(), QUERY, callbacks=[events])
    assert events.seen == ["start BGERerank", "end"]
    broken = word_overlap_rerank(scorer=BrokenScorer())
    with pytest.raises(RuntimeError):
        await compress(broken, how, documents(), QUERY, callbacks=[events])
    assert events.seen[2:] == ["start BGERerank", "error RuntimeError"]


@sync_and_async
async def test_a_step_of_a_chain_is_one_run_and_not_two(how: str) -> None:
    runs, step = RunCollectorCallbackHandler(), word_overlap_rerank().as_runnable()
    request = {"documents": documents(), "query": QUERY}
    if how == "sync":
        ranked = step.invoke(request, {"callbacks": [runs]})
    else:
        ranked = await step.ainvoke(request, {"callbacks": [runs]})
    (run,) = runs.traced_runs
    assert (run.name, run.child_runs) == ("BGERerank", [])
    assert positions(ranked) == [1, 3, 2]
    with pytest.raises(InvalidInputError):
        step.invoke({"documents": ["a"], "query": QUERY}, {"callbacks": [runs]})
    assert "InvalidInputError" in str(runs.traced_runs[1].error)


class ToBrowser(AsyncCallbackHandler):
    """Sends every event over one connection, which belongs to the loop that opened it."""

    def __init__(self) -> None:
        self.connection = asyncio.Lock()
        self.sent: list[str] = []

    async def _send(self, event: str) -> None:
        async with self.connection:
            await asyncio.sleep(0)
            self.sent.append(event)

    async def on_chain_start(self, *_: Any, **__: Any) -> None:
        await self._send("start")

    async def on_custom_event(self, name: str, *_: Any, **__: Any) -> None:
        await self._send(name)

    async def on_chain_end(self, *_: Any, **__: Any) -> None:
        await self._send("end")


async def test_an_async_handler_gets_every_event_on_the_callers_loop() -> None:
    handler = ToBrowser()

    async def other_request() -> None:
        while True:
            async with handler.connection:
                await asyncio.sleep(0)

    busy = asyncio.create_task(other_request())
    await BGERerank(scorer=WordOverlapScorer()).acompress_documents(
        documents(), QUERY, callbacks=[handler]
    )
    busy.cancel()
    assert handler.sent == ["start", "bge_rerank_trace", "end"]
