"""A remote scorer in use: from threads, event loops, forks, adapters and the shell."""

import asyncio
import json
import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, assert_type

import numpy as np
import pandas as pd
import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from bge_rerank_integrations import InvalidInputError, RerankError, load_reranker, load_scorer
from bge_rerank_integrations.langchain import BGERerank as LangChainRerank
from bge_rerank_integrations.llama_index import BGERerank as LlamaIndexRerank
from bge_rerank_integrations.local.scorer import LocalScorer
from bge_rerank_integrations.remote import event_loop
from bge_rerank_integrations.remote.dialects import DIALECTS
from bge_rerank_integrations.remote.scorer import RemoteScorer
from tests.base.forking import in_child
from tests.cli.command import json_lines, run
from tests.remote.fault_server import Asked, Connection, failing, right
from tests.remote.serving import serving
from tests.remote.stand_ins import KEY, MODEL

TEI = replace(DIALECTS["tei"], self_hosted=False)
PAIRS = [("a b c", "a"), ("a b c", "a b"), ("x", "x"), ("a b c", "")]
SCORES = [-0.5, 0.5, -0.5, -1.5]


def test_one_scorer_serves_several_event_loops() -> None:
    with failing(right) as server, RemoteScorer(server.url, dialect=TEI) as scorer:

        async def together() -> list[list[float]]:
            found = await asyncio.gather(*(scorer.ascore(PAIRS) for _ in range(20)))
            return [scores.tolist() for scores in found]

        for _ in range(2):
            assert asyncio.run(together()) == [SCORES] * 20
        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(asyncio.run, together()) for _ in range(4)]
            assert [run.result() for run in runs] == [[SCORES] * 20] * 4
        assert scorer.score(PAIRS).tolist() == SCORES


async def test_scoring_from_inside_an_event_loop_does_not_hold_it_up() -> None:
    """The server answers only after the loop has run on: it would wait for ever otherwise."""
    ran_on = threading.Event()

    def late(connection: Connection, asked: Asked) -> None:
        assert ran_on.wait(30)
        right(connection, asked)

    with failing(late) as server, RemoteScorer(server.url, dialect=TEI) as scorer:
        task = asyncio.ensure_future(scorer.ascore(PAIRS))
        assert await asyncio.to_thread(server.heard.wait, 30)
        ran_on.set()
        assert (await task).tolist() == SCORES


def test_an_abandoned_scorer_is_closed_without_a_lock() -> None:
    """Its finalizer may run on the main thread, where an interrupt would leave a lock locked."""

    async def answer() -> int:
        return 7

    event_loop.submit(answer()).result()  # the loop runs
    with ThreadPoolExecutor(1) as pool, event_loop._lock:
        assert pool.submit(event_loop.submit, answer()).result(timeout=30).result() == 7


def test_at_most_so_many_requests_are_under_way() -> None:
    lock, go = threading.Lock(), threading.Semaphore(0)
    now, most = [0], [0]

    def counted(connection: Connection, asked: Asked) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            if now[0] == 3:
                for _ in range(100):
                    go.release()
        assert go.acquire(timeout=30), "three at once never came"
        with lock:
            now[0] -= 1
        right(connection, asked)

    pairs = [("a", f"a {number}") for number in range(20)]
    with (
        failing(counted) as server,
        RemoteScorer(server.url, dialect=TEI, batch_size=1, max_concurrency=3) as scorer,
        ThreadPoolExecutor(4) as pool,
    ):
        found = list(pool.map(scorer.score, [pairs] * 4))
    assert [scores.tolist() for scores in found] == [[-0.5] * 20] * 4
    assert most[0] == 3


def test_a_forked_child_asks_over_connections_of_its_own() -> None:
    with failing(right) as server, RemoteScorer(server.url, dialect=TEI) as scorer:
        assert scorer.score(PAIRS).tolist() == SCORES
        assert json.loads(in_child(lambda: json.dumps(scorer.score(PAIRS).tolist()))) == SCORES
        assert scorer.score(PAIRS).tolist() == SCORES


