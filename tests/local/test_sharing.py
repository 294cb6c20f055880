"""One copy of a model per process: loaded once, freed with its last user, never a stale one."""

import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bge_rerank_integrations import CheckpointError, ForkedModelError, RerankError, load_scorer
from bge_rerank_integrations.local.device import CPU_BATCH_TOKENS
from bge_rerank_integrations.local.engine import Engine, shared_engine
from tests import tiny_models
from tests.base.forking import in_child
from tests.local.oracle import NO_LIMITS, OracleForward, engine_over, row_of, sequences

PAIRS = [
    ("what is a panda?", "The giant panda is a bear."),
    ("what is a panda?", "Water boils at 100 degrees."),
    ("大熊猫吃什么？", "大熊猫吃竹子。"),
]


def test_sixteen_threads_that_come_first_at_once_load_once(reranker_base: Path) -> None:
    together = threading.Barrier(16)
    loaded: list[Engine] = []

    def load() -> Engine:
        loaded.append(engine_over(OracleForward(), reranker_base))
        return loaded[-1]

    def ask() -> Engine:
        together.wait(60)
        return shared_engine("sixteen", load)

    with ThreadPoolExecutor(16) as pool:
        engines = [future.result() for future in [pool.submit(ask) for _ in range(16)]]
    assert len(loaded) == 1
    assert all(engine is loaded[0] for engine in engines)


def test_two_keys_load_at_the_same_time(reranker_base: Path) -> None:
    both_loading = threading.Barrier(2)

    def load() -> Engine:
        both_loading.wait(60)
        return engine_over(OracleForward(), reranker_base)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda key: shared_engine(key, load), ["one", "two"])
    assert first is not second


def test_a_load_that_failed_is_tried_again(reranker_base: Path) -> None:
    outcomes = iter([CheckpointError("damaged"), None])

    def load() -> Engine:
        if error := next(outcomes):
            raise error
        return engine_over(OracleForward(), reranker_base)

    with pytest.raises(CheckpointError, match="damaged"):
        shared_engine("again", load)
    assert isinstance(shared_engine("again", load), Engine)


def test_freed_when_the_last_user_goes(tmp_path: Path) -> None:
    # a folder of its own: another test may still hold the engine of a shared one
    reranker_base = tiny_models.build_reranker_base(tmp_path)
    loads = 0

    def load() -> Engine:
        nonlocal loads
        loads += 1
        return engine_over(OracleForward(), reranker_base)

    first, second = shared_engine("freed", load), shared_engine("freed", load)
    seen = weakref.ref(first)
    del first
    gc.collect()
    assert seen() is second
    del second
    gc.collect()
    assert seen() is None
    shared_engine("freed", load)
    assert loads == 2


def test_different_text_options_share_one_engine(reranker_base: Path) -> None:
    plain = load_scorer(str(reranker_base), device="cpu")
    other = load_scorer(
        str(reranker_base), device="cpu", max_length=64, query_instruction="Q: ", batch_size=1
    )
    assert plain._engine is other._engine
    expected = plain.score(PAIRS).tolist()
    assert other.score(PAIRS).tolist() != expected
    assert plain.score(PAIRS).tolist() == expected


def test_each_plan_says_what_its_own_caller_asked(reranker_base: Path) -> None:
    """Also where an earlier scorer, which asked for something else, has loaded the model."""
    model = str(reranker_base)
    first = load_scorer(model, device="cpu", max_batch_tokens=64)
    second = load_scorer(model, device="cpu", precision="fp16", batch_size=3)
    assert first._engine is second._engine
    assert first.plan.reasons[0] == second.plan.reasons[0] == "device cpu: requested"
    assert first.plan.reasons[1] == "precision fp32: exact, the default on cpu"
    assert first.plan.reasons[-1] == "batches of at most 64 tokens: requested"
    assert str(first.plan).splitlines()[0].endswith("batches of 64 tokens")
    assert second.plan.reasons[1] == "precision fp32: fp16 is never used on a CPU"
    assert second.plan.reasons[-1] == "batches of at most 3 texts: requested"
    assert second.plan.max_batch_tokens == CPU_BATCH_TOKENS
    found = first.plan.reasons[2:-1]
    assert found == second.plan.reasons[2:-1]
    assert any(reason.startswith("forward flat") for reason in found)


def test_close_gives_the_model_up(tmp_path: Path) -> None:
    # a folder of its own: another test may still hold the engine of a shared one
    reranker_base = tiny_models.build_reranker_base(tmp_path)
    first, second = (load_scorer(str(reranker_base), device="cpu") for _ in range(2))
    engine = weakref.ref(first._loaded())
    expected = second.score(PAIRS).tolist()
    name = first.name
    first.close()
    first.close()
    with pytest.raises(RerankError, match="was closed; load it again"):
        first.score(PAIRS)
    with pytest.raises(RerankError, match="was closed"):
        first.score([])
    assert (first.name, first.scale) == (name, "logit")
    gc.collect()
    assert engine() is not None
    assert second.score(PAIRS).tolist() == expected
    with second:
        pass
    gc.collect()
    assert engine() is None


