"""What makes `BGERerank` and `BGECrossEncoder` score as sentence-transformers' `CrossEncoder`.

Both drop-in families rest on it: LangChain's class hands its `model_kwargs` to `CrossEncoder`,
LlamaIndex's its `cross_encoder_kwargs`. By sentence-transformers 6.2 the length is the argument's,
else the folder's; the activation is the argument's, else the folder's; numbers are float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, get_args

from pydantic import SecretStr

from bge_rerank_integrations.base.address import refuse_address
from bge_rerank_integrations.base.models import Family
from bge_rerank_integrations.errors import InvalidInputError, UnsupportedModel
from bge_rerank_integrations.local.checkpoint import open_checkpoint
from bge_rerank_integrations.local.model_config import position_limit
from bge_rerank_integrations.local.st_config import Activation, activation_of, read_settings
from bge_rerank_integrations.options import HubOptions
from bge_rerank_integrations.types import Backend, Precision, Truncation

PRECISIONS: dict[str, Precision] = {
    "float32": "fp32", "float": "fp32", "fp32": "fp32",
    "float16": "fp16", "half": "fp16", "fp16": "fp16",
    "bfloat16": "bf16", "bf16": "bf16",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CrossEncoderArguments:
    """`CrossEncoder`'s arguments as read; `written` is what of them may be shown and stored."""

    device: str | None = None
    cache_dir: str | None = None
    revision: str | None = None
    local_files_only: bool = False
    token: SecretStr | None = None
    backend: Backend = "auto"
    precision: Precision = "fp32"
    max_length: int | None = None
    activation: Activation | None = None
    written: dict[str, Any] = field(default_factory=dict)


def read_arguments(given: Mapping[str, Any], *, where: str) -> CrossEncoderArguments:
    """The arguments of a `CrossEncoder`, each understood or refused.

    `where` names the argument that holds them, for messages. Raises `InvalidInputError` for one
    that is unknown, or whose value asks for what this engine does not do.
    """
    found: dict[str, Any] = {}
    written: dict[str, Any] = {}
    for name, value in given.items():
        read = READERS.get(name)
        if read is None:
            raise InvalidInputError(
                f"{where} holds {name!r}, which this engine has nothing for; leave it out. It "
                f"takes {', '.join(sorted(READERS))}"
            )
        target, meaning = read(f"{where}[{name!r}]", value)
        if target is not None:
            if target in found and found[target] != meaning:
                raise InvalidInputError(f"{where} says two things of {target}; leave one out")
            found[target] = meaning
        if name != "token":
            written[name] = _as_json(name, value, meaning)
    return CrossEncoderArguments(**found, written=written)


Reading = tuple[str | None, Any]
"""The field that an argument sets, if any, and to what."""


def _text(target: str) -> Callable[[str, Any], Reading]:
    def read(name: str, value: Any) -> Reading:
        if value is None or isinstance(value, str | Path):
            return target, None if value is None else str(value)
        raise InvalidInputError(f"{name} is a {type(value).__name__}; give a string")

    return read


def _length(name: str, value: Any) -> Reading:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return "max_length", value
    raise InvalidInputError(f"{name} is {value!r}; it must be a number of tokens or None")


def _truth(target: str | None) -> Callable[[str, Any], Reading]:
    def read(name: str, value: Any) -> Reading:
        if isinstance(value, bool):
            return target, value
        raise InvalidInputError(f"{name} is {value!r}; it must be True or False")

    return read


def _token(name: str, value: Any) -> Reading:
    if value is None or value is True:  # both: the one that is stored on this machine, if any
        return "token", None
    if isinstance(value, str):
        return "token", SecretStr(value)
    raise InvalidInputError(
        f"{name} is a {type(value).__name__}; give a string, or leave it out "
        "(HF_HUB_DISABLE_IMPLICIT_TOKEN=1 keeps a stored one from being sent)"
    )


def _backend(name: str, value: Any) -> Reading:
    if value in get_args(Backend) and value != "auto":
        return "backend", value
    raise InvalidInputError(f"{name} is {value!r}; it must be 'torch', 'onnx' or 'openvino'")


def _one_label(name: str, value: Any) -> Reading:
    if value in (None, 1):
        return None, value
    raise InvalidInputError(
        f"{name} is {value!r}; a reranker has one label, and the score of a classifier is no "
        "relevance: leave it out"
    )


def _activation(name: str, value: Any) -> Reading:
    if value is None:
        return "activation", None
    path = value if isinstance(value, str) else f"{type(value).__module__}.{type(value).__name__}"
    kind = activation_of(path)
    if kind is None:
        raise InvalidInputError(
            f"{name} is {path}; use torch.nn.Identity() for raw scores or torch.nn.Sigmoid(), and "
            "apply any other function to the raw scores yourself"
        )
    return "activation", kind


