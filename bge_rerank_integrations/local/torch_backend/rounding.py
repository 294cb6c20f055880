"""How far a half-precision model is from float32, measured on fixed texts when it is loaded."""

from collections.abc import Sequence

import numpy as np

from bge_rerank_integrations.local.engine import Forward
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, TokenSequence, join_pair
from bge_rerank_integrations.types import FloatArray

QUERY = "How does a giant panda spend its day?"
PASSAGES = (
    "Giant pandas eat bamboo for ten to sixteen hours a day.",
    "The panda is a bear native to the mountain ranges of central China.",
    "Bread is made from flour, water, salt and yeast.",
    "大熊猫每天大部分时间都在吃竹子。",
    "A day has 24 hours.",
    "The committee met twice in 2019; no decision was made, and the members went home early.",
    "¿Dónde está la biblioteca?",
    "Pandas do not hibernate. In winter they move to lower, warmer slopes and go on eating there.",
)


def probe_inputs(tokenizer: TextTokenizer, limit: int) -> list[TokenSequence]:
    """The fixed texts as inputs of at most `limit` tokens."""
    query, *passages = tokenizer.encode([QUERY, *PASSAGES], range(1 + len(PASSAGES)))
    inputs = [join_pair(query, passage, tokenizer.pair_template) for passage in passages]
    return [sequence for sequence in inputs if len(sequence.ids) <= limit]


def describe_rounding(exact: FloatArray, half: FloatArray, forward: Forward) -> str:
    """One line for the device plan: the largest difference, in logits or in parts of a vector."""
    what = "logit"
    if exact.shape[1] > 1:
        what = "cosine"
        exact, half = _cosines(exact), _cosines(half)
    error = float(np.abs(exact - half).max())
    return (
        f"rounding: largest {what} error against fp32 is {error:.1e} on {len(exact)} fixed inputs, "
        f"measured at load in {forward.plan.precision}"
    )


def _cosines(vectors: FloatArray) -> FloatArray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines: FloatArray = unit @ unit.T
    return cosines


def run_all(forward: Forward, inputs: Sequence[TokenSequence]) -> FloatArray:
    """The rows of each input by itself."""
    return forward.fetch([forward.run([sequence]) for sequence in inputs])