def test_closing_is_for_good() -> None:
    with failing(right) as server:
        scorer = RemoteScorer(server.url, dialect=TEI)
        scorer.score(PAIRS)
        scorer.close()
        scorer.close()
        with pytest.raises(RerankError, match="was closed; load it again"):
            scorer.score(PAIRS)
        unused = RemoteScorer(server.url, dialect=TEI)
        unused.close()


def test_a_data_frame_gives_a_series_and_dictionaries_are_pairs() -> None:
    frame = pd.DataFrame(PAIRS, columns=["query", "passage"], index=[7, 8, 9, 10])
    with failing(right) as server, RemoteScorer(server.url, dialect=TEI) as scorer:
        series = scorer.score(frame)
        assert isinstance(series, pd.Series)
        assert series.to_dict() == dict(zip(frame.index, SCORES, strict=True))
        assert scorer.score(frame.to_dict("records")).tolist() == SCORES
        with pytest.raises(InvalidInputError, match="passage at position 1"):
            scorer.score([("a", "b"), ("a", None)])
        assert scorer.score([("\ud800 a", "a")]).tolist() == [-0.5], "half a surrogate pair"


def test_load_scorer_takes_an_address_as_the_model_or_beside_it() -> None:
    with serving("vllm-score") as served:
        for scorer in (
            load_scorer(served.url),
            load_scorer(MODEL, base_url=served.url),
            load_scorer(base_url=f"{served.url}/v1/"),
        ):
            assert isinstance(scorer, RemoteScorer)
            assert scorer.score(PAIRS).tolist() == SCORES
            scorer.close()
        best = load_reranker(served.url, dialect="vllm-score", top_n=1).rerank("a b", ["a", "b a"])
        assert [result.index for result in best] == [1]
        asked = [json.loads(body).get("model") for *_, body in served.requests if body]
        assert asked[0] is None, "an address alone asks for no model"
        assert MODEL in asked


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cpu"}, "device is for models that run in this process"),
        ({"precision": "fp16"}, "precision is for models that run in this process"),
        ({"cutoff_layers": [8]}, "cutoff_layers is for models that run in this process"),
        ({"max_length": 512}, "max_length is for models that run in this process"),
        ({"token": "hf_canary"}, "token is for models that run in this process"),
        ({"model": "https://host"}, "model and base_url are both addresses"),
        ({"dialect": "cohere2"}, "dialect is 'cohere2'; it must be 'auto' or one of tei, "),
        ({"max_retries": -1}, "max_retries is -1; it must be a whole number from 0"),
        ({"read_timeout": 0}, "read_timeout is 0; it must be a number above 0"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number from 1"),
    ],
)
def test_options_without_a_meaning_are_refused_by_name(
    options: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said) as refused:
        load_scorer(**{"base_url": "http://127.0.0.1:9"} | options)  # type: ignore[call-overload]
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    "options", [{"api_key": "sk-canary"}, {"dialect": "tei"}, {"read_timeout": 3.0}]
)
def test_options_of_servers_need_a_server(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="is for models on a server") as refused:
        load_scorer("offline", **options)  # type: ignore[call-overload]
    assert "canary" not in str(refused.value)


def maybe(address: str | None) -> str | None:
    return address


def test_a_type_checker_sees_which_scorer_comes_back() -> None:
    address = "http://127.0.0.1:9"
    remote = assert_type(load_scorer(base_url=address), RemoteScorer)
    either = assert_type(load_scorer(base_url=maybe(address)), LocalScorer | RemoteScorer)
    assert isinstance(remote, RemoteScorer)
    assert isinstance(either, RemoteScorer)
    local = assert_type(load_scorer("off" + "line"), LocalScorer)
    placed = assert_type(load_scorer("offline", base_url=maybe(None)), LocalScorer | RemoteScorer)
    assert isinstance(local, LocalScorer)
    assert isinstance(placed, LocalScorer)


@pytest.mark.parametrize(("base_url", "asked"), [(True, MODEL), (False, None)])
def test_without_a_model_the_default_one_is_asked_for_and_an_address_asks_for_none(
    base_url: bool, asked: str | None
) -> None:
    with serving("infinity") as served:
        scorer = load_scorer(base_url=served.url) if base_url else load_scorer(served.url)
        with scorer:
            assert scorer.score(PAIRS).tolist() == SCORES
        sent = [json.loads(body) for method, _, _, body in served.requests if method == "POST"]
    assert {body.get("model") for body in sent} == {asked}


