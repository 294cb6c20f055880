"""What a server's scores are held against: the same model in this process."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.types import FloatArray, Pair, Scale, Scorer, SpecialTokens
from tests.servers.serving import KEY, MODEL, Kind, Running

TORCH_TOLERANCE = 1e-4
GGML_TOLERANCE = 0.02
"""In logits, of a model whose logits are up to 6 apart: ggml rounds GELU, keys and values to half
precision, which was seen to move them by up to 0.012."""


def tolerance(kind: Kind) -> float:
    return GGML_TOLERANCE if kind.takes_gguf else TORCH_TOLERANCE


def connect(
    server: Running,
    *,
    dialect: str | None = None,
    key: str = KEY,
    batch_size: int | None = None,
) -> Scorer:
    return load_scorer(
        MODEL,
        base_url=server.url,
        dialect=server.kind.dialect if dialect is None else dialect,
        api_key=key,
        batch_size=batch_size,
    )


def local_scores(
    model: Path,
    pairs: Sequence[Pair],
    *,
    scale: Scale = "logit",
    special_tokens: SpecialTokens = "literal",
) -> FloatArray:
    """Our own scores on the server's scale."""
    logits = load_scorer(str(model), device="cpu", special_tokens=special_tokens).score(pairs)
    if scale == "probability":
        return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    return logits
