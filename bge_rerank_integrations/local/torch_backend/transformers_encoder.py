"""transformers' own forward, for encoders that the padding-free forward does not support.

It is slower and padded, but exact for every architecture in transformers. Remote code is never run,
and a checkpoint that lacks a weight is rejected. Loading measures whether padding changes a score,
as in MobileBERT, ConvBERT, FNet and CANINE; such a model runs one sequence at a time.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from bge_rerank_integrations.errors import CheckpointError, UnsupportedModel
from bge_rerank_integrations.local.checkpoint import COUNTS, Checkpoint, is_whole
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.memory import is_out_of_memory
from bge_rerank_integrations.local.model_config import position_limit
from bge_rerank_integrations.local.padding import padded, padding_error, probe
from bge_rerank_integrations.local.st_config import ModelOutput
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.local.torch_backend.runtime import (
    TorchForward,
    arithmetic,
    exact_plan,
    to_device,
    to_host,
    weight_format,
)
from bge_rerank_integrations.local.torch_backend.weights import lacks, quantized, refuse_left_over
from bge_rerank_integrations.types import FloatArray

# Ends of keys that say how large a tensor is. transformers allocates it before it reads a file; a
# model may keep a few of the folder's tensors as one.
SIZES, MOST_PARTS = ("_size", "dim", "d_model", "d_inner", "d_ff"), 8
# The first letters of safetensors' names of formats that mean nothing without a scale.
QUANTIZED = ("F8", "F6", "F4", "I8", "U8")


class LibraryEncoder(TorchForward):
    """An encoder of transformers and its head on one device; see `engine.Forward`."""

    padded = True

    def __init__(self, checkpoint: Checkpoint, plan: DevicePlan, output: ModelOutput) -> None:
        super().__init__(checkpoint, plan, output, batches_at_once=1)
        self._output = output
        # found in float32, where rounding hides nothing, and freed before the half model is loaded
        known = None
        if plan.precision != "fp32":
            known = LibraryEncoder(checkpoint, exact_plan(plan), output).why_alone
        self._model = _load(checkpoint, plan, output).to(plan.device).eval()
        # FNet mixes all that it is given, and takes no mask
        self._inputs = inspect.signature(self._model.forward).parameters
        self._segments = (getattr(self._model.config, "type_vocab_size", None) or 1) > 1
        self._vocabulary = checkpoint.config.whole("vocab_size")
        pad = self._model.config.pad_token_id
        self._has_pad = isinstance(pad, int) and 0 <= pad < self._vocabulary
        self._pad = pad if self._has_pad else 0
        self.why_alone: str | None = known if plan.precision != "fp32" else self._find_why_alone()
        if self.why_alone is not None:
            self.max_sequences = 1
            self.plan = plan.because(f"one at a time: {self.why_alone}")

    def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> FloatArray:
        if exact and self.exact is not self:
            return self.exact.run(batch)
        arrays = padded(batch, self._pad)
        if not (self._segments and arrays["token_type_ids"].any()):
            del arrays["token_type_ids"]
        given = {name: array for name, array in arrays.items() if name in self._inputs}
        with arithmetic(self.plan):
            out = self._model(**to_device(given, self.plan.device))
            if self._output == "logit":
                return to_host(out.logits)
            if self._output == "cls":
                return to_host(out.last_hidden_state[:, 0])
            own = zip(out.last_hidden_state.float(), batch, strict=True)
            return to_host(torch.stack([row[: len(s.ids)].mean(dim=0) for row, s in own]))

    def _find_why_alone(self) -> str | None:
        """Why sequences must not share a batch, or None where they may; tried on two of them.

        Raises `CheckpointError` for a model that cannot run them.
        """
        longest = position_limit(self._checkpoint.config)
        # BART reads the row of the end of a text; MobileBERT has none
        end = getattr(self._model.config, "eos_token_id", None)
        end = end if isinstance(end, int) else None
        probes = [probe(min(n, longest), self._vocabulary, self._pad, end) for n in (5, 40)]
        try:
            alone = np.concatenate([self.run([sequence]) for sequence in probes])
            if not self._has_pad:
                return "config.json has no pad_token_id"
            if any("longrope" in str(getattr(m, "rope_type", "")) for m in self._model.modules()):
                return "rotary embeddings of type longrope follow the longest text of a batch"
            return padding_error(self.run(probes), alone)
        except Exception as error:  # a config's wrong value raises whatever its first use raises
            if is_out_of_memory(error):
                raise
            raise CheckpointError(
                f"transformers cannot run {self._checkpoint.model} as its config.json says: "
                f"{type(error).__name__}: {_first_line(error)}"
            ) from error


def _load(checkpoint: Checkpoint, plan: DevicePlan, output: ModelOutput) -> Any:
    """Load transformers' model with exactly the weights of the folder.

    Raises `UnsupportedModel` or `CheckpointError` if that is not possible.
    """
    config, name = checkpoint.config, checkpoint.model
    _check_config(checkpoint)
    kind = AutoModelForSequenceClassification if output == "logit" else AutoModel
    try:
        model, info = kind.from_pretrained(
            checkpoint.folder,
            dtype=weight_format(plan),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
        )
    except ValueError as error:
        if "docstring" in str(error):
            why = f"transformers cannot load {name} with python -OO, which drops its docstrings"
            raise UnsupportedModel(f"{why}; start Python without -OO") from error
        raise UnsupportedModel(
            f"transformers cannot load {name}, and code from a folder or of a hub is never run: "
            f"{_first_line(error)}"
        ) from error
    except Exception as error:  # a config's wrong value raises whatever its first use raises
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"transformers cannot build {name} from its config.json and weights: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    architecture = config["architectures"][0]
    if type(model).__name__ != architecture:
        raise UnsupportedModel(
            f"{name} is a {architecture}, which transformers does not have; it would be run as a "
            f"{type(model).__name__} and score wrongly"
        )
    _check_loaded(checkpoint, model, info, output)
    return model


def _check_config(checkpoint: Checkpoint) -> None:
    """Refuse settings that transformers ignores, or that its releases read differently."""
    config = checkpoint.config
    for key in sorted(COUNTS):
        if config.get(key) is not None:
            config.whole(key, minimum=0)
    _check_sizes(checkpoint)
    if config.get("model_type") == "big_bird" and config.get("attention_type") != "original_full":
        config.refuse(
            "attention_type",
            "with it a score depends on the texts before it; 'original_full' is supported",
            error=UnsupportedModel,
        )
    for key in ("pruned_heads", "per_layer_config"):
        if config.get(key):
            config.refuse(
                key,
                "one release of transformers reads it and another ignores it; use the model that "
                "this one was made from",
                error=UnsupportedModel,
            )
    for key in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        config.flag(key, default=False)
    for tensor, stored in checkpoint.tensors.items():
        if stored.dtype.startswith(QUANTIZED):
            raise UnsupportedModel(quantized(checkpoint, tensor))


def _check_sizes(checkpoint: Checkpoint) -> None:
    config, shapes = checkpoint.config, [stored.shape for stored in checkpoint.tensors.values()]
    largest = max((size for shape in shapes for size in shape), default=0)
    hashed = {"vocab_size"} if config.get("model_type") == "canine" else set()
    for key in sorted(config.keys() - hashed):
        value = config[key]
        if key.endswith(SIZES) and is_whole(value) and value > MOST_PARTS * largest:
            config.refuse(key, f"no tensor of the folder has more than {largest} rows or columns")


def _check_loaded(checkpoint: Checkpoint, model: Any, info: Mapping[str, Any], output: str) -> None:
    """Refuse a model with a missing or an unused weight."""
    config, name = checkpoint.config, checkpoint.model
    positions = config.get("position_embedding_type", "absolute")
    if positions not in ("absolute", "rotary") and not any(
        "distance_embedding" in key for key in model.state_dict()
    ):
        config.refuse(
            "position_embedding_type",
            "this release of transformers ignores it for this architecture; 'absolute' is "
            "supported",
            error=UnsupportedModel,
        )
    # the pooler of an embedder is not used, and many are saved without one
    needed = [key for key in info["missing_keys"] if output == "logit" or "pooler" not in key]
    if needed:
        raise CheckpointError(lacks(checkpoint, min(needed)))
    for found in info["mismatched_keys"]:
        key, *shapes = (found,) if isinstance(found, str) else found
        raise CheckpointError(
            f"{key!r} of {name} does not fit its config.json"
            f"{''.join(f' {tuple(shape)}' for shape in shapes)}: they belong to different models"
        )
    roots = {root for part in (model, model.base_model) for root, _ in part.named_children()}
    refuse_left_over(
        checkpoint,
        info["unexpected_keys"],
        is_unread=lambda key: key.partition(".")[0] not in {*roots, model.base_model_prefix},
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
