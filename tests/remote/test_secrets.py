"""Keys and texts are seen by the server alone: not in messages, logs, reprs, pickles or dumps."""

import io
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bge_rerank_integrations import InvalidInputError, load_reranker, load_scorer
from bge_rerank_integrations.adapter_base import ScorerFields
from bge_rerank_integrations.base.address import is_address, may_be_tag, read_address
from bge_rerank_integrations.errors import RemoteError, RerankError
from bge_rerank_integrations.langchain import BGECrossEncoder
from bge_rerank_integrations.langchain import BGERerank as LangChainRerank
from bge_rerank_integrations.llama_index import BGERerank as LlamaIndexRerank
from bge_rerank_integrations.remote.dialects import DIALECTS
from bge_rerank_integrations.remote.redaction import describe_body, hide_private
from bge_rerank_integrations.remote.scorer import RemoteScorer
from tests.remote.fault_server import (
    Asked,
    Connection,
    Fault,
    answer,
    failing,
    http,
    reset_at_once,
    right,
    silence,
)
from tests.remote.serving import serving
from tests.remote.stand_ins import MODEL

KEY = "sk-canary-7fa0b1"
QUERY = "why did Zyxwvut fail"
PASSAGE = "Qponmlk was at fault, said 704518 and Ünïcödé 大熊猫"
CANARIES = (KEY, "canary", "7fa0b1", "Zyxwvut", "Qponmlk", "704518", "nïcöd", "熊", "\\u")

TEI = replace(DIALECTS["tei"], self_hosted=False)

ECHO = {"query": QUERY, "texts": [PASSAGE], "key": f"Bearer {KEY}"}
ECHOES: dict[str, Fault] = {
    "FastAPI": answer({"detail": [{"type": "t", "loc": ["body"], "input": ECHO}]}, 422),
    "a message": answer({"error": f"cannot read {PASSAGE!r} for {QUERY!r}, key {KEY}"}, 400),
    "an escaped message": answer({"error": {"message": json.dumps(ECHO)}}, 500),
    "a cut word": answer({"detail": f"bad: {PASSAGE[:4]}"}, 400),
    "plain text": answer(f"failed: {QUERY} {PASSAGE} {KEY}".encode(), 413, kind="text/plain"),
    "a page": answer(f"<h1>{QUERY} {KEY}</h1>".encode(), 400, kind="text/html"),
    "in the type": answer({"type": QUERY, "code": KEY, "error_type": PASSAGE}, 400),
    "in the answer": answer({"error": PASSAGE}),
    "in the score": answer([{"index": 0, "score": PASSAGE}]),
    "in the index": answer([{"index": PASSAGE, "score": 1}]),
    "in broken JSON": answer(json.dumps(ECHO).encode()[:-1]),
    "in a redirect": answer(b"", 302, Location="http://127.0.0.2/elsewhere"),
    "silence": silence,
    "a reset": reset_at_once,
}


