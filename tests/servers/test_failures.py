"""What real servers refuse, and what is left when one dies."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.errors import (
    RemoteError,
    RemoteRefused,
    RemoteUnavailable,
    UnsupportedModel,
)
from tests import tiny_models
from tests.servers.kinds import LLAMA_CPP, XINFERENCE
from tests.servers.scores import connect, local_scores, tolerance
from tests.servers.serving import KEY, MODEL, Running
from tests.servers.test_agreement import passages

QUERY = "what is a panda"


def test_a_wrong_key_is_refused_and_not_repeated(served: Running) -> None:
    if not served.kind.checks_key:
        pytest.skip(f"{served.kind.name} is run without a key")
    wrong = "another-key-4711"
    for dialect in (served.kind.dialect, "auto"):
        with pytest.raises(RemoteRefused, match="401") as refused:
            connect(served, dialect=dialect, key=wrong).score([(QUERY, "the giant bear")])
        assert wrong not in str(refused.value)


def test_a_missing_key_is_refused(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    if not served.kind.checks_key:
        pytest.skip(f"{served.kind.name} is run without a key")
    monkeypatch.delenv("BGE_RERANK_API_KEY", raising=False)
    scorer = load_scorer(MODEL, base_url=served.url, dialect=served.kind.dialect)
    with pytest.raises(RemoteRefused, match="401"):
        scorer.score([(QUERY, "the giant bear")])


def test_an_embedding_model_is_refused_where_the_server_shows_it(
    start: Callable[[Path], Running], tmp_path: Path
) -> None:
    folder = tmp_path / "embedder"
    folder.mkdir()
    server = start(tiny_models.build_served_embedder(folder))
    for dialect in (server.kind.dialect, "auto"):
        scorer = connect(server, dialect=dialect)
        if server.kind is LLAMA_CPP:
            # it gives a number of the vector, and nothing tells that from a score
            assert np.isfinite(scorer.score([(QUERY, "the giant bear")])).all()
        elif server.kind is XINFERENCE:
            # it draws the missing head at random, which rarely tells two sentences apart
            with suppress(UnsupportedModel):
                assert np.isfinite(scorer.score([(QUERY, "the giant bear")])).all()
        else:
            with pytest.raises((UnsupportedModel, RemoteRefused)):
                scorer.score([(QUERY, "the giant bear")])


def test_what_was_scored_before_the_server_died_is_kept(
    start: Callable[[Path], Running], reranker_folder: Path
) -> None:
    server = start(reranker_folder)
    pairs = [(QUERY, passage) for passage in passages(20_000)]
    scorer = load_scorer(
        MODEL,
        base_url=server.url,
        dialect=server.kind.dialect,
        api_key=KEY,
        batch_size=4,
        max_concurrency=1,
        max_retries=1,
    )
    scorer.score(pairs[:1])
    printed = server.log.stat().st_size
    raised: list[BaseException] = []

    def score() -> None:
        try:
            scorer.score(pairs)
        except RemoteError as error:
            raised.append(error)

    at_work = Thread(target=score)
    at_work.start()
    while at_work.is_alive() and server.log.stat().st_size < printed + 3000:
        at_work.join(timeout=0.01)  # every server prints a line or more for each request
    server.kill()
    at_work.join()
    (error,) = raised
    assert isinstance(error, RemoteUnavailable)
    assert error.partial is not None
    came = np.isfinite(error.partial)
    assert 4 <= came.sum() < len(pairs)
    known = [pair for pair, scored in zip(pairs, came, strict=True) if scored]
    np.testing.assert_allclose(
        error.partial[came],
        local_scores(reranker_folder, known, scale=scorer.scale),
        rtol=0,
        atol=tolerance(server.kind),
    )
