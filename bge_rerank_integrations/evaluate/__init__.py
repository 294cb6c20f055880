"""Measure whether reranking helps on your own data, and how to set it.

`evaluate` compares rerankers on questions with known answers. `retrieve_candidates` gets such
questions from a LlamaIndex or LangChain retriever, `read_beir` from files; `write_html` writes the
report as one page. Importing this package raises `MissingExtra` without the `eval` extra.
"""

from bge_rerank_integrations.errors import missing_extra

with missing_extra("eval"):
    from bge_rerank_integrations.evaluate.comparison import evaluate
    from bge_rerank_integrations.evaluate.judged import JudgedQuery, read_beir
    from bge_rerank_integrations.evaluate.page import write_html
    from bge_rerank_integrations.evaluate.report import Report, RerankerResult
    from bge_rerank_integrations.evaluate.retrieved import retrieve_candidates
    from bge_rerank_integrations.evaluate.statistics import Difference, Estimate

__all__ = [
    "Difference",
    "Estimate",
    "JudgedQuery",
    "Report",
    "RerankerResult",
    "evaluate",
    "read_beir",
    "retrieve_candidates",
    "write_html",
]
