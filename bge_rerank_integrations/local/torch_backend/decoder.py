"""A padding-free forward for the LLM rerankers: no remote code, no vocabulary-wide head.

It computes only what a score needs: no layer beyond the deepest cut-off, the last layer for the
last token alone, and one dot product instead of a logit per token of the vocabulary. A query that
passages share is computed once per batch where that saves time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bge_rerank_integrations.errors import CheckpointError
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.decoder_spec import DecoderSpec, LogitHead
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.local.torch_backend.attention import (
    AttentionShape,
    OnDevice,
    PackedAttention,
    Segment,
)
from bge_rerank_integrations.local.torch_backend.cuda_attention import (
    ATTENTIONS,
    with_checked_attention,
)
from bge_rerank_integrations.local.torch_backend.linear import LayerActivation, Linear
from bge_rerank_integrations.local.torch_backend.runtime import (
    TorchForward,
    arithmetic,
    exact_plan,
    to_device,
    to_host,
    weight_format,
    with_gemm_path,
    with_token_budget,
)
from bge_rerank_integrations.local.torch_backend.weights import Weights, check_tensors, misshapen
from bge_rerank_integrations.types import FloatArray

# Below this share of tokens saved, the extra copies and masks of a shared prefix cost more.
MIN_SHARED = 0.2


@dataclass(frozen=True, slots=True)
class PromptPart:
    """`length` rows of the packed batch, from position `start`, after the part `prefix`.

    `kept` rows before and `tail` rows after the passage are never compressed. `ids` are the ids
    before any compression.
    """

    ids: np.ndarray[Any, Any]
    length: int
    start: int
    prefix: int | None
    kept: int
    tail: int


def split_batch(
    batch: Sequence[TokenSequence], *, share: bool
) -> tuple[list[PromptPart], list[int]]:
    """The parts to compute, and the number of each sequence's last part.

    With `share`, sequences with the same query share its part where that saves enough.
    """
    groups: dict[bytes, list[int]] = {}
    for number, sequence in enumerate(batch):
        groups.setdefault(sequence.ids[: sequence.first_segment].tobytes(), []).append(number)
    parts: list[PromptPart] = []
    places = [0] * len(batch)
    for members in groups.values():
        length = batch[members[0]].first_segment
        total = sum(len(batch[member].ids) for member in members)
        shared = share and length * (len(members) - 1) >= MIN_SHARED * total
        prefix = len(parts) if shared else None
        if shared:
            parts.append(PromptPart(batch[members[0]].ids[:length], length, 0, None, length, 0))
        for member in members:
            ids = batch[member].ids[length:] if shared else batch[member].ids
            places[member] = len(parts)
            kept, start = (0, length) if shared else (length, 0)
            parts.append(PromptPart(ids, len(ids), start, prefix, kept, batch[member].tail))
    return parts, places


def compress(x: Tensor, parts: Sequence[PromptPart], ratio: int) -> tuple[Tensor, list[PromptPart]]:
    """Mean-pool each passage's rows in groups of `ratio`; the last group may be smaller.

    Query and prompt rows stay. As in the reference, weights are applied before the sum, in x's
    number format.
    """
    targets, weights, shorter = [], [], []
    offset = 0
    for part in parts:
        passage = part.length - part.kept - part.tail
        groups = -(-passage // ratio)
        middle = np.arange(passage) // ratio
        sizes = np.minimum(ratio, passage - middle * ratio)
        length = part.kept + groups + part.tail
        rest = (np.arange(part.kept), part.kept + middle, np.arange(part.kept + groups, length))
        targets.append(offset + np.concatenate(rest))
        weights.append(np.concatenate([np.ones(part.kept), 1 / sizes, np.ones(part.tail)]))
        shorter.append(replace(part, length=length))
        offset += length
    into = torch.from_numpy(np.concatenate(targets)).to(x.device)
    weight = torch.from_numpy(np.concatenate(weights)).to(x.device, x.dtype)
    pooled = torch.zeros(offset, x.shape[1], dtype=x.dtype, device=x.device)
    return pooled.index_add_(0, into, x * weight[:, None]), shorter


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One decoder layer; only Gemma 2 has norms after attention and feed-forward."""

    query: Linear
    key_value: Linear
    attended: Linear
    gate: Linear
    up: Linear
    down: Linear
    before_attention: Tensor
    after_attention: Tensor | None
    before_feed_forward: Tensor
    after_feed_forward: Tensor | None


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """The packed batch's layout, the same for every layer until rows are compressed."""

    attend: PackedAttention
    rotary: Tensor
    """Cosines and sines of each row's position: [2, rows, head size]."""
    ends: Tensor
    """The row of each part's last token."""
    sent: OnDevice
    """Attention's arrays, on the device."""


