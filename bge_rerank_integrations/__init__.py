"""BGE rerankers for plain Python, LlamaIndex and LangChain.

Importing this package loads neither torch nor a framework. The adapters live in
`bge_rerank_integrations.llama_index` and `bge_rerank_integrations.langchain`.
"""

from bge_rerank_integrations.errors import (
    CheckpointError,
    ForkedModelError,
    InvalidInputError,
    MissingExtra,
    ModelNotFound,
    NonFiniteScoreError,
    OutOfMemoryError,
    RemoteAnswerError,
    RemoteError,
    RemoteRefused,
    RemoteUnavailable,
    RerankError,
    ScorerContractError,
    ScoringFailed,
    ScoringTimeout,
    UnreadableInput,
    UnsupportedModel,
)
from bge_rerank_integrations.load import load_reranker, load_scorer
from bge_rerank_integrations.ranking.reranker import Reranker
from bge_rerank_integrations.types import Evidence, Pair, RerankResult, Scale, Scorer

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Evidence",
    "ForkedModelError",
    "InvalidInputError",
    "MissingExtra",
    "ModelNotFound",
    "NonFiniteScoreError",
    "OutOfMemoryError",
    "Pair",
    "RemoteAnswerError",
    "RemoteError",
    "RemoteRefused",
    "RemoteUnavailable",
    "RerankError",
    "RerankResult",
    "Reranker",
    "Scale",
    "Scorer",
    "ScorerContractError",
    "ScoringFailed",
    "ScoringTimeout",
    "UnreadableInput",
    "UnsupportedModel",
    "__version__",
    "load_reranker",
    "load_scorer",
]