@pytest.mark.parametrize("fault", ECHOES.values(), ids=ECHOES)
def test_no_failure_tells_a_key_or_a_text(fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with (
        failing(fault) as server,
        RemoteScorer(
            server.url, dialect=TEI, api_key=KEY, max_retries=1, first_wait=0.001, read_timeout=0.1
        ) as scorer,
    ):
        with pytest.raises(RemoteError) as failed:
            scorer.score([(QUERY, PASSAGE)])
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
        assert PASSAGE in server.asked[0].body.decode()
        shown = [
            repr(scorer),
            scorer.name,
            *seen_in(failed.value),
            caplog.text,
            *(f"{record.msg} {record.args}" for record in caplog.records),
        ]
    for text in shown:
        assert [canary for canary in CANARIES if canary in text] == []


def seen_in(error: BaseException) -> list[str]:
    """The error as it is printed, kept and sent, with everything it came from."""
    seen = ["".join(traceback.format_exception(error))]
    chain: BaseException | None = error
    while chain is not None:
        seen += [str(chain), repr(chain), repr(chain.args), repr(vars(chain))]
        seen.append(repr(getattr(chain, "_request", None)))
        chain = chain.__cause__ or chain.__context__
    return seen


def test_what_a_server_says_in_plain_words_is_passed_on() -> None:
    said = {"error": "batch size 40 > maximum allowed batch size 32", "error_type": "Validation"}
    shown = describe_body(json.dumps(said).encode(), [QUERY], KEY)
    assert shown == "Validation batch size 40 maximum allowed batch size 32"
    shown = describe_body(b'{"error": {"message": "No model `m` here."}}', ["a model!"], None)
    assert shown == "No *** m here."
    assert describe_body(b"Unauthorized", [], KEY) == "Unauthorized"
    assert describe_body(b"", [], None) == ""
    assert len(describe_body(json.dumps({"error": "word " * 1000}).encode(), [], None)) <= 200
    assert describe_body(json.dumps({"error": "no", "x": "y" * 1_000_000}).encode(), [], None) == ""


KEYS = ("sk-proj-AbCdEfGh", "AbCdEfGhIjKl", "jklmnopqrst", "90210317442", "sk-4f9a-77b2")
SPOKEN = "Qponmlk Zyxwvut 704518 rstuvwx"
"""Words that no message of ours has."""


def told(text: str, secret: str) -> list[str]:
    """The parts of four characters of the secret's words that the text shows."""
    folded, words = text.casefold(), secret.casefold().replace("-", " ").split()
    parts = {word[start : start + 4] for word in words for start in range(len(word) - 3)}
    return sorted(part for part in parts if part in folded)


@pytest.mark.parametrize("joint", [" ", "_", "-", ".", "/", ",", "-,", "+"])
@pytest.mark.parametrize("key", KEYS)
def test_a_key_or_a_passage_is_never_shown_however_it_is_joined(key: str, joint: str) -> None:
    echoes = [key, key.upper(), key[:6], key[3:], f"Bearer{joint}{key}", *key.split("-")]
    echoes += [joint.join(SPOKEN.split()), joint.join(["invalid", *SPOKEN.split()[:2]])]
    for echo in echoes:
        bodies = [
            json.dumps({"error": echo}).encode(),
            json.dumps({"error": {"message": f"wrong value: {echo}!", "code": echo}}).encode(),
            f"refused: {echo}".encode(),
        ]
        for body in bodies:
            shown = describe_body(body, [SPOKEN], key)
            assert told(shown, key) == told(shown, SPOKEN) == []
        shown = hide_private(f"text/{echo}", [SPOKEN], key)
        assert told(shown, key) == told(shown, SPOKEN) == []


@pytest.mark.parametrize("key", KEYS)
def test_no_page_and_no_answer_tells_the_key(key: str, caplog: pytest.LogCaptureFixture) -> None:
    info = {"model_id": "m", "model_type": {"reranker": {}}, "max_client_batch_size": 4}
    entry = {"id": key, "owned_by": "vllm"}
    number = int(key) if key.isdigit() else 5
    faults = [
        answer(info | {"model_id": key}),
        answer(info | {"model_id": f"/data/{key.lower()}"}),
        answer(info | {"model_type": key}),
        answer(info | {"model_type": [f"{key}-reranker"]}),
        answer(info | {"model_type": {key: {}}}),
        answer({"data": [entry, entry]}),
        answer({"data": [entry | {"capabilities": [key]}]}),
        answer({"data": [entry | {"id": "other", "model_type": key}]}),
        answer([{"index": number, "score": 1.0}]),
        answer([{"index": 0, "score": number * 10**40}]),
        answer({"error": key}, 401),
        answer({"error": number}, 429, Retry_After=str(number)),
        answer({}, kind=f"text/{key}"),
        answer({}, kind=key),
    ]
    for fault in faults:
        for dialect in ("auto", TEI, "cohere"):
            options = {"model": "asked", "dialect": dialect, "api_key": key, "max_retries": 0}
            with failing(fault) as server:
                scorer = RemoteScorer(server.url, **options)  # type: ignore[arg-type]
                with scorer, pytest.raises(RerankError) as failed:
                    scorer.score([("a", "b")])
                shown = "".join(seen_in(failed.value)).replace(server.url, "")
            assert told(shown, key) == []
    assert told(caplog.text, key) == []


@pytest.mark.parametrize("key", ["bge-key", "vllm", "my-reranker-key", "tei", "rerank", MODEL])
@pytest.mark.parametrize("name", ["tei", "vllm-score", "infinity", "xinference"])
def test_a_key_of_ordinary_words_hides_no_server(name: str, key: str) -> None:
    for model in (MODEL, None):
        with (
            serving(name, key=key) as served,
            RemoteScorer(served.url, model=model, api_key=key) as scorer,
        ):
            assert (scorer.probe().dialect, scorer.probe().model) == (name, MODEL)
    with (
        serving(name, key=key) as served,
        RemoteScorer(served.url, model="other", api_key=key) as scorer,
        pytest.raises(RerankError, match="does not serve 'other'; it serves '") as refused,
    ):
        scorer.probe()
    assert (MODEL in str(refused.value)) == (key not in (MODEL, "my-reranker-key"))


def test_a_scorer_is_not_pickled_and_shows_no_key() -> None:
    scorer = RemoteScorer("http://127.0.0.1:9", dialect="tei", api_key=KEY)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(scorer)
    assert KEY not in f"{vars(scorer)} {scorer!r}"


@pytest.mark.parametrize("cls", [LlamaIndexRerank, LangChainRerank, BGECrossEncoder])
def test_an_adapter_writes_no_key_down(cls: type[ScorerFields]) -> None:
    adapter = cls(base_url="http://127.0.0.1:9", api_key=KEY)
    adapter.loaded_scorer()
    written: list[Any] = [
        repr(adapter),
        str(adapter),
        adapter.model_dump(),
        adapter.model_dump_json(),
        pickle.dumps(adapter),
        pickle.loads(pickle.dumps(adapter)),
        adapter._bge_loaded,
        adapter.__getstate__(),
    ]
    if isinstance(adapter, LlamaIndexRerank):
        written += [adapter.to_dict(), adapter.to_json()]
    assert [text for text in written if KEY in f"{text}"] == []
    with pytest.raises(ValueError, match="connect_timeout") as refused:
        cls(base_url="http://127.0.0.1:9", api_key=KEY, connect_timeout=-1)
    assert KEY not in str(refused.value)
    wrong: list[dict[str, Any]] = [
        {"base_url": f"http://u:{KEY}@h"},
        {"model": f"http://h/?key={KEY}"},
    ]
    for fields in wrong:
        with pytest.raises(ValueError, match="base_url h") as refused:
            cls(**fields)
        assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LlamaIndexRerank.from_dict({"topn": 1, "api_key": KEY}),
        lambda: LangChainRerank(base_url=f"htps://u:{KEY}@h"),
        lambda: RemoteScorer("http://h", max_retries=-1),
    ],
)
def test_a_traceback_can_show_an_object_whose_making_failed(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"topn|base_url|max_retries") as refused:
        make()
    shown = traceback.TracebackException.from_exception(refused.value, capture_locals=True)
    assert "test_secrets.py" in "".join(shown.format())
    for cls in (LlamaIndexRerank, LangChainRerank, BGECrossEncoder, RemoteScorer):
        assert repr(object.__new__(cls)).startswith(cls.__name__)


