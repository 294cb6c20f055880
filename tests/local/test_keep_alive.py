"""A model stays for a while after its last user, and a second load soon after is named."""

import gc
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document

from bge_rerank_integrations import OutOfMemoryError, load_scorer
from bge_rerank_integrations.langchain import BGERerank
from bge_rerank_integrations.local import keep_alive as keep_alive_module
from bge_rerank_integrations.local.engine import Engine, _warn_of_loads, shared_engine
from bge_rerank_integrations.local.keep_alive import MAX_KEPT, Kept, after, keep_alive
from tests import tiny_models
from tests.base.forking import in_child
from tests.local.oracle import OracleForward, engine_over

HOUR = 3600.0
PAIRS = [("what is a panda?", "The giant panda is a bear.")]


def engine_of(scorer: Any) -> "weakref.ref[Engine]":
    return weakref.ref(scorer._loaded())


def test_an_adapter_built_for_each_request_loads_its_model_once(tmp_path: Path) -> None:
    folder = tiny_models.build_reranker_base(tmp_path)
    documents = [Document(page_content="Pandas eat bamboo."), Document(page_content="Bread.")]
    engines = []
    for _ in range(3):
        adapter = BGERerank(model=str(folder), device="cpu", keep_alive=HOUR)
        assert len(adapter.compress_documents(documents, "What do pandas eat?")) == 2
        del adapter
        gc.collect()
        engines.append(engine_of(load_scorer(folder, device="cpu", keep_alive=HOUR)))
        gc.collect()
    assert engines[0]() is not None
    assert all(engine() is engines[0]() for engine in engines)


@pytest.mark.parametrize("seconds", [0, HOUR])
def test_with_zero_it_goes_with_its_last_user(tmp_path: Path, seconds: float) -> None:
    scorer = load_scorer(tiny_models.build_reranker_base(tmp_path), keep_alive=seconds)
    engine = engine_of(scorer)
    del scorer
    gc.collect()
    assert (engine() is None) == (seconds == 0)


def test_close_frees_it_at_once(tmp_path: Path) -> None:
    scorer = load_scorer(tiny_models.build_reranker_base(tmp_path), keep_alive=HOUR)
    engine = engine_of(scorer)
    scorer.close()
    gc.collect()
    assert engine() is None


def test_close_frees_what_an_earlier_user_left(tmp_path: Path) -> None:
    folder = tiny_models.build_reranker_base(tmp_path)
    left = load_scorer(folder, keep_alive=HOUR)
    freed = threading.Event()
    weakref.finalize(left._loaded(), freed.set)
    del left
    gc.collect()
    last = load_scorer(folder, keep_alive=HOUR)
    assert not freed.is_set()
    last.close()
    assert freed.wait(60), "the thread that keeps it releases it"


def test_it_goes_when_its_time_is_over(reranker_base: Path) -> None:
    class User:
        """Holds an engine."""

    user, freed = User(), threading.Event()
    engine = engine_over(OracleForward(), reranker_base)
    weakref.finalize(engine, freed.set)
    keep_alive(user, engine, 1e-9)
    del user, engine
    assert freed.wait(60)


def test_the_last_models_are_kept_and_each_once(reranker_base: Path) -> None:
    def kept(model: str, end: float) -> Kept:
        engine = engine_over(OracleForward(), reranker_base)
        return Kept(model, engine, end)

    first, again, second, third = kept("a", 1), kept("a", 2), kept("b", 3), kept("c", 4)
    assert after([first], again) == [again]
    assert after([again], second) == [again, second]
    assert after([again, second], third) == [second, third]
    assert MAX_KEPT == 2
    assert after([second, third], Kept("b", None, 0.0)) == [third]


def test_a_forked_child_keeps_its_own(tmp_path: Path) -> None:
    folder = tiny_models.build_reranker_base(tmp_path)
    load_scorer(folder, keep_alive=HOUR)
    gc.collect()

    def use() -> str:
        scorer = load_scorer(folder, keep_alive=HOUR)
        engine, found = engine_of(scorer), scorer.score(PAIRS).shape
        del scorer
        gc.collect()
        return str((engine() is not None, found))

    assert in_child(use) == "(True, (1,))"


def test_a_second_load_within_a_minute_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_models.build_reranker_base(tmp_path)
    _warn_of_loads.cache_clear()

    def load_at(key: str, *times: float) -> list[str]:
        for now in times:
            shared_engine(
                key, lambda: engine_over(OracleForward(), folder), clock=partial(float, now)
            )
            gc.collect()
        return caplog.messages

    assert load_at("more than a minute apart", 100, 161, 230) == []
    (message,) = load_at("close together", 300, 310, 320)
    assert message.startswith("oracle was loaded twice within a minute")
    assert "keep_alive=60" in message


def test_a_model_is_freed_by_a_thread_that_could_not_start_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.build_reranker_base(tmp_path)
    monkeypatch.setattr(keep_alive_module, "_changes", None)
    with monkeypatch.context() as patch:

        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(OutOfMemoryError, match="can't start new thread"):
            load_scorer(folder, device="cpu", keep_alive=HOUR)
    scorer = load_scorer(folder, device="cpu", keep_alive=HOUR)
    scorer.close()
    left = load_scorer(folder, device="cpu", keep_alive=0.01)
    freed = threading.Event()
    weakref.finalize(left._loaded(), freed.set)
    del scorer, left
    gc.collect()
    assert freed.wait(60)
