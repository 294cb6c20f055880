"""Padded batches, and whether padding changes a row: for models that take rectangular inputs."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.types import FloatArray

# How far a row may be from the same row computed alone: float32 sums in another order.
TOLERANCE = 1e-5


def padded(batch: Sequence[TokenSequence], padding: int) -> dict[str, NDArray[np.int64]]:
    """`input_ids`, `attention_mask` and `token_type_ids`, each [sequences, tokens]."""
    lengths, firsts = np.array([(len(s.ids), s.first_segment) for s in batch]).T[:, :, None]
    places = np.arange(lengths.max())
    ids = np.full((len(batch), len(places)), padding, dtype=np.int64)
    for row, sequence in zip(ids, batch, strict=True):
        row[: len(sequence.ids)] = sequence.ids
    real = places < lengths
    return {
        "input_ids": ids,
        "attention_mask": real.astype(np.int64),
        "token_type_ids": (real & (places >= firsts)).astype(np.int64),
    }


def probe(length: int, vocabulary: int, padding: int, end: int | None = None) -> TokenSequence:
    """Ids from the whole vocabulary except padding; `end` comes last if the vocabulary has it."""
    ids = np.linspace(0, vocabulary - 1, length).astype(np.int32)
    other = next(i for i in range(vocabulary - 1, -1, -1) if i not in (padding, end))
    ids[(ids == padding) | (ids == end)] = other
    if end is not None and 0 <= end < vocabulary:
        ids[-1] = end
    return TokenSequence(ids, length // 2)


def padding_error(together: FloatArray, alone: FloatArray) -> str | None:
    """The reason not to pad, where rows of a padded batch are not those of each sequence alone."""
    moved = float(np.abs(together - alone).max() / max(1.0, float(np.abs(alone).max())))
    return None if moved <= TOLERANCE else f"in a padded batch a row moves by {moved:.1e}"
