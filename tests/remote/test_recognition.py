"""What a server is, and whether its scores can be a reranker's, before one is believed."""

import copy
import json
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_rerank_integrations import Reranker
from bge_rerank_integrations.errors import (
    InvalidInputError,
    RemoteAnswerError,
    RemoteRefused,
    RemoteUnavailable,
    UnsupportedModel,
)
from bge_rerank_integrations.remote.dialects import DIALECTS
from bge_rerank_integrations.remote.handshake import PAGES, ServerInfo, settle_scale
from bge_rerank_integrations.remote.scorer import RemoteScorer
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore
from tests.remote.fault_server import Asked, Connection, answer, failing
from tests.remote.serving import serving
from tests.remote.stand_ins import (
    KEY,
    MODEL,
    MODELS,
    STAND_INS,
    Refused,
    StandIn,
    logit,
    probability,
)

PAIRS = [("a b", "a"), ("a b", "")]


@pytest.mark.parametrize(
    ("name", "model", "most"),
    [
        ("tei", MODEL, 32),
        ("vllm-score", MODEL, 64),
        ("infinity", MODEL, 64),
        ("llama.cpp", "m.gguf", 64),
        ("sglang", MODEL, 64),
        ("xinference", MODEL, 64),
    ],
)
def test_a_server_that_says_what_it_is_needs_no_dialect(name: str, model: str, most: int) -> None:
    with serving(name, key=KEY) as served, RemoteScorer(served.url, api_key=KEY) as scorer:
        assert scorer.probe() == ServerInfo(name, model, most)
        before = len(served.requests)
        assert scorer.scale == DIALECTS[name].scale
        expected = [-0.5, -1.5] if scorer.scale == "logit" else [0.3775407, 0.1824255]
        assert scorer.score(PAIRS).tolist() == pytest.approx(expected)
        assert len(served.requests) == before + 1, "it is asked what it is once"


def test_the_server_says_how_much_it_takes() -> None:
    info = {**STAND_INS["tei"].pages["/info"], "max_client_batch_size": 3}
    few = replace(STAND_INS["tei"], pages={"/info": info}, most=(3, 422))
    pairs = [("a", f"a {number}") for number in range(7)]
    with serving(few) as served, RemoteScorer(served.url) as scorer:
        scorer.probe()
        before = len(served.requests)
        assert scorer.score(pairs).tolist() == [-0.5] * 7
        assert len(served.requests) == before + 3


@pytest.mark.parametrize("name", ["nim", "hf-toolkit", "cohere"])
def test_a_server_that_does_not_say_needs_its_dialect(name: str) -> None:
    with (
        serving(name) as served,
        RemoteScorer(served.url, model="m") as scorer,
        pytest.raises(RemoteAnswerError, match="set dialect to one of tei, "),
    ):
        scorer.score(PAIRS)


def test_a_page_for_people_on_every_route_is_no_server_we_know() -> None:
    page = answer(b"<html>welcome</html>", kind="text/html")
    with (
        failing(page) as server,
        RemoteScorer(server.url) as scorer,
        pytest.raises(RemoteAnswerError, match="does not say what it is"),
    ):
        scorer.scale  # noqa: B018 - asking for it is what is tried


def test_a_wrong_key_is_said_before_anything_is_guessed() -> None:
    with (
        serving("tei", key=KEY) as served,
        RemoteScorer(served.url, api_key="no") as scorer,
        pytest.raises(RemoteRefused, match="401 Unauthorized"),
    ):
        scorer.probe()


def test_a_server_that_is_down_at_first_is_asked_again_later() -> None:
    down = answer({}, 503)
    info = answer(STAND_INS["tei"].pages["/info"])

    def scores(connection: Connection, asked: Asked) -> None:
        answer(STAND_INS["tei"].answer(asked.json))(connection, asked)

    with failing(down, info, scores) as server, RemoteScorer(server.url, max_retries=0) as scorer:
        with pytest.raises(RemoteUnavailable, match="503"):
            scorer.score(PAIRS)
        assert scorer.score(PAIRS).tolist() == [-0.5, -1.5]


