"""A cascade as fields: loaded, written down and refused, in both frameworks and the shell."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from bge_rerank_integrations import load_reranker, load_scorer
from bge_rerank_integrations.cascade_fields import StageFields
from bge_rerank_integrations.langchain import BGERerank as Compressor
from bge_rerank_integrations.llama_index import BGERerank as Postprocessor
from bge_rerank_integrations.ranking.cascade import CascadeStage
from tests.cli.command import json_lines, run
from tests.fakes import WordOverlapScorer

QUERY = "How many people live in Berlin?"
PASSAGES = [
    "Berlin is a city.",
    "New York has a museum.",
    "Berlin has 3,520,031 registered inhabitants.",
    "Many people like bread.",
    "People live in Berlin: how many?",
]
STAGE = {"model": "offline-embedder", "keep": 3}


def compressor(*stages: Any, **fields: Any) -> Compressor:
    """With its stages given as JSON would have them."""
    return Compressor(**fields, cascade=list(stages))  # type: ignore[arg-type]


def postprocessor(*stages: Any, **fields: Any) -> Postprocessor:
    return Postprocessor(**fields, cascade=list(stages))  # type: ignore[arg-type]


def reached() -> list[int]:
    """The passages that the embedder likes best, in the order of PASSAGES."""
    cosines = load_scorer("offline-embedder").score([(QUERY, text) for text in PASSAGES])
    return sorted((-cosines).argsort(kind="stable")[:3].tolist())


def expected() -> list[tuple[int, float]]:
    logits = load_scorer("offline").score([(QUERY, text) for text in PASSAGES])
    return [(i, float(logits[i])) for i in sorted(reached(), key=lambda i: -logits[i])]


@pytest.mark.parametrize("stage", [STAGE, StageFields(model="offline-embedder", keep=3)])
def test_both_frameworks_rank_by_the_last_model_what_the_first_one_leaves(stage: Any) -> None:
    assert reached() != [0, 1, 2], "the first three are no test"
    fields: dict[str, Any] = {
        "model": "offline",
        "cascade": [stage],
        "normalize": False,
        "top_n": None,
    }
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in PASSAGES]
    kept = Postprocessor(**fields).postprocess_nodes(nodes, query_str=QUERY)
    assert [(PASSAGES.index(node.text), node.score) for node in kept] == expected()
    documents = [Document(page_content=text) for text in PASSAGES]
    found = Compressor(**fields).compress_documents(documents, QUERY)
    assert [
        (PASSAGES.index(one.page_content), one.metadata["relevance_score"]) for one in found
    ] == expected()


def test_it_is_written_in_few_words_and_read_back() -> None:
    given = postprocessor(STAGE, model="offline")
    assert list(given.to_dict()["cascade"]) == [STAGE] == json.loads(given.to_json())["cascade"]
    again = Postprocessor.from_json(given.to_json())
    assert again == given == pickle.loads(pickle.dumps(given))
    assert again.cascade[0].loaded_stage().scorer.scale == "cosine"
    assert given != postprocessor({**STAGE, "keep": 4}, model="offline")
    assert "keep=3" in repr(given)
    explicit = compressor({"model": Compressor().model, "keep": 9})
    assert Compressor(**explicit.model_dump()) == explicit


def test_a_secret_of_a_stage_is_in_nothing_that_is_written() -> None:
    given = compressor({"model": "http://127.0.0.1:9", "keep": 3, "api_key": "hidden"})
    assert given.cascade[0].api_key is not None
    written = [repr(given), given.model_dump_json(), repr(pickle.dumps(given))]
    assert ["hidden" in text for text in written] == [False, False, False]


def test_models_are_loaded_with_the_adapters_own_and_given_up_with_it(reranker_base: Path) -> None:
    stage = {"model": str(reranker_base), "keep": 3, "device": "cpu"}
    adapter = compressor(stage, model="offline", lazy_load=False)
    assert [one._loaded is None for one in (adapter, adapter.cascade[0])] == [False, False]
    adapter.close()
    assert [one._loaded is None for one in (adapter, adapter.cascade[0])] == [True, True]


@pytest.mark.parametrize("adapter", [Compressor, Postprocessor])
def test_what_cannot_work_is_refused_at_construction_and_at_assignment(adapter: Any) -> None:
    with pytest.raises(ValueError, match="top_n is 4, and the cascade leaves 3"):
        adapter(cascade=[STAGE], top_n=4)
    with pytest.raises(ValueError, match=r"keep \[3, 3\]; each must keep fewer"):
        adapter(cascade=[STAGE, STAGE])
    with pytest.raises(ValueError, match="needs a model"):
        adapter(cascade=[{"keep": 3}])
    with pytest.raises(ValueError, match="keep"):
        adapter(cascade=[{"model": "offline-embedder"}])
    chosen = adapter(cascade=[STAGE], top_n=3)
    with pytest.raises(ValueError, match="top_n is 4"):
        chosen.top_n = 4
    with pytest.raises(ValueError, match="frozen"):
        chosen.cascade[0].keep = 50


def test_a_stage_may_be_a_scorer_which_cannot_be_written_down() -> None:
    first = WordOverlapScorer()
    last = WordOverlapScorer("last")
    adapter = compressor({"scorer": first, "keep": 2}, scorer=last, top_n=None)
    documents = [Document(page_content=text) for text in PASSAGES]
    found = adapter.compress_documents(documents, "berlin inhabitants")
    assert [PASSAGES.index(one.page_content) for one in found] == [2, 0]
    assert first.pairs_scored == 5
    with pytest.raises(ValueError, match="word-overlap"):
        compressor({"scorer": first, "keep": 2}, top_n=2).model_dump()


def test_plain_python_takes_loaded_stages() -> None:
    stage = CascadeStage(load_scorer("offline-embedder"), keep=3)
    results = load_reranker("offline", cascade=[stage]).rerank(QUERY, PASSAGES)
    assert [(result.index, result.raw_score) for result in results] == expected()


def test_the_command_has_a_first_model() -> None:
    asked = ("rerank", QUERY, *PASSAGES, "--model", "offline", "--json")
    done = run(*asked, "--first", "offline-embedder:3")
    assert done.returncode == 0
    rows = [(row["index"], row["raw_score"]) for row in json_lines(done.stdout)]
    assert rows == expected()


@pytest.mark.parametrize("first", ["offline-embedder", ":3", "offline-embedder:", "a:b", "a:-3"])
def test_the_command_says_what_a_first_model_is(first: str) -> None:
    done = run("rerank", QUERY, *PASSAGES, "--model", "no such model", "--first", first)
    assert done.returncode != 0
    assert f"--first is {first!r}; it must be a model" in " ".join(done.stderr.split())
