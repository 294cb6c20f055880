"""transformers' own forward, for encoders that the flat forward does not know.

Slower and padded, but exact for any architecture that transformers ships. Remote code is never
run, and a checkpoint that lacks a weight is refused.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from bge_rerank_integrations.errors import CheckpointError, UnsupportedModel
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.model_config import OFFSET_POSITIONS, padding_id
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.local.torch_backend.runtime import (
    autocast,
    exact_plan,
    is_out_of_memory,
    release_memory,
    survive_forks,
    weight_format,
)
from bge_rerank_integrations.local.torch_backend.transfer import (
    computed,
    fetch,
    run_ahead,
    to_device,
)
from bge_rerank_integrations.types import FloatArray


class LibraryEncoder:
    """An encoder of transformers and its head on one device; see `engine.Forward`."""

    padded = True
    max_sequences: int | None = None

    def __init__(self, checkpoint: Checkpoint, plan: DevicePlan, output: str) -> None:
        self.plan = plan
        self.concurrency = 1
        self._ahead = run_ahead(plan.device)
        self._checkpoint = checkpoint
        self._output = output
        survive_forks()
        kind = AutoModelForSequenceClassification if output == "logit" else AutoModel
        _ = checkpoint.files  # refuses a folder without safetensors, in our words
        try:
            model, info = kind.from_pretrained(
                checkpoint.folder,
                dtype=weight_format(plan),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
        except ValueError as error:
            raise UnsupportedModel(
                f"transformers cannot load {checkpoint.model} without running code from its "
                f"folder, which is never done: {str(error).splitlines()[0]}"
            ) from error
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise CheckpointError(
                f"the weights of {checkpoint.model} do not fit its config.json: "
                f"{str(error).splitlines()[0]}"
            ) from error
        architecture = checkpoint.config["architectures"][0]
        if type(model).__name__ != architecture:
            raise UnsupportedModel(
                f"{checkpoint.model} is a {architecture}, which transformers does not have; it "
                f"would be run as a {type(model).__name__} and score wrongly"
            )
        # the pooler of an embedder is not used, and many are saved without one
        missing = [
            name for name in info["missing_keys"] if output == "logit" or "pooler" not in name
        ]
        if missing:
            raise CheckpointError(
                f"{checkpoint.model} lacks the weight {min(missing)!r}; a model with "
                "untrained random weights in its place would give random scores"
            )
        self._model = model.to(plan.device).eval()
        self._pad = padding_id(checkpoint.config)
        # RoBERTa's relatives have the table too, but their tokenizers never use its second row
        self._segments = (
            getattr(model.config, "type_vocab_size", 1) > 1
            and checkpoint.config.get("model_type") not in OFFSET_POSITIONS
        )

    def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> Any:
        if exact and self.plan.precision != "fp32":
            return self._exact.run(batch)
        lengths = np.asarray([len(sequence.ids) for sequence in batch])
        places = np.arange(lengths.max())
        ids = np.full((len(batch), lengths.max()), self._pad, dtype=np.int64)
        for row, sequence in zip(ids, batch, strict=True):
            row[: len(sequence.ids)] = sequence.ids
        inputs = {"input_ids": ids, "attention_mask": (places < lengths[:, None]).astype(np.int64)}
        if self._segments:
            firsts = np.asarray([sequence.first_segment for sequence in batch])[:, None]
            inputs["token_type_ids"] = ((places >= firsts) & (places < lengths[:, None])).astype(
                np.int64
            )
        on_device = to_device(inputs, self.plan.device)
        model = self._model
        with torch.inference_mode(), autocast(self.plan):
            out = model(**on_device)
            if self._output == "logit":
                rows = out.logits.float()
            elif self._output == "cls":
                rows = out.last_hidden_state[:, 0].float()
            else:
                mask = on_device["attention_mask"][:, :, None]
                rows = (out.last_hidden_state.float() * mask).sum(1) / mask.sum(1)
        if self._ahead is not None:
            self._ahead.launched()
        return computed(rows)

    def fetch(self, rows: Sequence[Any]) -> FloatArray:
        return fetch(rows)

    @cached_property
    def _exact(self) -> "LibraryEncoder":
        self._checkpoint.check_unchanged()
        return LibraryEncoder(self._checkpoint, exact_plan(self.plan), self._output)

    def is_out_of_memory(self, error: Exception) -> bool:
        return is_out_of_memory(error)

    def release_memory(self) -> None:
        release_memory(self.plan.device)