@pytest.mark.parametrize(
    ("name", "path", "change", "error", "said"),
    [
        ("tei", "/info", {"model_type": {"embedding": {"pooling": "cls"}}}, UnsupportedModel,
         "not a reranker but 'embedding'"),
        ("tei", "/info", {"model_type": {"classifier": {}}}, UnsupportedModel,
         "not a reranker but 'classifier'"),
        ("tei", "/info", {"model_id": "BAAI/bge-reranker-base"}, RemoteRefused,
         "does not serve 'BAAI/bge-reranker-v2-m3'; it serves 'BAAI/bge-reranker-base'"),
        ("infinity", "/models", {"data": [
            {"id": MODEL, "owned_by": "infinity", "capabilities": ["embed"]}]}, UnsupportedModel,
         "not a reranker but 'embed'"),
        ("xinference", "/v1/models", {"data": [
            {"id": MODEL, "model_type": "embedding", "address": "x"}]}, UnsupportedModel,
         "not a reranker but 'embedding'"),
        ("vllm-score", "/v1/models", {"data": [{"id": "other", "owned_by": "vllm"}]},
         RemoteRefused, "does not serve 'BAAI/bge-reranker-v2-m3'; it serves 'other'"),
    ],
)  # fmt: skip
def test_a_server_of_another_model_is_refused(
    name: str, path: str, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    other = replace(STAND_INS[name], pages={path: STAND_INS[name].pages[path] | change})
    with (
        serving(other) as served,
        RemoteScorer(served.url, model=MODEL) as scorer,
        pytest.raises(error, match=said),
    ):
        scorer.score(PAIRS)


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 40), st.floats(), st.text(max_size=3),
    st.sampled_from([[], {}, [None], [[]], {"": None}, ["rerank"], {"reranker": 1}, [{}], 10**400]),
)  # fmt: skip


@given(st.sampled_from(["tei", "vllm-score", "infinity", "xinference", "llama.cpp"]), st.data())
def test_a_page_of_odd_types_is_read_or_ends_in_a_typed_error(
    name: str, data: st.DataObject
) -> None:
    ((path, page),) = STAND_INS[name].pages.items()
    page = copy.deepcopy(page)
    place = page
    while isinstance(place, dict | list) and place and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else [0]))
        if data.draw(st.booleans()):
            place[key] = copy.deepcopy(data.draw(ODD))  # of which a later step changes parts
        place = place[key]
    for model in (None, MODEL):
        try:
            info = dict(PAGES)[path](page, model, "sk-key")
        except (UnsupportedModel, RemoteRefused):
            continue
        assert info is None or (info.dialect in DIALECTS and info.max_documents >= 1)


@pytest.mark.parametrize("kind", [None, 7, True, 1.5, [], {}])
def test_a_model_of_no_known_kind_is_refused(kind: object) -> None:
    info = {**STAND_INS["tei"].pages["/info"], "model_type": kind}
    with (
        serving(replace(STAND_INS["tei"], pages={"/info": info})) as served,
        RemoteScorer(served.url) as scorer,
        pytest.raises(UnsupportedModel, match="not a reranker but of an unknown kind"),
    ):
        scorer.score(PAIRS)


def test_a_path_says_nothing_of_which_model_it_is() -> None:
    info = {**STAND_INS["tei"].pages["/info"], "model_id": "/repository"}
    mounted = replace(STAND_INS["tei"], pages={"/info": info})
    with serving(mounted) as served, RemoteScorer(served.url, model=MODEL) as scorer:
        assert scorer.score(PAIRS).tolist() == [-0.5, -1.5]


def cosine(query: str, passage: str) -> float:
    """Of bags of words: 1 for a text and itself, alike in both directions."""
    first, second = set(query.split()), set(passage.split())
    return len(first & second) / math.sqrt(len(first) * len(second)) if first and second else 0.0


