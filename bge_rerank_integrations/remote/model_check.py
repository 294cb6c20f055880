"""Whether what a server gives can be a reranker's scores on the scale that its dialect states.

Two sentences against each other show it: an embedding model is symmetric and gives 1 for a
sentence and itself; a switch between logits and probabilities must switch.
"""

from collections.abc import Sequence

import numpy as np

from bge_rerank_integrations.errors import UnsupportedModel
from bge_rerank_integrations.types import FloatArray, Scale

SENTENCES = (
    "The giant panda is a bear that lives in the mountains of China and eats bamboo.",
    "Water boils at one hundred degrees Celsius at the level of the sea.",
)


def check_model(
    scores: Sequence[FloatArray], probabilities: FloatArray | None, scale: Scale, source: str
) -> None:
    """Raise `UnsupportedModel` if these are not a reranker's scores on that scale.

    `scores[i][j]` is that of sentence i as the query and j as the passage; `probabilities` are
    those of the first row where the server gives both.
    """
    (self_a, a_b), (b_a, self_b) = scores[0].tolist(), scores[1].tolist()
    # half formats round a cosine of 1 by up to 0.004; rerankers are not symmetric to four digits
    # unless both numbers are next to nothing
    if (
        abs(self_a - 1) < 0.01
        and abs(self_b - 1) < 0.01
        and abs(a_b) > 0.05
        and abs(a_b - b_a) <= 1e-4 * abs(a_b)
    ):
        raise UnsupportedModel(
            f"{source} scores two sentences alike in both directions and each with itself as 1: "
            "these are cosines of an embedding model, not a reranker's scores"
        )
    if scale != "logit":
        return
    if probabilities is None:
        if all(0 <= score <= 1 for score in (self_a, a_b, b_a, self_b)):
            raise UnsupportedModel(
                f"{source} gives scores between 0 and 1 where its dialect has logits: its model "
                "ends in an activation, whose scale is not known"
            )
        return
    logits = scores[0].astype(np.float64)
    if np.abs(probabilities - logits).max() < 1e-6:
        if np.abs(logits).max() > 1:
            return  # logits both times: the model's config switches the activation off
        raise UnsupportedModel(
            f"{source} gives the same scores whether logits or probabilities are asked for: an "
            "embedding model's, or the server is too old to know the difference"
        )
    if np.abs(probabilities - 1 / (1 + np.exp(-logits))).max() > 0.02:
        raise UnsupportedModel(
            f"{source} gives logits and probabilities that do not belong together; the model has "
            "another activation than a reranker's"
        )
