"""A scorer put together by hand, where `load_scorer` would choose the plan itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bge_rerank_integrations.base.models import family_of
from bge_rerank_integrations.local.checkpoint import open_checkpoint
from bge_rerank_integrations.local.decoder_spec import DecoderSpec, decoder_spec
from bge_rerank_integrations.local.device import plan_device, read_hardware
from bge_rerank_integrations.local.engine import Engine
from bge_rerank_integrations.local.scorer import LocalScorer
from bge_rerank_integrations.local.text.llm_prompt import Prompting, prompting
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, read_tokenizer
from bge_rerank_integrations.local.torch_backend.decoder import Decoder
from bge_rerank_integrations.options import BatchOptions, LayerOptions, PairOptions

LAYER_OPTIONS = ("cutoff_layers", "compress_ratio", "compress_layers", "head_indexing")


def assemble(
    folder: Path, *, share_prefix: bool = True, plan: dict[str, Any] | None = None, **options: Any
) -> LocalScorer:
    """The scorer of an LLM on the CPU; `plan` changes what the device plan says."""
    checkpoint = open_checkpoint(str(folder))
    chosen = replace(plan_device(read_hardware(), device="cpu", precision="fp32"), **(plan or {}))
    tokenizer, method = method_of(folder, **options)
    forward = Decoder(checkpoint, chosen, method.spec)
    forward.share_prefix = share_prefix
    engine = Engine(checkpoint.model, checkpoint.fingerprint, tokenizer, forward)
    return LocalScorer(engine, method, limits=BatchOptions(), show_progress=False)


def method_of(folder: Path, **options: Any) -> tuple[TextTokenizer, Prompting]:
    """How this model's texts become ids."""
    checkpoint = open_checkpoint(str(folder))
    tokenizer = read_tokenizer(checkpoint)
    text = {name: value for name, value in options.items() if name not in LAYER_OPTIONS}
    method = prompting(
        tokenizer,
        PairOptions(**text),
        spec_of(folder, **options),
        family=family_of(checkpoint.config, checkpoint.model),
        bos=checkpoint.config["bos_token_id"],
        limit=checkpoint.config["max_position_embeddings"],
    )
    return tokenizer, method


def spec_of(folder: Path, **options: Any) -> DecoderSpec:
    """What the forward is told of this model."""
    checkpoint = open_checkpoint(str(folder))
    (yes,) = read_tokenizer(checkpoint).encode(["Yes"], [0])
    layers = {name: value for name, value in options.items() if name in LAYER_OPTIONS}
    for name in ("cutoff_layers", "compress_layers"):
        if name in layers:
            layers[name] = tuple(layers[name])
    return decoder_spec(
        family_of(checkpoint.config, checkpoint.model),
        checkpoint.config,
        LayerOptions(**layers),
        yes=int(yes[0]),
        tied=checkpoint.config.get("tie_word_embeddings", True),
    )