class Decoder(TorchForward):
    """A causal language model cut down to its relevance score; see `engine.Forward`.

    `run` gives one column per layer that scores, ascending.
    """

    share_prefix = True
    """Whether a query that passages share is computed once where that saves time."""

    def __init__(self, checkpoint: Checkpoint, plan: DevicePlan, spec: DecoderSpec) -> None:
        self._shape = AttentionShape(
            spec.query_heads, spec.kv_heads, causal=True, scale=spec.attention_scale
        )
        plan = with_checked_attention(
            plan, self._shape, head_size=spec.head_size, windowed=spec.window is not None
        )
        plan, path = with_gemm_path(plan)
        super().__init__(checkpoint, plan, spec, batches_at_once=2)
        self.spec = spec
        self._format = weight_format(plan)
        check_tensors(checkpoint, spec.tensors, is_unread=spec.is_unread)
        model = Weights(checkpoint, plan, "model.", path=path)
        exact = model.of_dtype(torch.float32, prefix="")
        with torch.inference_mode():
            self._words = model.read_table("embed_tokens.weight")
            self._layers = [_read_layer(model, spec, number) for number in range(spec.depth)]
            self._final_norm = exact.read("model.norm.weight") + spec.norm_offset
            self._heads = torch.cat([_read_head(exact, head, checkpoint) for head in spec.heads])
        # the gate's, the other's, and their product
        self.plan = with_token_budget(plan, self._layers[0].up, inner_copies=3)

    def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> FloatArray:
        if exact and self.exact is not self:
            return self.exact.run(batch)
        with arithmetic(self.plan):
            states = self._decode(*split_batch(batch, share=self.share_prefix))
        with arithmetic(exact_plan(self.plan)):
            logits = [
                self._norm(state.float(), self._final_norm) @ head
                for state, head in zip(states, self._heads, strict=True)
            ]
            rows = torch.stack(logits, dim=1)
            if cap := self.spec.logit_cap:
                rows = cap * torch.tanh(rows / cap)
            return to_host(rows)

    def _decode(self, parts: list[PromptPart], places: Sequence[int]) -> list[Tensor]:
        """The hidden state of each scored part's last token at each layer that scores."""
        spec, dtype = self.spec, self._format
        ids = np.concatenate([part.ids for part in parts]).astype(np.int64)
        sent = to_device({"ids": ids, "scored": np.asarray(places)}, self.plan.device)
        scored = sent["scored"]
        x = F.embedding(sent["ids"], self._words).to(dtype)
        x = x * torch.tensor(spec.embedding_scale, dtype=dtype, device=x.device)
        layout = self._lay_out(parts, dtype)
        states = []
        for number, layer in enumerate(self._layers):
            if number in spec.layers:
                states.append(x[layout.ends][scored])
            if spec.compress_ratio > 1 and number in spec.compress_layers:
                x, parts = compress(x, parts, spec.compress_ratio)
                layout = self._lay_out(parts, dtype)
            window = spec.window if number % 2 == 0 else None
            asking = layout.ends if number == spec.depth - 1 else None
            x = self._run_layer(layer, x, layout, asking, window)
        return [*states, x[scored]]

    def _run_layer(
        self,
        layer: DecoderLayer,
        x: Tensor,
        layout: PackedLayout,
        asking: Tensor | None,
        window: int | None,
    ) -> Tensor:
        """One layer for every token, or for the rows of `asking` alone."""
        scale = self.spec.residual_scale
        h = self._norm(x, layer.before_attention)
        key, value = layer.key_value(h).chunk(2, dim=1)
        rotary = layout.rotary
        key = rotate(key, rotary, self.spec.head_size)
        if asking is not None:
            x, h, rotary = x[asking], h[asking], rotary[:, asking]
        query = rotate(layer.query(h), rotary, self.spec.head_size)
        out = layer.attended(layout.attend(layout.sent, query, key, value, window))
        if layer.after_attention is not None:
            out = self._norm(out, layer.after_attention)
        x = x + out * scale
        h = self._norm(x, layer.before_feed_forward)
        out = layer.down(layer.gate(h).mul_(layer.up(h)))
        if layer.after_feed_forward is not None:
            out = self._norm(out, layer.after_feed_forward)
        return x + out * scale

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        normed = F.rms_norm(wide, weight.shape, weight, self.spec.eps)
        # if the sum of squares overflows, rms_norm gives 0: infinity minus itself makes it NaN
        length = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        return normed.add_(length - length).to(x.dtype)

    def _lay_out(self, parts: Sequence[PromptPart], dtype: torch.dtype) -> PackedLayout:
        spec = self.spec
        lengths = [part.length for part in parts]
        positions = np.concatenate([part.start + np.arange(part.length) for part in parts])
        half = np.arange(0, spec.head_size, 2) / spec.head_size
        angles = np.tile(positions[:, None] / spec.rope_theta**half, 2)
        rotary = np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
        segments = [Segment(part.length, part.prefix) for part in parts]
        attend = ATTENTIONS[self.plan.attention](segments, self._shape)
        arrays = {"rotary": rotary, "ends": np.cumsum(lengths) - 1, **attend.arrays}
        sent = to_device(arrays, self.plan.device)
        return PackedLayout(attend, sent["rotary"].to(dtype), sent["ends"], sent)


