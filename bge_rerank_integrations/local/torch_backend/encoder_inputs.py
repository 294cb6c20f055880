"""A batch of sequences as the arrays that an encoder reads."""

from collections.abc import Sequence

import numpy as np

from bge_rerank_integrations.local.model_config import EncoderConfig
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.local.torch_backend.transfer import Array


def input_arrays(
    batch: Sequence[TokenSequence], config: EncoderConfig, *, typed: bool
) -> dict[str, Array]:
    """The batch end to end: for each token its id, position and type, and where sequences begin.

    Types are there only if `typed`, for models that tell query and passage apart.
    """
    lengths = [len(sequence.ids) for sequence in batch]
    arrays: dict[str, Array] = {
        "ids": np.concatenate([sequence.ids for sequence in batch]).astype(np.int64),
        "positions": np.concatenate([_positions(sequence.ids, config) for sequence in batch]),
        "first": np.cumsum([0, *lengths[:-1]]),
    }
    if typed:
        arrays["types"] = np.concatenate(
            [
                (np.arange(length) >= sequence.first_segment).astype(np.int64)
                for sequence, length in zip(batch, lengths, strict=True)
            ]
        )
    return arrays


def owner_arrays(batch: Sequence[TokenSequence]) -> dict[str, Array]:
    """What a mean needs: for each token the number of its sequence, and the sequences' lengths."""
    lengths = np.array([len(sequence.ids) for sequence in batch])
    return {"owner": np.repeat(np.arange(len(batch)), lengths), "lengths": lengths}


def _positions(ids: Array, config: EncoderConfig) -> Array:
    if not config.offset_positions:
        return np.arange(len(ids))
    real = ids != config.pad
    positions: Array = np.cumsum(real) * real + config.pad
    return positions
