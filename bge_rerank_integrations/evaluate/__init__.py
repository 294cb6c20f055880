"""Whether reranking helps on your own data, and how to set it.

`evaluate` compares rerankers on questions whose answers are known; `retrieve_candidates` makes
these of a LlamaIndex or LangChain retriever, `read_beir` of files; `write_html` writes the report
as one page.
"""

from bge_rerank_integrations.evaluate.bootstrap import Difference, Estimate
from bge_rerank_integrations.evaluate.comparison import evaluate
from bge_rerank_integrations.evaluate.judged import JudgedQuery, read_beir
from bge_rerank_integrations.evaluate.page import write_html
from bge_rerank_integrations.evaluate.report import Report, RerankerResult
from bge_rerank_integrations.evaluate.retrieved import retrieve_candidates

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
