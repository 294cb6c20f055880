"""The LLM options reach the model through the shell command and through both frameworks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from bge_rerank_integrations import load_reranker
from bge_rerank_integrations.langchain import BGECrossEncoder
from bge_rerank_integrations.langchain import BGERerank as LangChainRerank
from bge_rerank_integrations.llama_index import BGERerank as LlamaIndexRerank
from tests.cli.command import json_lines, run

QUERY = "what is a panda?"
TEXTS = [
    "A panda is a bear.",
    "Water boils.",
    "A ship of steel floats.",
    "大熊猫吃竹子。",
    "Paris.",
]
OPTIONS: dict[str, Any] = {
    "cutoff_layers": [3, 6],
    "compress_ratio": 2,
    "compress_layers": [2, 4],
    "head_indexing": "layer",
    "prompt": "Is it so?",
    "query_instruction": "query: ",
    "passage_instruction": "passage: ",
}


def ranking(folder: Path, **options: Any) -> list[tuple[int, float]]:
    reranker = load_reranker(str(folder), device="cpu", **options)
    return [(result.index, result.score) for result in reranker.rerank(QUERY, TEXTS)]


@pytest.fixture
def folder(llm: Callable[[str], Path]) -> Path:
    return llm("gemma2")


@pytest.fixture
def expected(folder: Path) -> list[tuple[int, float]]:
    found = ranking(folder, **OPTIONS)
    for name in OPTIONS:
        # without ratio or layers there is nothing to compress, and one needs the other
        left = {"compress_ratio", "compress_layers"} if "compress" in name else {name}
        others = {key: value for key, value in OPTIONS.items() if key not in left}
        assert ranking(folder, **others) != found, f"{name} makes no difference here"
    return found


def test_the_shell_command(folder: Path, expected: list[tuple[int, float]]) -> None:
    flags: list[str] = []
    for name, value in OPTIONS.items():
        for one in value if isinstance(value, list) else [value]:
            flags += [f"--{name.replace('_', '-')}", str(one)]
    done = run("rerank", "--model", str(folder), "--device", "cpu", *flags, QUERY, *TEXTS)
    assert done.returncode == 0, done.stderr
    rows = json_lines(done.stdout)
    assert [row["index"] for row in rows] == [index for index, _ in expected]
    assert [row["score"] for row in rows] == pytest.approx([score for _, score in expected])


def test_llama_index(folder: Path, expected: list[tuple[int, float]]) -> None:
    postprocessor = LlamaIndexRerank(model=str(folder), device="cpu", top_n=len(TEXTS), **OPTIONS)
    nodes = [NodeWithScore(node=TextNode(text=t, id_=str(i))) for i, t in enumerate(TEXTS)]
    found = postprocessor.postprocess_nodes(nodes, query_bundle=QueryBundle(QUERY))
    assert [int(node.node_id) for node in found] == [index for index, _ in expected]
    assert [node.score for node in found] == pytest.approx([score for _, score in expected])


def test_langchain(folder: Path, expected: list[tuple[int, float]]) -> None:
    compressor = LangChainRerank(model=str(folder), device="cpu", top_n=len(TEXTS), **OPTIONS)
    documents = [Document(page_content=text, id=str(n)) for n, text in enumerate(TEXTS)]
    found = compressor.compress_documents(documents, QUERY)
    assert [int(str(document.id)) for document in found] == [index for index, _ in expected]
    scores = [document.metadata["relevance_score"] for document in found]
    assert scores == pytest.approx([score for _, score in expected])
    encoder = BGECrossEncoder(model=str(folder), device="cpu", **OPTIONS)
    by_text = encoder.score([(QUERY, text) for text in TEXTS])
    assert [by_text[index] for index, _ in expected] == sorted(by_text, reverse=True)
