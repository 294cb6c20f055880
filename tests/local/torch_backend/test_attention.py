"""Attention over long sequences: of one row, which is all a last layer needs, and of all rows."""

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


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.bfloat16, 4e-3)])
def test_long_sequences_are_exact_and_the_same_alone_and_together(
    dtype: torch.dtype, bound: float
) -> None:
    lengths, heads, size = [1300, 1300, 1024], 3, 32
    segments = [Segment(length) for length in lengths]
    shape = AttentionShape(heads, heads, causal=False, scale=None)
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(3, sum(lengths), heads * size, generator=generator).to(dtype)
    together = RunAttention(segments, shape)
    rows = torch.split(together(to_device(together.arrays, "cpu"), *parts), lengths)
    owns = torch.split(parts, lengths, dim=1)
    for segment, found, own in zip(segments, rows, owns, strict=True):
        query, key, value = own.double().view(3, segment.length, heads, size).transpose(1, 2)
        products = query @ key.transpose(1, 2) / size**0.5
        right = (products.softmax(dim=2) @ value).transpose(0, 1).reshape(found.shape)
        assert (found - right).abs().max() / right.abs().max() < bound
        alone = RunAttention([segment], shape)
        assert torch.equal(found, alone(to_device(alone.arrays, "cpu"), *own))