def _model_kwargs(name: str, value: Any) -> Reading:
    """Of transformers' `from_pretrained` the number format alone."""
    if value is None:
        return None, None
    given = dict(value)
    formats = {str(given.pop(key)).removeprefix("torch.") for key in KEYS if given.get(key)}
    if given:
        raise InvalidInputError(
            f"{name} holds {min(map(str, given))!r}; of the model's own arguments only dtype is "
            "known here, and how to compute is chosen by the device: leave it out"
        )
    if not formats:
        return None, None
    if len(formats) > 1 or not formats <= PRECISIONS.keys():
        raise InvalidInputError(
            f"{name} asks for the number format {' and '.join(sorted(formats))}; it must be one of "
            "float32, float16 and bfloat16"
        )
    return "precision", PRECISIONS[formats.pop()]


KEYS = ("dtype", "torch_dtype")


def _tokenizer_kwargs(name: str, value: Any) -> Reading:
    given = dict(value or {})
    length = given.pop("model_max_length", None)
    if given:
        raise InvalidInputError(
            f"{name} holds {min(map(str, given))!r}; the model's own tokenizer.json decides "
            "everything but model_max_length: leave it out"
        )
    return (None, None) if length is None else _length(f"{name}['model_max_length']", length)


READERS: dict[str, Callable[[str, Any], Reading]] = {
    "device": _text("device"),
    "cache_folder": _text("cache_dir"),
    "revision": _text("revision"),
    "local_files_only": _truth("local_files_only"),
    # no code from a model's folder is ever run, and a model that needs it is refused by its name
    "trust_remote_code": _truth(None),
    "token": _token,
    "backend": _backend,
    "num_labels": _one_label,
    "max_length": _length,
    "activation_fn": _activation,
    "default_activation_function": _activation,
    "model_kwargs": _model_kwargs,
    "automodel_args": _model_kwargs,
    "processor_kwargs": _tokenizer_kwargs,
    "tokenizer_kwargs": _tokenizer_kwargs,
    "tokenizer_args": _tokenizer_kwargs,
}
"""What each of `CrossEncoder`'s arguments asks of this engine, by its present and older names."""


def _as_json(name: str, value: Any, meaning: Any) -> Any:
    if READERS[name] is _activation:
        return None if meaning is None else f"torch.nn.{meaning}"
    if READERS[name] is _model_kwargs:
        return {key: str(number).removeprefix("torch.") for key, number in (value or {}).items()}
    return str(value) if isinstance(value, Path) else value


class AdapterFields(TypedDict):
    """The fields of `BGERerank` and `BGECrossEncoder` that make them score as `CrossEncoder`."""

    model: str
    device: str | None
    cache_dir: str | None
    revision: str | None
    local_files_only: bool
    token: SecretStr | None
    backend: Backend
    precision: Precision
    max_length: int
    truncation: Truncation
    normalize: bool


def adapter_fields(
    model: str, arguments: CrossEncoderArguments, *, default_max_length: int | None = None
) -> AdapterFields:
    """What gives the scores of `CrossEncoder(model, **arguments)`.

    The model's files are read from disk or the hub, from where they are downloaded if need be.
    Raises `InvalidInputError` for an address, `ModelNotFound`, `CheckpointError`, and
    `UnsupportedModel` for a model that `CrossEncoder` scores in a way that this engine does not
    have.
    """
    refuse_address(model)
    checkpoint = open_checkpoint(
        model,
        HubOptions(
            revision=arguments.revision,
            cache_dir=arguments.cache_dir,
            local_files_only=arguments.local_files_only,
            token=arguments.token.get_secret_value() if arguments.token else None,
        ),
    )
    settings = read_settings(checkpoint)
    if settings.family is not Family.ENCODER:
        raise UnsupportedModel(
            f"{model} has no relevance head of an encoder (family: {settings.family.value}), and "
            "sentence-transformers scores it in a way of its own; use BGERerank or "
            "BGECrossEncoder, which score it as FlagEmbedding does"
        )
    limit = position_limit(checkpoint.config, checkpoint.model)
    own = settings.default_length(limit, limit)
    return AdapterFields(
        model=model,
        device=arguments.device,
        cache_dir=arguments.cache_dir,
        revision=arguments.revision,
        local_files_only=arguments.local_files_only,
        token=arguments.token,
        backend=arguments.backend,
        precision=arguments.precision,
        max_length=arguments.max_length or min(own, default_max_length or own),
        truncation="longest_first",
        normalize=(arguments.activation or settings.activation) == "Sigmoid",
    )
