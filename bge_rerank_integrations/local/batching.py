"""Which sequences go through the model together: from lengths to lists of indices."""

from collections.abc import Sequence


def plan_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    max_sequences: int | None = None,
    padded: bool = False,
    in_order: bool = False,
) -> list[list[int]]:
    """Pack indices, longest first or `in_order`, into batches of at most `max_tokens` tokens.

    With `padded` a batch costs its longest sequence times their number, otherwise the sum of their
    lengths. A sequence longer than the budget gets a batch of its own. Every index appears once;
    equal lengths keep their order.
    """
    order: Sequence[int] = range(len(lengths))
    if not in_order:
        order = sorted(order, key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    batch: list[int] = []
    longest = total = 0
    for index in order:
        longest, total = max(longest, lengths[index]), total + lengths[index]
        full = max_sequences is not None and len(batch) >= max_sequences
        cost = longest * (len(batch) + 1) if padded else total
        if batch and (full or cost > max_tokens):
            batches.append(batch)
            batch, longest, total = [], lengths[index], lengths[index]
        batch.append(index)
    if batch:
        batches.append(batch)
    return batches