def test_the_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGE_RERANK_API_KEY", KEY)
    monkeypatch.setenv("PINECONE_API_KEY", "pc-other")
    with failing(right) as server, RemoteScorer(server.url, dialect=TEI) as scorer:
        scorer.score([("a", "b")])
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    with serving("pinecone", key="pc-other") as served:
        with RemoteScorer(served.url, dialect="pinecone", model="m") as scorer:
            assert scorer.score([("a", "a")]).shape == (1,)
        assert "authorization" not in served.requests[0][2], "the other key stays here"
    with failing(right) as server, RemoteScorer(server.url, dialect=TEI, api_key="") as scorer:
        scorer.score([("a", "b")])
        assert "authorization" not in server.asked[0].headers


def test_a_key_that_goes_in_the_clear_is_said_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    RemoteScorer("http://10.0.0.7:8080", dialect="tei", api_key=KEY)
    assert "http://10.0.0.7:8080 goes over the network unencrypted" in caplog.text
    assert KEY not in caplog.text
    caplog.clear()
    for url in ("https://10.0.0.7", "http://127.0.0.1:1", "http://localhost", "http://[::1]:8"):
        RemoteScorer(url, dialect="tei", api_key=KEY)
    assert caplog.text == ""


@pytest.mark.parametrize("key", ["sk\n-canary", "sk-cänary"])
def test_a_key_that_no_header_carries_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(InvalidInputError, match="HTTP headers cannot carry") as refused:
        RemoteScorer("http://127.0.0.1:9", dialect="tei", api_key=key)
    assert "nary" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://user:sk-canary@127.0.0.1", "user or password"),
        ("http://sk-canary@127.0.0.1", "user or password"),
        ("http://127.0.0.1/rerank?key=sk-canary", r"a part after \?"),
        ("http://127.0.0.1/#sk-canary", "a part after #"),
        ("ftp://sk-canary", "not the address of a server"),
        ("sk-canary", "not the address of a server"),
        ("http://", "not the address of a server"),
        ("http://127.0.0.1:sk-canary", "not the address of a server"),
        ("http://127.0.0.1:99999/canary", "not the address of a server"),
        ("", "not the address of a server"),
        ("htps://u:sk-canary@host", "its scheme is 'htps'"),
        ("canary-key://host", "http:// or https:// is missing"),
        ("u:sk-canary@host:80", "http:// or https:// is missing"),
        ("localhost:8080", "http:// or https:// is missing"),
        ("http:/sk-canary", "http:// or https:// is missing"),
        ("http://sk canary:80", "an invalid character"),
        ("http://sk\ncanary:80", "an invalid character"),
        ("http://h/sk canary", "an invalid character"),
    ],
)
def test_an_address_with_a_secret_is_refused_without_being_shown(url: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as refused:
        read_address(url)
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "htps://u:sk-canary@host",
        "HTTP://u:sk-canary@host",
        " http://u:sk-canary@host",
        "http:/u:sk-canary@host/a/b",
        "u:sk-canary@host:80/v1",
        "//u:sk-canary@host",
        "http:\\\\u:sk-canary@host",
        "https//u:sk-canary@host",
        "https/u:sk-canary@host",
        "sk-canary@host",
        "sk/canary==@host/v1",
        "u:sk/canary@host",
        "@u:sk-canary@host",
        "api.example.com/v1?token=sk-canary",
        "host?key=sk-canary",
        "localhost:8080",
        "[::1]:8080/v1",
    ],
)
@pytest.mark.parametrize("take", [load_scorer, lambda url: LangChainRerank(model=url)])
def test_what_was_meant_as_an_address_is_not_looked_for_among_models(
    take: Callable[[str], object], url: str
) -> None:
    with pytest.raises(ValueError, match="base_url") as refused:
        take(url)
    assert "canary" not in "".join(seen_in(refused.value))