def test_a_name_tells_servers_models_and_deployments_apart() -> None:
    url = "http://127.0.0.1:9"
    names = [
        RemoteScorer(url).name,
        RemoteScorer(url, dialect="tei").name,
        RemoteScorer(url, dialect="vllm").name,
        RemoteScorer(url, dialect="vllm", model="m").name,
        RemoteScorer(f"{url}/prefix", dialect="tei").name,
        RemoteScorer(url, dialect="azure-tei", deployment="blue").name,
    ]
    assert len(set(names)) == len(names)
    same = [RemoteScorer(url, api_key=key, read_timeout=9, batch_size=3).name for key in ("a", "b")]
    assert same == [names[0]] * 2
    assert names[3] == "vllm:http://127.0.0.1:9[m]"


async def test_the_adapters_score_on_a_server() -> None:
    texts = ["no", "a", "b a"]
    with serving("tei", key=KEY) as served:
        nodes = [NodeWithScore(node=TextNode(text=text), score=0.1) for text in texts]
        index = LlamaIndexRerank(base_url=served.url, api_key=KEY, top_n=2)
        for found in (
            index.postprocess_nodes(nodes, query_str="a b"),
            await index.apostprocess_nodes(nodes, query_str="a b"),
        ):
            assert [node.node.get_content() for node in found] == ["b a", "a"]
            assert [node.score for node in found] == pytest.approx([0.6224593, 0.3775407])
        chain = LangChainRerank(base_url=served.url, api_key=KEY, normalize=False)
        documents = [Document(page_content=text) for text in texts]
        for kept in (
            chain.compress_documents(documents, "a b"),
            await chain.acompress_documents(documents, "a b"),
        ):
            scores = [document.metadata["relevance_score"] for document in kept]
            assert scores == [0.5, -0.5, -1.5]


def test_the_command_scores_on_a_server() -> None:
    with serving("tei", key=KEY) as served:
        done = run(
            *("rerank", "a b", "a", "b a", "--url", served.url, "--no-normalize"),
            BGE_RERANK_API_KEY=KEY,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert [(row["index"], row["score"]) for row in json_lines(done.stdout)] == [
            (1, 0.5),
            (0, -0.5),
        ]
        refused = run("rerank", "a b", "a", "--url", served.url, BGE_RERANK_API_KEY="sk-canary")
        assert refused.returncode == 1
        assert "401 Unauthorized: no; check api_key" in refused.stderr
        assert "canary" not in refused.stderr


def test_loading_a_remote_scorer_loads_no_torch() -> None:
    program = (
        "import sys; from bge_rerank_integrations import load_scorer; "
        "load_scorer('http://127.0.0.1:9').name; "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "httpx2" in loaded.stdout.split()
    assert {"torch", "transformers", "tokenizers"}.isdisjoint(loaded.stdout.split())


def test_no_pairs_ask_nobody() -> None:
    scorer = RemoteScorer("http://127.0.0.1:9")
    assert scorer.score([]).shape == (0,)
    assert scorer.score([]).dtype == np.float32


def test_an_adapter_around_a_scorer_asks_the_server_nothing() -> None:
    """Its scale is the server's to say, and a constructor has no time for that."""
    with serving("tei") as served, RemoteScorer(served.url) as scorer:
        LlamaIndexRerank(scorer=scorer)
        assert served.requests == []
        assert scorer.scale == "logit"
        assert served.requests != []


def test_numbers_of_numpy_are_numbers() -> None:
    url = "http://127.0.0.1:9"
    numbers: dict[str, Any] = {"connect_timeout": np.float32(0.5), "max_retries": np.int64(0)}
    options = RemoteScorer(url, **numbers)._options
    assert (options.connect_timeout, options.max_retries) == (0.5, 0)
    assert [type(options.connect_timeout), type(options.max_retries)] == [float, int]
    wrong: Any
    for wrong in (math.nan, math.inf, True, "1", np.float32(0)):
        with pytest.raises(InvalidInputError, match="connect_timeout is"):
            RemoteScorer(url, connect_timeout=wrong)
