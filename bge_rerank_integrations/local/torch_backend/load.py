"""A checkpoint's engine on torch: the forward that knows the model, and its rounding error."""

from collections.abc import Sequence

import numpy as np
import torch

from bge_rerank_integrations.errors import missing_extra
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.decoder_spec import DecoderSpec
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.engine import Engine, Forward
from bge_rerank_integrations.local.model_config import position_limit, why_not_flat
from bge_rerank_integrations.local.st_config import FolderSettings, ModelOutput
from bge_rerank_integrations.local.text.tokenizer import (
    TextTokenizer,
    TokenSequence,
    join_pair,
    read_tokenizer,
)
from bge_rerank_integrations.local.torch_backend.cpu_streams import StreamedEngine
from bge_rerank_integrations.local.torch_backend.decoder import Decoder
from bge_rerank_integrations.local.torch_backend.encoder import FlatEncoder
from bge_rerank_integrations.local.torch_backend.runtime import exact_plan
from bge_rerank_integrations.types import FloatArray


def load_engine(
    checkpoint: Checkpoint,
    settings: FolderSettings,
    use: ModelOutput | DecoderSpec,
    plan: DevicePlan,
) -> Engine:
    """The model's engine on the plan's device: a decoder for a spec, else an encoder."""
    tokenizer = read_tokenizer(checkpoint, lowercase=settings.lowercase)
    forward: Forward
    with torch.device("cpu"):  # the caller's default must not count
        if isinstance(use, DecoderSpec):
            forward = Decoder(checkpoint, plan, use)
        else:
            forward = _measured_encoder(checkpoint, tokenizer, plan, use)
    flat_on_cpu = plan.device == "cpu" and isinstance(forward, FlatEncoder)
    kind = StreamedEngine if flat_on_cpu else Engine
    return kind(checkpoint.model, checkpoint.fingerprint, tokenizer, forward)


def _measured_encoder(
    checkpoint: Checkpoint, tokenizer: TextTokenizer, plan: DevicePlan, output: ModelOutput
) -> Forward:
    """The encoder; in a half precision on a CPU, its plan says how large the rounding error is."""
    if plan.device != "cpu" or plan.precision == "fp32":
        return _encoder(checkpoint, plan, output)
    inputs = probe_inputs(tokenizer, position_limit(checkpoint.config))
    # freed before the half model is loaded
    exact = run_all(_encoder(checkpoint, exact_plan(plan), output), inputs)
    forward = _encoder(checkpoint, plan, output)
    forward.plan = forward.plan.because(describe_rounding(exact, run_all(forward, inputs), forward))
    return forward


def _encoder(checkpoint: Checkpoint, plan: DevicePlan, output: ModelOutput) -> Forward:
    unknown = why_not_flat(checkpoint.config)
    if unknown is None:
        reason = "forward flat: no padding, last layer for the first token alone"
        return FlatEncoder(checkpoint, plan.because(reason), output)
    with missing_extra("transformers"):
        from bge_rerank_integrations.local.torch_backend.transformers_encoder import LibraryEncoder
    reason = f"forward transformers: {unknown} is unknown to the flat forward"
    return LibraryEncoder(checkpoint, plan.because(reason), output)


QUERY = "How does a giant panda spend its day?"
PASSAGES = (
    "Giant pandas eat bamboo for ten to sixteen hours a day.",
    "The panda is a bear native to the mountain ranges of central China.",
    "Bread is made from flour, water, salt and yeast.",
    "大熊猫每天大部分时间都在吃竹子。",
    "A day has 24 hours.",
    "The committee met twice in 2019; no decision was made, and the members went home early.",
    "¿Dónde está la biblioteca?",
    "Pandas do not hibernate. In winter they move to lower, warmer slopes and go on eating there.",
)


def probe_inputs(tokenizer: TextTokenizer, limit: int) -> list[TokenSequence]:
    """The fixed texts as inputs of at most `limit` tokens."""
    query, *passages = tokenizer.encode([QUERY, *PASSAGES], range(1 + len(PASSAGES)))
    inputs = [join_pair(query, passage, tokenizer.pair_template) for passage in passages]
    return [sequence for sequence in inputs if len(sequence.ids) <= limit]


def describe_rounding(exact: FloatArray, half: FloatArray, forward: Forward) -> str:
    """One line for the device plan: the largest difference, in logits or in parts of a vector."""
    what = "logit"
    if exact.shape[1] > 1:
        what = "cosine"
        units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (exact, half)]
        exact, half = (unit @ unit.T for unit in units)
    error = float(np.abs(exact - half).max())
    return (
        f"rounding: largest {what} error against fp32 is {error:.1e} on {len(exact)} fixed inputs, "
        f"measured at load in {forward.plan.precision}"
    )


def run_all(forward: Forward, inputs: Sequence[TokenSequence]) -> FloatArray:
    """The rows of each input by itself."""
    return np.concatenate([forward.run([sequence]) for sequence in inputs])
