"""How an LLM's inputs lie in one packed batch: shared query parts, and compressed passages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bge_rerank_integrations.local.text.tokenizer import TokenSequence

# Below this share of tokens saved, the extra copies and masks of a shared prefix cost more.
LEAST_SHARED = 0.2


@dataclass(frozen=True, slots=True)
class Part:
    """So many rows of the packed batch, standing at position `start` behind part `prefix`.

    `kept` rows before and `tail` rows after the passage are never compressed. `ids` are those the
    part began with.
    """

    ids: np.ndarray[Any, Any]
    length: int
    start: int
    prefix: int | None
    kept: int
    tail: int


def split_batch(
    batch: Sequence[TokenSequence], *, share: bool, one_prefix: bool
) -> tuple[list[Part], list[int]]:
    """The parts to compute, and for each sequence the number of the part that ends it.

    Sequences that begin with the same query part share it where that saves enough; with
    `one_prefix` only if all of them do.
    """
    groups: dict[bytes, list[int]] = {}
    for number, sequence in enumerate(batch):
        groups.setdefault(sequence.ids[: sequence.first_segment].tobytes(), []).append(number)
    parts: list[Part] = []
    places = [0] * len(batch)
    for members in groups.values():
        length = batch[members[0]].first_segment
        total = sum(len(batch[member].ids) for member in members)
        worth = length * (len(members) - 1) >= LEAST_SHARED * total
        shared = share and worth and (len(groups) == 1 or not one_prefix)
        prefix = len(parts) if shared else None
        if shared:
            parts.append(Part(batch[members[0]].ids[:length], length, 0, None, length, 0))
        for member in members:
            ids = batch[member].ids[length:] if shared else batch[member].ids
            places[member] = len(parts)
            kept, start = (0, length) if shared else (length, 0)
            parts.append(Part(ids, len(ids), start, prefix, kept, batch[member].tail))
    return parts, places


def compress(x: Tensor, parts: Sequence[Part], ratio: int) -> tuple[Tensor, list[Part]]:
    """Mean-pool each passage's rows in groups of `ratio`, the last over what is left.

    Query and prompt rows stay. Weights are applied before the sum, in x's number format, as the
    reference does.
    """
    targets, weights, shorter = [], [], []
    offset = 0
    for part in parts:
        passage = part.length - part.kept - part.tail
        groups = -(-passage // ratio)
        middle = np.arange(passage) // ratio
        sizes = np.minimum(ratio, passage - middle * ratio)
        length = part.kept + groups + part.tail
        targets.append(
            offset
            + np.concatenate(
                [
                    np.arange(part.kept),
                    part.kept + middle,
                    np.arange(part.kept + groups, length),
                ]
            )
        )
        weights.append(np.concatenate([np.ones(part.kept), 1 / sizes, np.ones(part.tail)]))
        shorter.append(replace(part, length=length))
        offset += length
    into = torch.from_numpy(np.concatenate(targets)).to(x.device)
    weight = torch.from_numpy(np.concatenate(weights)).to(x.device, x.dtype)
    pooled = torch.zeros(offset, x.shape[1], dtype=x.dtype, device=x.device)
    return pooled.index_add_(0, into, x * weight[:, None]), shorter
