"""Load a model by its name as a scorer: settings, engines and method, on any backend.

A backend provides an engine with its own `Forward`, and makes its own checks. It is imported only
when it is chosen.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from bge_rerank_integrations.base.models import (
    DEFAULT_MODEL,
    LLM_FAMILIES,
    OFFLINE_MODELS,
    Family,
    known_models,
)
from bge_rerank_integrations.errors import (
    CheckpointError,
    InvalidInputError,
    MissingExtra,
    UnsupportedModel,
)
from bge_rerank_integrations.local.checkpoint import open_checkpoint
from bge_rerank_integrations.local.decoder_spec import DecoderSpec, decoder_spec
from bge_rerank_integrations.local.device import (
    check_devices,
    check_precision,
    plan_devices,
    read_hardware,
)
from bge_rerank_integrations.local.device_group import EngineGroup, reasons_by_device
from bge_rerank_integrations.local.engine import Engine, shared_engine
from bge_rerank_integrations.local.model_config import position_limit, refuse_quantized
from bge_rerank_integrations.local.scorer import LocalScorer
from bge_rerank_integrations.local.st_config import FolderSettings, ModelOutput, read_settings
from bge_rerank_integrations.local.text.bi_encoder import bi_encoding
from bge_rerank_integrations.local.text.cross_encoder import Method, cross_encoding
from bge_rerank_integrations.local.text.llm_prompt import prompting
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, read_tokenizer
from bge_rerank_integrations.options import BatchOptions, LocalOptions, reject_inapplicable_options

BackendName = Literal["torch", "onnx", "openvino"]
KeyedLoader = tuple[Hashable, Callable[[], Engine]]
"""The key under which a process shares an engine, and the function that loads it."""


MakeMethod = Callable[[TextTokenizer], Method]


def load_model(
    model: str, options: LocalOptions, *, backend: BackendName, reason: str
) -> LocalScorer:
    """Load a hub id, a folder or an embedded model, or share it if this process has it already.

    `reason` says why the backend was chosen. Raises `ModuleNotFoundError` for a library that the
    backend needs, and what `load_scorer` raises.
    """
    if model in OFFLINE_MODELS:
        return _load_embedded(model, options)
    if backend == "torch":
        return _load_checkpoint(model, options)
    return _load_graph(model, options, backend, reason)


def _scorer(
    options: LocalOptions,
    engines: Sequence[KeyedLoader],
    make_method: MakeMethod,
    reasons: Sequence[str],
) -> LocalScorer:
    """The scorer on these engines, one for each device."""
    shared = [shared_engine(key, load) for key, load in engines]
    engine = shared[0] if len(shared) == 1 else EngineGroup(shared)
    return LocalScorer(
        engine,
        make_method(engine.tokenizer),
        limits=options.group(BatchOptions),
        show_progress=options.show_progress,
        reasons=reasons,
        keep_seconds=options.keep_alive,
    )


def _load_checkpoint(model: str, options: LocalOptions) -> LocalScorer:
    from bge_rerank_integrations.local.torch_backend.load import load_engine

    hardware = read_hardware()
    check_devices(hardware, options)
    checkpoint = open_checkpoint(model, options)
    checkpoint.refuse_adapter()
    settings = read_settings(checkpoint, options.label)
    refuse_quantized(checkpoint)
    limit = position_limit(checkpoint.config)
    llm = settings.family in LLM_FAMILIES
    if not llm:
        reject_inapplicable_options(options, "encoder", model=model)
    plans = plan_devices(hardware, options, prefer="bf16" if llm else "fp16")
    use: ModelOutput | DecoderSpec = settings.output
    make_method = _encoder_method(options, settings, limit)
    if llm:
        tokenizer, config, family = read_tokenizer(checkpoint), checkpoint.config, settings.family
        before, (yes,) = tokenizer.single_template.before, tokenizer.encode(["Yes"], [0])
        if not len(yes):
            raise CheckpointError(
                f"the tokenizer of {model} has no token for 'Yes', whose logit is the score"
            )
        tied = config.flag("tie_word_embeddings", default=True)
        use = decoder_spec(family, config, options, yes=int(yes[0]), tied=tied)
        bos = config.whole("bos_token_id")
        if before != (bos,):  # the reference puts the tokenizer's
            raise CheckpointError(
                f"config.json of {model} has bos_token_id={bos}, and its tokenizer puts {before} "
                "before a text: they belong to different models, or one was edited"
            )
        make_method = partial(
            prompting, text=options, spec=use, family=family, bos=bos, limit=limit
        )
    engines: list[KeyedLoader] = [
        (
            (checkpoint.signature, plan.device, plan.arithmetic, use),
            # the reasons are this caller's, and the engine has others
            partial(load_engine, checkpoint, settings, use, replace(plan, reasons=())),
        )
        for plan in plans
    ]
    return _scorer(options, engines, make_method, reasons_by_device(plans))


def _load_graph(
    model: str, options: LocalOptions, backend: Literal["onnx", "openvino"], reason: str
) -> LocalScorer:
    from bge_rerank_integrations.local.onnx_backend.load import (
        check_graph_precision,
        import_runtime,
        load_engine,
        open_graph_checkpoint,
    )

    start = import_runtime(backend)  # before the download
    _check_cpu(options, f"backend {backend!r}", "backend='torch'")
    checkpoint = open_graph_checkpoint(model, options, backend, options.file_name)
    if options.backend == "auto" and checkpoint.graph_path is None:
        raise MissingExtra("torch", "local")
    settings = read_settings(checkpoint, options.label)
    if settings.family in LLM_FAMILIES:
        raise UnsupportedModel(
            f"{model} is an LLM reranker, and backend {backend!r} runs encoders: use "
            "backend='torch'"
        )
    reject_inapplicable_options(options, "encoder", model=model)
    name = checkpoint.graph.path.relative_to(checkpoint.folder).as_posix()
    reasons = [f"backend {backend}: {reason}", f"graph {name}"]
    reasons += check_graph_precision(options.precision, checkpoint.graph)
    engine: KeyedLoader = (
        (checkpoint.signature, backend, settings.output),
        partial(load_engine, checkpoint, settings, start),
    )
    limit = position_limit(checkpoint.config)
    return _scorer(options, [engine], _encoder_method(options, settings, limit), reasons)


def _load_embedded(model: str, options: LocalOptions) -> LocalScorer:
    from bge_rerank_integrations.local.onnx_backend.offline import (
        EMBEDDED,
        carrier_folder,
        load_engine,
    )

    embedded, spec = EMBEDDED[model], next(spec for spec in known_models() if spec.id == model)
    reject_inapplicable_options(options, "encoder", model=model)
    check_precision(options.precision)
    for name, default, reason in (
        ("revision", None, "comes with a package: leave revision out"),
        ("label", None, "is not a classifier: leave it out"),
        ("precision", "auto", f"is a graph in int8: leave precision out, or use {DEFAULT_MODEL}"),
    ):
        if (given := getattr(options, name)) != default:
            raise InvalidInputError(f"{name} is {given!r}, and {model!r} {reason}")
    _check_cpu(options, repr(model), DEFAULT_MODEL)
    folder = carrier_folder() / embedded.folder
    engine: KeyedLoader = (folder, embedded.title), partial(load_engine, embedded, folder)
    family = Family.ENCODER if embedded.output == "logit" else Family.BI_ENCODER
    settings = FolderSettings(family, embedded.output, query_prompt=spec.query_instruction or "")
    make_method = _encoder_method(options, settings, spec.max_length)
    return _scorer(options, [engine], make_method, [embedded.about(spec.license)])


def _encoder_method(options: LocalOptions, settings: FolderSettings, limit: int) -> MakeMethod:
    method = cross_encoding if settings.family is Family.ENCODER else bi_encoding
    return partial(method, text=options, settings=settings, limit=limit)


def _check_cpu(options: LocalOptions, subject: str, other: str) -> None:
    for name, fitting in (("device", (None, "auto", "cpu")), ("attention", (None,))):
        if (given := getattr(options, name)) not in fitting:
            raise InvalidInputError(
                f"{name} is {given!r}; {subject} runs on the CPU only: leave {name} out, or use "
                f"{other}"
            )
