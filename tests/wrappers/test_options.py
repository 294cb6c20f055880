"""`long_passages` and `score_cache` reach the scorer from Python, both frameworks and the shell."""

from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from bge_rerank_integrations import InvalidInputError, load_reranker, load_scorer
from bge_rerank_integrations.langchain import BGECrossEncoder
from bge_rerank_integrations.langchain import BGERerank as Compressor
from bge_rerank_integrations.llama_index import BGERerank as Postprocessor
from bge_rerank_integrations.wrappers.cache import CachedScorer
from bge_rerank_integrations.wrappers.windows import WindowedScorer
from tests.cli.command import json_lines, run
from tests.fakes import WordOverlapScorer

QUERY = "who described a program for a computer"
FILLER = "Water boils at 100 degrees at the level of the sea. " * 60
ANSWER = "Ada Lovelace described a program for a computer."
LATE = FILLER + ANSWER  # the answer stands where a scorer that cuts never reads


def raw(model: str, **options: Any) -> float:
    reranker = load_reranker(model, device="cpu", **options)
    return reranker.rerank(QUERY, [LATE])[0].raw_score


def test_windows_find_what_stands_late(reranker_base: Path) -> None:
    model = str(reranker_base)
    expected = WindowedScorer(load_scorer(model, device="cpu")).score([(QUERY, LATE)])[0]
    assert raw(model, long_passages="windows") == expected
    assert raw(model) == load_scorer(model, device="cpu").score([(QUERY, LATE)])[0]
    assert raw(model) != expected


def test_the_embedded_model_finds_it_too() -> None:
    cut = load_reranker("offline", max_length=64).rerank(QUERY, [LATE, FILLER])
    windowed = load_reranker("offline", max_length=64, long_passages="windows")
    read = windowed.rerank(QUERY, [LATE, FILLER])
    assert cut[0].raw_score < 0 < read[0].raw_score
    assert read[0].index == 0


def test_the_adapters_read_in_windows(reranker_base: Path) -> None:
    expected = raw(str(reranker_base), long_passages="windows")
    fields: dict[str, Any] = {
        "model": str(reranker_base),
        "device": "cpu",
        "long_passages": "windows",
        "normalize": False,
    }
    (node,) = Postprocessor(**fields).postprocess_nodes(
        [NodeWithScore(node=TextNode(text=LATE))], query_str=QUERY
    )
    (document,) = Compressor(**fields).compress_documents([Document(page_content=LATE)], QUERY)
    (score,) = BGECrossEncoder(**fields).score([(QUERY, LATE)])
    assert [node.score, document.metadata["relevance_score"], score] == [expected] * 3


def test_an_error_names_the_passage(reranker_base: Path) -> None:
    reranker = load_reranker(str(reranker_base), device="cpu", long_passages="error")
    with pytest.raises(InvalidInputError, match="passage at position 1 has") as refused:
        reranker.rerank(QUERY, [ANSWER, LATE])
    assert refused.value.index == 1


def test_scores_are_kept_in_the_file_between_objects(reranker_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.db"
    fields: dict[str, Any] = {
        "model": str(reranker_base),
        "device": "cpu",
        "long_passages": "windows",
        "score_cache": str(file),
    }
    first = raw(str(reranker_base), long_passages="windows", score_cache=str(file))
    before = file.read_bytes()
    adapter = Compressor(**fields, include_logit=True)
    (document,) = adapter.compress_documents([Document(page_content=LATE)], QUERY)
    assert document.metadata["rerank_raw_score"] == first
    assert file.read_bytes() == before, "nothing was missing"
    assert isinstance(adapter.loaded_scorer(), CachedScorer)
    adapter.score_cache = None
    assert isinstance(adapter.loaded_scorer(), WindowedScorer)


def test_a_cache_in_memory_lasts_as_long_as_its_adapter(reranker_base: Path) -> None:
    adapter = BGECrossEncoder(model=str(reranker_base), device="cpu", score_cache=":memory:")
    assert adapter.score([(QUERY, ANSWER)]) == adapter.score([(QUERY, ANSWER)])
    assert adapter.loaded_scorer() is adapter.loaded_scorer()


def test_the_command_reads_in_windows_and_keeps_scores(tmp_path: Path) -> None:
    arguments = [
        "rerank",
        QUERY,
        LATE,
        FILLER,
        "--model",
        "offline",
        "--json",
        "--max-length",
        "64",
    ]
    arguments += ["--long-passages", "windows", "--score-cache", str(tmp_path / "scores.db")]
    first, second = run(*arguments), run(*arguments)
    assert first.returncode == second.returncode == 0
    assert first.stdout == second.stdout
    assert json_lines(first.stdout)[0]["raw_score"] > 0
    assert (tmp_path / "scores.db").stat().st_size > 0


def test_other_words_are_refused(reranker_base: Path) -> None:
    with pytest.raises(InvalidInputError, match="long_passages is 'split'"):
        load_reranker(str(reranker_base), device="cpu", long_passages="split")  # type: ignore[arg-type]


def test_a_server_has_no_windows_and_no_file_without_a_models_name(tmp_path: Path) -> None:
    address = "http://127.0.0.1:9"
    with pytest.raises(InvalidInputError, match="the tokenizer of a server is not"):
        load_reranker(address, long_passages="windows")
    with pytest.raises(InvalidInputError, match="the server may run another model"):
        load_reranker(address, score_cache=str(tmp_path / "scores.db"))
    named = load_reranker("some-model", base_url=address, score_cache=str(tmp_path / "scores.db"))
    assert isinstance(named.scorer, CachedScorer)
    assert isinstance(load_reranker(address, score_cache=":memory:").scorer, CachedScorer)


@pytest.mark.parametrize("option", [{"long_passages": "windows"}, {"score_cache": ":memory:"}])
@pytest.mark.parametrize("adapter", [Compressor, Postprocessor, BGECrossEncoder])
def test_a_given_scorer_is_wrapped_by_its_giver(adapter: Any, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give scorer=CachedScorer"):
        adapter(scorer=WordOverlapScorer(), **option)


def test_a_shared_cache_hides_no_passage_that_is_too_long(
    reranker_base: Path, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"max_length": 64, "score_cache": str(tmp_path / "scores.db")}
    cut = raw(str(reranker_base), **shared)
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=r"the passage at position 0 has .* tokens"):
            raw(str(reranker_base), long_passages="error", **shared)
    assert raw(str(reranker_base), **shared) == cut
    fits = load_reranker(str(reranker_base), device="cpu", long_passages="error", **shared)
    plain = load_scorer(str(reranker_base), device="cpu", max_length=64)
    for _ in range(2):
        assert fits.rerank(QUERY, [ANSWER])[0].raw_score == plain.score([(QUERY, ANSWER)])[0]
