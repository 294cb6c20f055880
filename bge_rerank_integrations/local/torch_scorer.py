"""From a checkpoint to a scorer on torch: family, device plan, forward, method."""

import dataclasses

from bge_rerank_integrations.errors import CheckpointError, MissingExtra, UnsupportedModel
from bge_rerank_integrations.local.bi_encoding import bi_encoding, read_pooling
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.cross_encoding import cross_encoding
from bge_rerank_integrations.local.device import DevicePlan, plan_device, read_hardware
from bge_rerank_integrations.local.encoder import (
    OFFSET_POSITIONS,
    FlatEncoder,
    Output,
    why_not_flat,
)
from bge_rerank_integrations.local.engine import BatchLimits, Engine, Forward, shared_engine
from bge_rerank_integrations.local.scorer import LocalScorer, Method, TextRequest
from bge_rerank_integrations.local.tokens import TextTokenizer
from bge_rerank_integrations.registry import DEFAULT_MODEL, Family, family_of
from bge_rerank_integrations.types import Precision


def load_torch_scorer(
    checkpoint: Checkpoint,
    text: TextRequest,
    limits: BatchLimits,
    *,
    device: str | None,
    precision: Precision,
    show_progress: bool,
) -> LocalScorer:
    """Load the checkpoint, or share it if this process has it on the same device already."""
    family = family_of(checkpoint.config, checkpoint.model)
    if family not in (Family.ENCODER, Family.BI_ENCODER):
        raise UnsupportedModel(
            f"{checkpoint.model} is a {checkpoint.config['architectures'][0]}, an LLM reranker "
            f"({family}), which this release does not score; use {DEFAULT_MODEL}"
        )
    output: Output = "logit" if family is Family.ENCODER else read_pooling(checkpoint)
    plan = plan_device(read_hardware(), device=device, precision=precision)
    key = (checkpoint.folder, checkpoint.fingerprint, plan.device, plan.precision, output)
    engine = shared_engine(key, lambda: _load_engine(checkpoint, plan, output))
    limit = position_limit(checkpoint)
    method: Method
    if output == "logit":
        method = cross_encoding(engine.tokenizer, text, limit=limit)
    else:
        method = bi_encoding(engine.tokenizer, text, checkpoint, limit=limit, pooling=output)
    return LocalScorer(engine, method, limits=limits, show_progress=show_progress)


def position_limit(checkpoint: Checkpoint) -> int:
    """The most tokens an input may have: XLM-R counts positions from behind its padding id."""
    config = checkpoint.config
    positions = int(config.get("max_position_embeddings", 512))
    if config.get("model_type") in OFFSET_POSITIONS:
        return positions - int(config.get("pad_token_id", 1)) - 1
    return positions


def _load_engine(checkpoint: Checkpoint, plan: DevicePlan, output: Output) -> Engine:
    config = checkpoint.config
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id")
    declared = [config[name] for name in names if isinstance(config.get(name), int)]
    tokenizer = TextTokenizer(checkpoint.folder, declared)
    vocabulary = int(config.get("vocab_size", tokenizer.size))
    if tokenizer.size > vocabulary:
        raise CheckpointError(
            f"{checkpoint.folder / 'tokenizer.json'} has {tokenizer.size} tokens and the model "
            f"{vocabulary}: they belong to different models"
        )
    return Engine(
        checkpoint.model, checkpoint.fingerprint, tokenizer, _forward(checkpoint, plan, output)
    )


def _forward(checkpoint: Checkpoint, plan: DevicePlan, output: Output) -> Forward:
    unknown = why_not_flat(checkpoint.config)
    if unknown is None:
        reasons = (*plan.reasons, "forward flat: no padding, last layer for the first token alone")
        return FlatEncoder(checkpoint, dataclasses.replace(plan, reasons=reasons), output)
    try:
        from bge_rerank_integrations.local.library_encoder import LibraryEncoder
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise MissingExtra("transformers", "transformers") from error
    reasons = (*plan.reasons, f"forward transformers: {unknown} is unknown to the flat forward")
    return LibraryEncoder(checkpoint, dataclasses.replace(plan, reasons=reasons), output)
