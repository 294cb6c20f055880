"""A forward for BERT and XLM-R encoders: no padding on a CPU, no transformers.

All sequences of a batch lie end to end in one matrix, so no product is computed for padding. Where
only the first token is used, the last layer is computed for that token alone, which is exact.
Residuals, LayerNorm and head follow transformers' `BertModel` and `XLMRobertaModel`.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.model_config import EncoderConfig, read_encoder_config
from bge_rerank_integrations.local.st_config import ModelOutput
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.local.torch_backend.attention import (
    Array,
    AttentionShape,
    OnDevice,
    PackedAttention,
    Segment,
)
from bge_rerank_integrations.local.torch_backend.cuda_attention import (
    ATTENTIONS,
    with_checked_attention,
)
from bge_rerank_integrations.local.torch_backend.encoder_weights import (
    read_head,
    read_layer,
    read_norm,
    tensor_prefix,
)
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
from bge_rerank_integrations.local.torch_backend.weights import Weights
from bge_rerank_integrations.types import FloatArray

ROWS = 1024
"""Tokens that a CPU widens at once: the results stay in its cache, and malloc keeps the memory."""


class FlatEncoder(TorchForward):
    """The encoder and its head on one device; see `engine.Forward`."""

    def __init__(self, checkpoint: Checkpoint, plan: DevicePlan, output: ModelOutput) -> None:
        config = read_encoder_config(checkpoint.config)
        self._shape = AttentionShape(config.heads, config.heads, causal=False, scale=None)
        plan = with_checked_attention(plan, self._shape, head_size=config.hidden // config.heads)
        plan, path = with_gemm_path(plan)
        super().__init__(checkpoint, plan, output, batches_at_once=4)
        self._output = output
        self._config = config
        self._format = weight_format(plan)
        weights = Weights(checkpoint, plan, tensor_prefix(checkpoint, config), path=path)
        # on a CPU only products and attention are in half precision: the rest takes little time
        residual = weights.of_dtype(torch.float32 if plan.device == "cpu" else self._format)
        with torch.inference_mode():
            self._words, self._positions = (
                weights.read_table(f"embeddings.{kind}_embeddings.weight")
                for kind in ("word", "position")
            )
            self._types = weights.read("embeddings.token_type_embeddings.weight")
            self._embedding_norm = read_norm(residual, "embeddings.LayerNorm", config)
            self._layers = [read_layer(weights, residual, i, config) for i in range(config.layers)]
            self._head = read_head(weights, config) if output == "logit" else ()
        # before and after the activation
        self.plan = with_token_budget(plan, self._layers[0].up, inner_copies=2)

    def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> FloatArray:
        if exact and self.exact is not self:
            return self.exact.run(batch)
        lengths = [len(sequence.ids) for sequence in batch]
        attend = ATTENTIONS[self.plan.attention]([Segment(n) for n in lengths], self._shape)
        arrays = {**input_arrays(batch, self._config), **attend.arrays}
        with arithmetic(self.plan):
            rows = self._encode(to_device(arrays, self.plan.device), attend, lengths).float()
        with arithmetic(exact_plan(self.plan)):
            if self._head:
                dense, out = self._head
                rows = out(torch.tanh(dense(rows)))
            return to_host(rows)

    def _encode(self, sent: OnDevice, attend: PackedAttention, lengths: list[int]) -> Tensor:
        """The pooled vector of each sequence: [sequences, hidden]."""
        first = sent["first"]
        x = self._embed(sent)
        for number, layer in enumerate(self._layers):
            given = x.to(self._format)
            key, value = layer.key_value(given).chunk(2, dim=1)
            if number == len(self._layers) - 1 and self._output != "mean":
                x, given = x[first], given[first]
            mixed = attend(sent, layer.query(given), key, value)
            del given, key, value  # the feed-forward part is the peak of memory
            at_once = ROWS if self.plan.device == "cpu" else len(x)
            for rows, own in zip(torch.split(x, at_once), torch.split(mixed, at_once), strict=True):
                rows.copy_(layer.attention_norm(layer.attended(own) + rows))
                rows.copy_(layer.output_norm(layer.down(layer.up(rows.to(self._format))) + rows))
        if self._output == "mean":
            return torch.stack([own.mean(dim=0) for own in torch.split(x.float(), lengths)])
        return x

    def _embed(self, sent: OnDevice) -> Tensor:
        x = F.embedding(sent["ids"], self._words).float()
        x = x + F.embedding(sent["positions"], self._positions).float()
        x = x + F.embedding(sent["types"], self._types).float()
        return self._embedding_norm(x.to(self._embedding_norm.weight.dtype))


def input_arrays(batch: Sequence[TokenSequence], config: EncoderConfig) -> dict[str, Array]:
    """The batch end to end: each token's id, position and type; each sequence's first row.

    Types distinguish query and passage, in models that have two.
    """
    positions, types = [], []
    for sequence in batch:
        places = np.arange(len(sequence.ids))
        types.append((places >= sequence.first_segment) & (config.types > 1))
        if config.offset_positions:
            real = sequence.ids != config.pad
            places = np.cumsum(real) * real + config.pad
        positions.append(places)
    lengths = [len(sequence.ids) for sequence in batch]
    return {
        "ids": np.concatenate([sequence.ids for sequence in batch]).astype(np.int64),
        "positions": np.concatenate(positions),
        "types": np.concatenate(types).astype(np.int64),
        "first": np.cumsum([0, *lengths[:-1]]),
    }
