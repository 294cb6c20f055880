"""A padding-free forward for BERT and XLM-R encoders: torch and safetensors, no transformers.

All sequences of a batch lie end to end in one matrix, so nothing is computed for padding. Where
only the first token is used, the last layer is computed for that token alone, which is exact.
Residuals, LayerNorm and head follow transformers' `BertModel` and `XLMRobertaModel`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bge_rerank_integrations.base.fork import cached_property
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.model_config import EncoderConfig, read_encoder_config
from bge_rerank_integrations.local.st_config import ModelOutput
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.local.torch_backend.attention import (
    AttentionShape,
    PackedAttention,
    Segment,
)
from bge_rerank_integrations.local.torch_backend.cuda_graphs import (
    RECORDABLE,
    Bucket,
    Graphs,
    bucket_of,
    recorder,
)
from bge_rerank_integrations.local.torch_backend.encoder_weights import (
    EncoderLayer,
    TensorNames,
    tensor_prefix,
)
from bge_rerank_integrations.local.torch_backend.runtime import (
    TorchForward,
    autocast,
    exact_plan,
    gemm_path,
    survive_forks,
    weight_format,
    with_token_budget,
)
from bge_rerank_integrations.local.torch_backend.transfer import (
    Array,
    computed,
    run_ahead,
    to_device,
)
from bge_rerank_integrations.local.torch_backend.varlen_attention import (
    KERNELS,
    FlatAttention,
    lay_out,
    with_attention,
)
from bge_rerank_integrations.local.torch_backend.weights import Weights


class FlatEncoder(TorchForward):
    """The encoder and its head on one device; see `engine.Forward`."""

    def __init__(self, checkpoint: Checkpoint, plan: DevicePlan, output: ModelOutput) -> None:
        config = read_encoder_config(checkpoint.config)
        path, reason = gemm_path(plan)
        self._shape = AttentionShape(config.heads, config.heads, causal=False, scale=None)
        plan = with_attention(plan, self._shape, head_size=config.hidden // config.heads)
        self.concurrency = 1 if plan.device != "cpu" else 4
        self._ahead = run_ahead(plan.device)
        self._checkpoint = checkpoint
        self._output = output
        self._config = config
        self._format = weight_format(plan)
        # on a CPU only products and attention are in half precision: the rest takes little time
        residual = torch.float32 if plan.device == "cpu" else self._format
        survive_forks()
        weights = Weights(checkpoint, plan, tensor_prefix(checkpoint, config))
        names = TensorNames(weights, weights.of_dtype(residual), config, path)
        with torch.inference_mode():
            self._words = names.table("word_embeddings")
            self._positions = names.table("position_embeddings")
            self._types = weights.read("embeddings.token_type_embeddings.weight")
            self._embedding_norm = names.norm("embeddings.LayerNorm")
            self._layers = [names.layer(f"encoder.layer.{i}.") for i in range(config.layers)]
            self._head = names.head() if output == "logit" else ()
        self._typed = len(self._types) > 1
        plan = replace(plan, reasons=(*plan.reasons, reason))
        # before and after the activation
        self.plan = with_token_budget(plan, self._layers[0].up, inner_copies=2)
        self._graphs = self._make_graphs()

    def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> Any:
        if exact and self.plan.precision != "fp32":
            return self._exact.run(batch)
        attend, arrays = self._arrays(batch)

        def plain() -> Tensor:
            return self.compute(to_device(arrays, self.plan.device), attend)

        bucket = bucket_of([len(sequence.ids) for sequence in batch])
        if self._graphs is None or bucket is None:
            rows = plain()
        else:
            rows = self._graphs.rows(
                bucket, arrays, other=lambda: self._arrays([_half(batch[0])])[1], plain=plain
            )
        if self._ahead is not None:
            self._ahead.launched()
        return computed(rows)

    def _arrays(
        self, batch: Sequence[TokenSequence]
    ) -> tuple[PackedAttention, Mapping[str, Array]]:
        """A batch's attention and all arrays that the layers read."""
        segments = [Segment(len(sequence.ids)) for sequence in batch]
        attend = lay_out(segments, self._shape, self.plan.attention)
        owners = owner_arrays(batch) if self._output == "mean" else {}
        inputs = input_arrays(batch, self._config, typed=self._typed)
        return attend, {**inputs, **owners, **attend.arrays}

    def _make_graphs(self) -> Graphs | None:
        """Recorded forwards of small batches; None where attention cannot be recorded."""
        plan = self.plan
        recordable = plan.attention in RECORDABLE and self._output != "mean" and not plan.autocast
        if not (plan.device.startswith("cuda") and recordable):
            return None
        kernel = KERNELS[plan.attention]

        def compute(sent: Mapping[str, Tensor], bucket: Bucket) -> Tensor:
            attend = FlatAttention([Segment(1)], self._shape, kernel=kernel, most=bucket.longest)
            return self.compute(sent, attend)

        def say(reason: str) -> None:
            self.plan = replace(self.plan, reasons=(*self.plan.reasons, reason))

        return Graphs(
            compute,
            device=plan.device,
            dtype=self._format,
            record=recorder(plan.device),
            say=say,
        )

    def compute(self, sent: Mapping[str, Tensor], attend: PackedAttention) -> Tensor:
        """The rows, [sequences, width] float32, from arrays that are on the device.

        It neither waits for the device nor reads a number from it.
        """
        with torch.inference_mode():
            with autocast(self.plan):
                pooled = self._encode(sent, attend)
            with autocast(exact_plan(self.plan)):
                return self._apply_head(pooled.float())

    @cached_property
    def _exact(self) -> "FlatEncoder":
        self._checkpoint.check_unchanged()
        return FlatEncoder(self._checkpoint, exact_plan(self.plan), self._output)

    def _encode(self, sent: Mapping[str, Tensor], attend: PackedAttention) -> Tensor:
        """The pooled vector of each sequence: [sequences, hidden]."""
        first = sent["first"]
        x = self._embed(sent)
        cls_only = self._output != "mean"
        for number, layer in enumerate(self._layers):
            last = cls_only and number == len(self._layers) - 1
            asking = x[first] if last else x
            mixed = self._mix(layer, sent, attend, x, first if last else None)
            x = layer.attention_norm(layer.attended(mixed) + asking)
            del mixed, asking  # the feed-forward part is the peak of memory
            x = layer.output_norm(layer.down(layer.up(x.to(self._format))) + x)
        if cls_only:
            return x if self._layers else x[first]
        x, lengths = x.float(), sent["lengths"]
        total = x.new_zeros(len(lengths), x.shape[1]).index_add_(0, sent["owner"], x)
        return total / lengths[:, None]

    def _mix(
        self,
        layer: EncoderLayer,
        sent: Mapping[str, Tensor],
        attend: PackedAttention,
        x: Tensor,
        asking: Tensor | None,
    ) -> Tensor:
        """Attention of every token, or of queries at the rows of `asking` alone."""
        given = x.to(self._format)
        key, value = layer.key_value(given).chunk(2, dim=1)
        return attend(sent, layer.query(given if asking is None else given[asking]), key, value)

    def _embed(self, sent: Mapping[str, Tensor]) -> Tensor:
        x = F.embedding(sent["ids"], self._words).float()
        x = x + F.embedding(sent["positions"], self._positions).float()
        if self._typed:
            x = x + F.embedding(sent["types"], self._types).float()
        else:
            x = x + self._types[0].float()
        return self._embedding_norm(x.to(self._embedding_norm.weight.dtype))

    def _apply_head(self, pooled: Tensor) -> Tensor:
        if not self._head:
            return pooled
        dense, out = self._head
        return out(torch.tanh(dense(pooled)))


def _half(sequence: TokenSequence) -> TokenSequence:
    return sequence._replace(ids=sequence.ids[: -(-len(sequence.ids) // 2)])


def input_arrays(
    batch: Sequence[TokenSequence], config: EncoderConfig, *, typed: bool
) -> dict[str, Array]:
    """The batch end to end: each token's id, position and, if `typed`, type; each sequence's start.

    Types distinguish query and passage.
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
    """The arrays for a mean: each token's sequence number, and the sequences' lengths."""
    lengths = np.array([len(sequence.ids) for sequence in batch])
    return {"owner": np.repeat(np.arange(len(batch)), lengths), "lengths": lengths}


def _positions(ids: Array, config: EncoderConfig) -> Array:
    if not config.offset_positions:
        return np.arange(len(ids))
    real = ids != config.pad
    positions: Array = np.cumsum(real) * real + config.pad
    return positions
