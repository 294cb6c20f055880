"""Which sequences go through the model together: from lengths to lists of indices."""

from collections.abc import Sequence


def plan_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    max_sequences: int | None = None,
    padded: bool = False,
) -> list[list[int]]:
    """Pack indices, longest first, into batches of at most `max_tokens` tokens.

    With `padded` a batch costs its longest sequence times their number, otherwise the sum of their
    lengths. A sequence longer than the budget gets a batch of its own. Every index appears once;
    equal lengths keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    batch: list[int] = []
    used = 0
    for index in order:
        # longest first, so a padded batch is as wide as its first sequence
        cost = lengths[batch[0]] if padded and batch else lengths[index]
        full = max_sequences is not None and len(batch) >= max_sequences
        if batch and (full or used + cost > max_tokens):
            batches.append(batch)
            batch, used, cost = [], 0, lengths[index]
        batch.append(index)
        used += cost
    if batch:
        batches.append(batch)
    return batches