@pytest.mark.parametrize("name", [name for name, row in DIALECTS.items() if row.self_hosted])
def test_an_embedding_model_at_a_rerank_route_is_refused(name: str) -> None:
    def cosines(self: StandIn, body: dict[str, Any]) -> Any:
        query, passages = self.texts(body)
        return self.shape([self.item(i, cosine(query, text)) for i, text in enumerate(passages)])

    embedder = replace(STAND_INS[name], plain=cosine, raw=None)
    with (
        serving(embedder) as served,
        RemoteScorer(served.url, dialect=name, model=MODEL) as scorer,
        pytest.raises(UnsupportedModel, match="cosines of an embedding model"),
    ):
        scorer.score(PAIRS)


@pytest.mark.parametrize(
    "name", [name for name, row in DIALECTS.items() if row.self_hosted and row.scale == "logit"]
)
def test_probabilities_where_logits_were_stated_are_refused(name: str) -> None:
    """A server too old to know the switch, or a model that ends in an activation."""
    deaf = replace(STAND_INS[name], raw=None, plain=lambda q, p: 1 / (1 + math.exp(-len(p) / 50)))
    with (
        serving(deaf) as served,
        RemoteScorer(served.url, dialect=name, model=MODEL) as scorer,
        pytest.raises(UnsupportedModel, match=r"same scores for logits|between 0 and 1 where"),
    ):
        scorer.score(PAIRS)


def test_logits_both_times_are_logits() -> None:
    """A model whose own config names no activation has nothing to switch off."""
    plain = replace(STAND_INS["vllm-score"], raw=None, plain=lambda q, p: len(p) / 9 - len(q) / 7)
    with serving(plain) as served, RemoteScorer(served.url, dialect="vllm-score") as scorer:
        assert scorer.score([("q" * 14, "p" * 9)]).tolist() == [-1.0]


def test_another_activation_than_the_sigmoid_is_refused() -> None:
    tanh = replace(STAND_INS["tei"], plain=lambda q, p: math.tanh(len(p) / 100))
    with (
        serving(tanh) as served,
        RemoteScorer(served.url, dialect="tei") as scorer,
        pytest.raises(UnsupportedModel, match="not the sigmoid of its logits"),
    ):
        scorer.score(PAIRS)


def test_raw_scores_of_a_dialect_of_probabilities_are_an_error() -> None:
    raw = replace(STAND_INS["cohere"], plain=lambda q, p: 7.25)
    with serving(raw) as served:
        scorer = RemoteScorer(served.url, dialect="cohere", model="m")
        with pytest.raises(RemoteAnswerError, match="score outside of 0 to 1"):
            scorer.score(PAIRS)
        scorer.close()


@pytest.mark.parametrize("name", [name for name, row in DIALECTS.items() if row.hosts])
def test_logits_between_0_and_1_do_not_pass_as_probabilities(name: str) -> None:
    """A gateway over logits: those of the pairs look right, those of the test do not."""
    logits = replace(STAND_INS[name], plain=lambda q, p: 0.5 + logit(q, p) / 20)
    with (
        serving(logits) as served,
        RemoteScorer(served.url, dialect=name, model=MODELS.get(name, MODEL)) as scorer,
        pytest.raises(RemoteAnswerError, match="are probabilities; set the dialect"),
    ):
        scorer.score(PAIRS)


def test_an_option_that_the_recognised_server_lacks_is_refused() -> None:
    with (
        serving("tei") as served,
        RemoteScorer(served.url, deployment="blue") as scorer,
        pytest.raises(InvalidInputError, match="tei has no deployments"),
    ):
        scorer.score(PAIRS)


def vllm_of(generation: str, route: str) -> StandIn:
    """VLLM before 0.9, before 0.10, before 0.11.1, since, and with poolers left out for logits."""

    def texts(body: Any) -> tuple[str, list[str]]:
        if generation == "0.6" and body.get("truncate_prompt_tokens", 1) < 1:
            raise Refused(400, {"message": "Input should be greater than or equal to 1"})
        return STAND_INS[route].texts(body)

    switch = {"0.10.1": ("activation", False), "0.12": ("use_activation", False)}
    found = replace(STAND_INS[route], texts=texts, raw=switch.get(generation))
    if generation != "no pooler":
        return found

    def without_pooler(query: str, passage: str) -> float:
        return 0.4 * logit(query, passage) - 0.3

    @dataclass(frozen=True)
    class NoPooler(StandIn):
        def answer(self, body: Any) -> Any:
            plain = self.plain if body["use_activation"] else without_pooler
            return StandIn.answer(replace(found, plain=plain), body)

    return NoPooler(**{part.name: getattr(found, part.name) for part in fields(StandIn)})