def test_an_address_may_be_in_capitals_and_a_folder_is_none() -> None:
    assert read_address("HTTP://LocalHost:1/V1").url == "http://localhost:1/V1"
    assert load_scorer("HTTP://localhost:1").name == "auto:http://localhost:1[]"
    folders = ("BAAI/bge-m3", "offline", "./a:/b", "~/a:80", "/a:/b@c", "C:/models", "C:\\a@b", ".")
    odd = (
        "C:/a@b",
        "\\\\server\\a@b",
        "/a@b",
        "./a@b",
        "../a@b",
        "/a?b=c",
        "C:/a?b=c",
        "@cf/baai/bge-reranker-base",
    )
    assert [place for place in folders + odd if is_address(place)] == []


@pytest.mark.parametrize("model", ["bge-reranker:8", "bge-reranker:567", "bge-reranker:8080"])
def test_a_server_s_model_may_have_a_tag(model: str, tmp_path: Path) -> None:
    scorer = load_scorer(model, base_url="http://localhost:1")
    assert scorer.name == f"auto:http://localhost:1[{model}]"
    for adapter in (LlamaIndexRerank, LangChainRerank, BGECrossEncoder):
        loaded = adapter(model=model, base_url="http://localhost:1").loaded_scorer()
        assert loaded.name == scorer.name
    load_reranker(model, base_url="http://localhost:1", score_cache=str(tmp_path / "scores.db"))


def test_a_tag_of_digits_without_a_server_is_taken_for_an_address() -> None:
    for take in (load_scorer, lambda name: LangChainRerank(model=name).loaded_scorer()):
        with pytest.raises(ValueError, match="http:// or https:// is missing"):
            take("bge-reranker:567")


@pytest.mark.parametrize("name", ["bge-reranker:567", "bge:80", "m_1:443", "bge-reranker:8080"])
def test_a_tag_of_digits_may_be_a_port_or_a_tag(name: str) -> None:
    assert may_be_tag(name)
    assert is_address(name), "without a base_url it is taken for a misspelt address"


@pytest.mark.parametrize(
    "address",
    ["localhost:8080", "LOCALHOST:80", "10.0.0.7:80", "a.example:80", "h:80/v1", "http:80/"],
)
def test_a_host_is_not_a_tag(address: str) -> None:
    assert is_address(address)
    assert not may_be_tag(address)


def test_a_key_in_a_status_line_or_a_cookie_goes_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def echo(connection: Connection, asked: Asked) -> None:
        whole = http(400, b"{}", Set_Cookie=f"k={KEY}")
        connection.send(whole.replace(b"Whatever", KEY.encode()))

    with failing(echo) as server, RemoteScorer(server.url, dialect=TEI, api_key=KEY) as scorer:
        for _ in range(2):
            with pytest.raises(RemoteError, match="400 Bad Request") as failed:
                scorer.score([(QUERY, PASSAGE)])
        assert "cookie" not in server.asked[1].headers
    for text in (*seen_in(failed.value), caplog.text):
        assert [canary for canary in CANARIES if canary in text] == []


def test_the_log_of_the_http_library_holds_no_key() -> None:
    """At its most talkative: its loggers may be switched on by any program."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    loggers = [logging.getLogger(name) for name in ("httpx2", "httpcore2", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    try:
        with (
            failing(right) as server,
            RemoteScorer(server.url, dialect=TEI, api_key=KEY) as scorer,
        ):
            scorer.score([(QUERY, PASSAGE)])
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
    assert "send_request_headers" in stream.getvalue(), "it did speak"
    assert [canary for canary in CANARIES if canary in stream.getvalue()] == []
