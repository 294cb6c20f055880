"""From a checkpoint to a scorer on torch: family, device plan, forward, method."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from bge_rerank_integrations.base.models import LLM_FAMILIES, Family
from bge_rerank_integrations.errors import CheckpointError, MissingExtra
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.decoder_spec import DecoderSpec, decoder_spec
from bge_rerank_integrations.local.device import DevicePlan, plan_devices, read_hardware
from bge_rerank_integrations.local.device_group import EngineGroup, reasons_by_device
from bge_rerank_integrations.local.engine import Engine, Forward, shared_engine
from bge_rerank_integrations.local.model_config import (
    position_limit,
    refuse_quantized,
    why_not_flat,
)
from bge_rerank_integrations.local.scorer import AnyEngine, LocalScorer
from bge_rerank_integrations.local.st_config import FolderSettings, ModelOutput, read_settings
from bge_rerank_integrations.local.text.bi_encoder import bi_encoding
from bge_rerank_integrations.local.text.cross_encoder import Method, cross_encoding
from bge_rerank_integrations.local.text.llm_prompt import prompting
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
from bge_rerank_integrations.options import BatchOptions, LocalOptions, reject_inapplicable_options
from bge_rerank_integrations.types import FloatArray


def load_torch_scorer(checkpoint: Checkpoint, request: LocalOptions) -> LocalScorer:
    """Load the checkpoint, or share it if this process has it on the same device already."""
    checkpoint.refuse_adapter()
    settings = read_settings(checkpoint, request.label)
    refuse_quantized(checkpoint)
    limit = position_limit(checkpoint.config)
    llm = settings.family in LLM_FAMILIES
    if not llm:
        reject_inapplicable_options(request, "encoder", model=checkpoint.model)
    plans = plan_devices(
        read_hardware(),
        devices=request.device,
        precision=request.precision,
        prefer="bf16" if llm else "fp16",
    )
    load = _load_llm if llm else _load_encoder
    engine, method = load(checkpoint, settings, request, plans, limit)
    return LocalScorer(
        engine,
        method,
        limits=request.group(BatchOptions),
        show_progress=request.show_progress,
        reasons=reasons_by_device(plans),
    )


def _load_encoder(
    checkpoint: Checkpoint,
    settings: FolderSettings,
    request: LocalOptions,
    plans: Sequence[DevicePlan],
    limit: int,
) -> tuple[AnyEngine, Method]:
    output: ModelOutput = settings.output

    def load(plan: DevicePlan) -> Engine:
        tokenizer = read_tokenizer(checkpoint, lowercase=settings.lowercase)
        return _engine(
            checkpoint, tokenizer, _measured_encoder(checkpoint, tokenizer, plan, output)
        )

    engine = _shared(checkpoint, plans, output, load)
    method = cross_encoding if settings.family is Family.ENCODER else bi_encoding
    return engine, method(engine.tokenizer, request, settings, limit=limit)


def _load_llm(
    checkpoint: Checkpoint,
    settings: FolderSettings,
    request: LocalOptions,
    plans: Sequence[DevicePlan],
    limit: int,
) -> tuple[AnyEngine, Method]:
    tokenizer = read_tokenizer(checkpoint)
    (yes,) = tokenizer.encode(["Yes"], [0])
    config, model, family = checkpoint.config, checkpoint.model, settings.family
    tied = config.flag("tie_word_embeddings", default=True)
    spec = decoder_spec(family, config, request, yes=int(yes[0]), tied=tied)

    def load(plan: DevicePlan) -> Engine:
        return _engine(checkpoint, tokenizer, Decoder(checkpoint, plan, spec))

    engine = _shared(checkpoint, plans, spec, load)
    bos = config.whole("bos_token_id")
    before = tokenizer.single_template.before
    if before != (bos,):  # the reference puts the tokenizer's
        raise CheckpointError(
            f"config.json of {model} has bos_token_id={bos}, and its tokenizer puts {before} "
            "before a text: they belong to different models, or one was edited"
        )
    return engine, prompting(tokenizer, request, spec, family=family, bos=bos, limit=limit)


def _engine(checkpoint: Checkpoint, tokenizer: TextTokenizer, forward: Forward) -> Engine:
    flat_on_cpu = forward.plan.device == "cpu" and isinstance(forward, FlatEncoder)
    kind = StreamedEngine if flat_on_cpu else Engine
    return kind(checkpoint.model, checkpoint.fingerprint, tokenizer, forward)


def _shared(
    checkpoint: Checkpoint,
    plans: Sequence[DevicePlan],
    use: ModelOutput | DecoderSpec,
    load: Callable[[DevicePlan], Engine],
) -> AnyEngine:
    """The engines of all plans as one; `use` is what else sets an engine of these files apart.

    Why a caller got such a plan is no matter of the engine's, which has other callers too.
    """
    engines = [
        shared_engine(
            (checkpoint.signature, plan.device, plan.precision, use),
            partial(load, dataclasses.replace(plan, reasons=())),
        )
        for plan in plans
    ]
    return engines[0] if len(engines) == 1 else EngineGroup(engines)


def _measured_encoder(
    checkpoint: Checkpoint, tokenizer: TextTokenizer, plan: DevicePlan, output: ModelOutput
) -> Forward:
    """The encoder; in a half precision on a CPU, its plan says how large the rounding error is."""
    if plan.device != "cpu" or plan.precision == "fp32":
        return _encoder(checkpoint, plan, output)
    inputs = probe_inputs(tokenizer, position_limit(checkpoint.config))
    # gone again before the half model comes
    exact = run_all(_encoder(checkpoint, exact_plan(plan), output), inputs)
    forward = _encoder(checkpoint, plan, output)
    found = describe_rounding(exact, run_all(forward, inputs), forward)
    forward.plan = dataclasses.replace(forward.plan, reasons=(*forward.plan.reasons, found))
    return forward


def _encoder(checkpoint: Checkpoint, plan: DevicePlan, output: ModelOutput) -> Forward:
    unknown = why_not_flat(checkpoint.config)
    if unknown is None:
        reasons = (*plan.reasons, "forward flat: no padding, last layer for the first token alone")
        return FlatEncoder(checkpoint, dataclasses.replace(plan, reasons=reasons), output)
    try:
        from bge_rerank_integrations.local.torch_backend.transformers_encoder import LibraryEncoder
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise MissingExtra("transformers", "transformers") from error
    reasons = (*plan.reasons, f"forward transformers: {unknown} is unknown to the flat forward")
    return LibraryEncoder(checkpoint, dataclasses.replace(plan, reasons=reasons), output)


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
        exact, half = _cosines(exact), _cosines(half)
    error = float(np.abs(exact - half).max())
    return (
        f"rounding: largest {what} error against fp32 is {error:.1e} on {len(exact)} fixed inputs, "
        f"measured at load in {forward.plan.precision}"
    )


def _cosines(vectors: FloatArray) -> FloatArray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines: FloatArray = unit @ unit.T
    return cosines


def run_all(forward: Forward, inputs: Sequence[TokenSequence]) -> FloatArray:
    """The rows of each input by itself."""
    return forward.fetch([forward.run([sequence]) for sequence in inputs])
