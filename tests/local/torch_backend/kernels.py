"""Kernels for ragged attention that run anywhere: one that is right, and the ways to be wrong."""

import torch
from torch import Tensor

from bge_rerank_integrations.local.torch_backend.cuda_attention import Rule, Spans


def one_by_one(query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule) -> Tensor:
    """Each sequence by itself, by the definition; NaN in rows that belong to none."""
    out = torch.full_like(query, torch.nan)
    ends, key_ends = spans.queries.tolist(), spans.keys.tolist()
    for number in range(len(ends) - 1):
        rows, seen = slice(*ends[number : number + 2]), slice(*key_ends[number : number + 2])
        out[rows] = attend(query[rows], key[seen], value[seen], rule)
    return out


def attend(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """softmax(scale * q k) v for each head; the last query stands at the last key."""
    asking, heads, size = query.shape
    seen = len(key)
    key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    scale = size**-0.5 if rule.scale is None else rule.scale
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    if rule.causal:
        back = torch.arange(seen - asking, seen)[:, None] - torch.arange(seen)
        hidden = (back < 0) if rule.window is None else (back < 0) | (back >= rule.window)
        scores = scores.masked_fill(hidden, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)


def does_not_exist(query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule) -> Tensor:
    mixed: Tensor = torch.ops.aten._attention_of_some_other_release(query, key, value)
    return mixed


def not_on_this_device(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule
) -> Tensor:
    raise NotImplementedError("Could not run with arguments from this backend")


def needs_memory(query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def mixes_sequences_up(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule
) -> Tensor:
    if len(query) != len(key):
        return one_by_one(query, key, value, spans, rule)
    return attend(query, key, value, rule)


def sees_one_key_too_few(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule
) -> Tensor:
    out = one_by_one(query, key, value, spans, rule)
    last, keys = int(spans.queries[-2]), int(spans.keys[-2])
    out[last:] = attend(query[last:], key[keys:-1], value[keys:-1], rule)
    return out


def ignores_the_window(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule
) -> Tensor:
    return one_by_one(query, key, value, spans, Rule(rule.causal, None, rule.scale))


def window_off_by_one(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule
) -> Tensor:
    window = None if rule.window is None else rule.window + 1
    return one_by_one(query, key, value, spans, Rule(rule.causal, window, rule.scale))


def counts_from_the_first_key(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule
) -> Tensor:
    """The other way to lay a causal mask over fewer queries than keys."""
    out = one_by_one(query, key, value, spans, rule)
    ends, key_ends = spans.queries.tolist(), spans.keys.tolist()
    for number in range(len(ends) - 1):
        first, last = ends[number : number + 2]
        if rule.causal:
            rows, start = slice(first, last), key_ends[number]
            seen = slice(start, start + last - first)
            out[rows] = attend(query[rows], key[seen], value[seen], rule)
    return out


def forgets_the_scale(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule
) -> Tensor:
    return one_by_one(query, key, value, spans, Rule(rule.causal, rule.window, None))


def takes_every_head_alike(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule
) -> Tensor:
    key, value = (x[:, :1].expand_as(x) for x in (key, value))
    return one_by_one(query, key, value, spans, rule)


def gives_nan(query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule) -> Tensor:
    out = one_by_one(query, key, value, spans, rule)
    out[-1] = torch.nan
    return out


def gives_another_shape(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule
) -> Tensor:
    return one_by_one(query, key, value, spans, rule)[:1]