def test_closing_while_another_thread_scores_lets_it_finish(reranker_base: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hold(batch: object) -> None:
        entered.set()
        assert go_on.wait(60)

    engine = engine_over(OracleForward(before=hold), reranker_base)
    scorer = load_scorer(str(reranker_base), device="cpu")
    scorer._engine = engine
    with ThreadPoolExecutor(1) as pool:
        scoring = pool.submit(scorer.score, PAIRS)
        assert entered.wait(60)
        scorer.close()
        go_on.set()
        assert scoring.result().shape == (3,)


def test_a_retrained_folder_is_not_served_the_old_engine(tmp_path: Path) -> None:
    old = load_scorer(str(tiny_models.build_reranker_base(tmp_path, seed=0)))
    before, name = old.score(PAIRS), old.name
    fresh = load_scorer(str(tiny_models.build_reranker_base(tmp_path, seed=77)))
    assert fresh.name != name == old.name
    assert np.abs(fresh.score(PAIRS) - before).min() > 1e-3
    assert old.score(PAIRS).tolist() == before.tolist(), "a loaded model does not change"


def test_a_change_of_the_last_row_of_a_table_is_another_model(tmp_path: Path) -> None:
    # as after training that touched new tokens alone
    folder = tiny_models.build_reranker_base(tmp_path)
    old = load_scorer(str(folder), device="cpu")
    pair = [("what is a panda?", "a panda is a bear")]
    before, name = old.score(pair), old.name
    tokens = old._loaded().tokenizer.encode(["a panda is a bear"], [0])[0]
    last = max(tokens)

    def change(weights: dict[str, "object"]) -> dict[str, "object"]:
        table = weights["roberta.embeddings.word_embeddings.weight"].clone()  # type: ignore[attr-defined]
        table[last] *= -1.0  # a LayerNorm would take a shift away again
        return {**weights, "roberta.embeddings.word_embeddings.weight": table}

    tiny_models._rewrite_weights(folder, change)  # type: ignore[arg-type]
    new = load_scorer(str(folder))
    assert abs(new.score(pair)[0] - before[0]) > 1e-3
    assert new.name != name


def test_a_forked_child_is_told_to_load_its_own(reranker_base: Path) -> None:
    batch = sequences([3, 4])
    engine = engine_over(OracleForward(), reranker_base)
    expected = [row_of(s).tolist() for s in batch]
    assert engine.run(batch, [0, 1], NO_LIMITS).tolist() == expected

    def use() -> str:
        with pytest.raises(ForkedModelError, match="oracle was loaded before this process was"):
            engine.run(batch, [0, 1], NO_LIMITS)
        return "refused"

    assert in_child(use) == "refused"
    assert engine.run(batch, [0, 1], NO_LIMITS).tolist() == expected


def test_a_forked_child_never_gets_the_parents_engine(reranker_base: Path) -> None:
    parents = shared_engine("forked", lambda: engine_over(OracleForward(), reranker_base))
    batch = sequences([3])

    def use() -> str:
        own = shared_engine("forked", lambda: engine_over(OracleForward(), reranker_base))
        assert own is not parents
        return str(own.run(batch, [0], NO_LIMITS).tolist())

    assert in_child(use) == str([row_of(batch[0]).tolist()])


FORK = """
import os, signal, sys, torch
from bge_rerank_integrations import ForkedModelError, load_scorer
from bge_rerank_integrations.langchain import BGECrossEncoder

torch.set_num_threads(2)
pairs = [("what is a panda? " * 8 + str(n), "the giant panda is a bear " * 60) for n in range(16)]
adapter, scorer = BGECrossEncoder(model=sys.argv[1]), load_scorer(sys.argv[1])
expected = adapter.score(pairs)  # starts torch's threads, which a fork does not take along
child = os.fork()
if child == 0:
    signal.alarm(240)
    try:
        scorer.score(pairs)
    except ForkedModelError:
        found = adapter.score(pairs)
        os._exit(0 if max(abs(a - b) for a, b in zip(expected, found)) < 1e-6 else 1)
    os._exit(2)
status = os.waitpid(child, 0)[1]
assert adapter.score(pairs) == expected
print("child ended with", status)
"""


def test_an_adapter_loads_again_in_a_child_of_a_process_that_has_scored(
    reranker_base: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(reranker_base)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={"PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
    )
    assert done.stdout.strip() == "child ended with 0"