@pytest.mark.parametrize("generation", ["0.6", "0.8", "0.10.1", "0.12", "no pooler"])
@pytest.mark.parametrize("dialect", ["auto", "vllm", "vllm-score"])
def test_every_vllm_scores_by_logits_or_by_probabilities(
    generation: str, dialect: str, caplog: pytest.LogCaptureFixture
) -> None:
    route = "vllm" if dialect == "vllm" else "vllm-score"
    logits = generation in ("0.10.1", "0.12")
    with (
        serving(vllm_of(generation, route)) as served,
        RemoteScorer(served.url, model=MODEL, dialect=dialect) as scorer,
    ):
        expected = [(logit if logits else probability)(*pair) for pair in PAIRS]
        assert scorer.score(PAIRS).tolist() == pytest.approx(expected)
        assert scorer.scale == ("logit" if logits else "probability")
        sent = json.loads(served.requests[-1][3])
        assert ("truncate_prompt_tokens" in sent) == (generation != "0.6")
        assert sent["activation"] is sent["use_activation"] is not logits
        shown = Reranker(scorer).rerank("a b", ["a"])[0].score
    assert shown == pytest.approx(probability("a b", "a"))
    assert ("scores are probabilities" in caplog.text) == (not logits)


@pytest.mark.parametrize(
    ("logits", "probabilities", "scale"),
    [
        ([8.0, -9.0], [0.99967, 0.00012339], "logit"),
        ([8.03, -9.03], [0.99967, 0.00012339], "logit"),  # half precision
        ([4.0, -4.0], [0.99967, 0.00004], "probability"),
        ([8.0, -4.0], [0.99967, 0.00004], "probability"),
        ([0.99967, 0.00004], [0.99967, 0.00004], "probability"),
        ([8.0, -9.0], [8.0, -9.0], "logit"),  # no activation
        ([8.0, -4.0], [8.0, -9.0], None),
        ([0.6, 0.5], [0.6, 0.5], None),
        ([0.6, 0.5], [1.0, 1.0], None),
    ],
)
def test_the_scale_follows_from_two_sentences(
    logits: list[float], probabilities: list[float], scale: str | None
) -> None:
    first, asked = np.array(logits, np.float32), np.array(probabilities, np.float32)
    trial: Any = (first, first[::-1] - np.float32(0.01), asked)
    for name in ("tei", "vllm"):
        if scale == "logit" or (scale == "probability" and name == "vllm"):
            assert settle_scale(DIALECTS[name], *trial).scale == scale
        else:
            with pytest.raises(UnsupportedModel):
                settle_scale(DIALECTS[name], *trial)


@pytest.mark.parametrize("name", ["vllm", "vllm-score", "xinference", "hf-toolkit", "cohere"])
def test_scores_that_hardly_tell_two_sentences_apart_are_refused(name: str) -> None:
    """Logits that happen to lie between 0 and 1, or a head of random weights."""
    close = replace(STAND_INS[name], raw=None, plain=lambda q, p: 0.5 + logit(q, p) / 60)
    with (
        serving(close) as served,
        RemoteScorer(served.url, dialect=name, model=MODEL) as scorer,
        pytest.raises(UnsupportedModel, match=r"same scores for logits|with an unrelated one"),
    ):
        scorer.score(PAIRS)


def test_a_cache_keeps_the_scores_of_each_scale_apart() -> None:
    """An upgrade of vLLM turns probabilities into logits behind the same address and name."""
    store = MemoryStore()
    with serving(vllm_of("0.8", "vllm-score")) as served:
        for generation, score in (("0.8", probability), ("0.12", logit)):
            served.stand_in = vllm_of(generation, "vllm-score")
            with RemoteScorer(served.url, dialect="vllm-score") as scorer:
                found = CachedScorer(scorer, store).score(PAIRS)
            assert found.tolist() == pytest.approx([score(*pair) for pair in PAIRS])
