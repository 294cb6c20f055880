"""Attention where one row asks, which is all that the last layer of most models needs."""

import pytest
import torch

from bge_rerank_integrations.local.torch_backend.attention import (
    AttentionShape,
    BuildAttention,
    PaddedAttention,
    RunAttention,
    Segment,
)
from bge_rerank_integrations.local.torch_backend.runtime import to_device

LENGTHS = (8192, 3, 700)
BERT = AttentionShape(heads=4, kv_heads=4, causal=False, scale=None)
GEMMA = AttentionShape(heads=4, kv_heads=2, causal=True, scale=0.2)


@pytest.mark.parametrize("build", [RunAttention, PaddedAttention])
@pytest.mark.parametrize(
    ("shape", "window"), [(BERT, None), (GEMMA, None), (GEMMA, 4096)], ids=["bert", "gemma", "cut"]
)
def test_one_row_sees_thousands_without_loss(
    build: BuildAttention, shape: AttentionShape, window: int | None
) -> None:
    size, generator = 16, torch.Generator().manual_seed(0)
    query = torch.randn(len(LENGTHS), shape.heads * size, generator=generator)
    key, value = torch.randn(2, sum(LENGTHS), shape.kv_heads * size, generator=generator) + 0.3
    attend = build([Segment(length) for length in LENGTHS], shape)
    found = attend(to_device(attend.arrays, "cpu"), query, key, value, window)
    start = 0
    for row, length in enumerate(LENGTHS):
        seen = slice(start + max(0, length - (window or length)), start + length)
        k, v = (
            x[seen].double().view(-1, shape.kv_heads, size).repeat_interleave(
                shape.heads // shape.kv_heads, dim=1
            )
            for x in (key, value)
        )  # fmt: skip
        asked = query[row].double().view(shape.heads, size)
        products = torch.einsum("hd,thd->ht", asked, k) * (shape.scale or size**-0.5)
        right = torch.einsum("ht,thd->hd", products.softmax(dim=1), v)
        error = (found[row].view(shape.heads, size) - right).abs().max() / right.abs().max()
        assert error < 1e-6
        start += length