def _read_layer(model: Weights, spec: DecoderSpec, number: int) -> DecoderLayer:
    layer, exact, sandwich = f"layers.{number}.", model.of_dtype(torch.float32), spec.sandwich_norms

    def linear(*names: str, activation: LayerActivation = "none") -> Linear:
        return model.linear(*(layer + name for name in names), biased=False, activation=activation)

    def norm(name: str) -> Tensor:
        return exact.read(f"{layer}{name}_layernorm.weight") + spec.norm_offset

    return DecoderLayer(
        query=linear("self_attn.q_proj"),
        key_value=linear("self_attn.k_proj", "self_attn.v_proj"),
        attended=linear("self_attn.o_proj"),
        gate=linear("mlp.gate_proj", activation=spec.activation),
        up=linear("mlp.up_proj"),
        down=linear("mlp.down_proj"),
        before_attention=norm("input"),
        after_attention=norm("post_attention") if sandwich else None,
        before_feed_forward=norm("pre_feedforward" if sandwich else "post_attention"),
        after_feed_forward=norm("post_feedforward") if sandwich else None,
    )


def _read_head(weights: Weights, head: LogitHead, checkpoint: Checkpoint) -> Tensor:
    """The head's vector, [1, width]."""
    if head.row is None:
        return weights.read(head.tensor)
    row, own = weights.read_row(head.tensor, head.row), "lm_head.weight"
    # tied by the config: transformers 4 ignores a head that is stored as well, 5 loads it
    if own != head.tensor and own in checkpoint.tensors:
        if checkpoint.tensors[own].shape != checkpoint.tensors[head.tensor].shape:
            raise CheckpointError(misshapen(checkpoint, own, checkpoint.tensors[head.tensor].shape))
        if not torch.equal(row, weights.read_row(own, head.row)):
            raise CheckpointError(
                f"{checkpoint.tensors[own].file} holds {own!r}, which differs from {head.tensor!r} "
                "although tie_word_embeddings of config.json says that they are one; set it to "
                "false, or take the tensor out"
            )
    return row


def rotate(x: Tensor, rotary: Tensor, size: int) -> Tensor:
    """Rotary position embedding (Su et al. 2021) on [rows, heads * size], half against half."""
    cosine, sine = rotary[:, :, None, :].to(x.dtype)
    heads = x.reshape(len(x), -1, size)
    left, right = heads.chunk(2, dim=2)
    turned = torch.cat([-right, left], dim=2)
    result: Tensor = (heads * cosine + turned * sine).reshape(x.shape)
    return result
