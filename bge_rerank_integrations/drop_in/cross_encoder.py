"""The fields of `BGERerank` and `BGECrossEncoder` that give the scores of `CrossEncoder`.

LangChain's class passes its `model_kwargs` to sentence-transformers' `CrossEncoder`, LlamaIndex's
its `cross_encoder_kwargs`. By the rules of sentence-transformers 6.2 length and activation are the
argument's, else the folder's; numbers are float32, or a graph's own; models are cached in
`cache_folder`, else in SENTENCE_TRANSFORMERS_HOME.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr

from bge_rerank_integrations.base.address import refuse_address
from bge_rerank_integrations.base.models import Family
from bge_rerank_integrations.errors import InvalidInputError, UnsupportedModel
from bge_rerank_integrations.local.checkpoint import is_whole, open_checkpoint
from bge_rerank_integrations.local.model_config import position_limit
from bge_rerank_integrations.local.st_config import activation_of, read_settings
from bge_rerank_integrations.options import HubOptions
from bge_rerank_integrations.types import Backend, Precision

PRECISIONS: dict[str, Precision] = {
    "float32": "fp32", "float": "fp32", "fp32": "fp32",
    "float16": "fp16", "half": "fp16", "fp16": "fp16",
    "bfloat16": "bf16", "bf16": "bf16",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CrossEncoderArguments:
    """`CrossEncoder`'s arguments as our `fields` and `activation`; `written` has no secrets."""

    fields: dict[str, Any]
    written: dict[str, Any]


def read_arguments(given: Mapping[str, Any], *, where: str) -> CrossEncoderArguments:
    """The arguments of a `CrossEncoder`, each of them mapped to our fields or refused.

    `where` names the argument that holds them, for messages. Raises `InvalidInputError` for an
    argument that is unknown, or whose value asks for something that this package does not do.
    """
    fields: dict[str, Any] = {}
    written: dict[str, Any] = {}
    for name, value in given.items():
        read = READERS.get(name)
        if read is None:
            raise InvalidInputError(
                f"{where} holds {name!r}, which has no counterpart here; leave it out. Supported: "
                f"{', '.join(sorted(READERS))}"
            )
        found = read(f"{where}[{name!r}]", value)
        for field, meaning in found.items():
            if fields.setdefault(field, meaning) != meaning:
                raise InvalidInputError(f"{where} gives {field} two values; leave one out")
        if name != "token":
            written[name] = _as_json(name, value, found)
    return CrossEncoderArguments(fields, written)


def adapter_fields(
    model: str, arguments: CrossEncoderArguments, *, default_max_length: int | None = None
) -> dict[str, Any]:
    """The fields of `BGERerank` or `BGECrossEncoder` that give `CrossEncoder`'s scores.

    The model's files are read from disk or the hub, and downloaded from there if necessary. Raises
    `InvalidInputError` for an address, `ModelNotFound`, `CheckpointError`, and `UnsupportedModel`
    for a model that `CrossEncoder` scores in a way that this package does not support.
    """
    refuse_address(model)
    fields = {"model": model, **arguments.fields}
    if fields.get("cache_dir") is None:
        fields["cache_dir"] = os.getenv("SENTENCE_TRANSFORMERS_HOME") or None
    hub = {name: fields[name] for name in HubOptions.model_fields if name in fields}
    checkpoint = open_checkpoint(model, HubOptions(**hub))
    settings = read_settings(checkpoint)
    if settings.family is not Family.ENCODER:
        raise UnsupportedModel(
            f"{model} has no relevance head of an encoder (family: {settings.family.value}), and "
            "sentence-transformers scores it in another way; use BGERerank or "
            "BGECrossEncoder, which score it as FlagEmbedding does"
        )
    limit = position_limit(checkpoint.config)
    own = settings.default_length(limit, limit)
    fields["max_length"] = fields.get("max_length") or min(own, default_max_length or own)
    is_graph = fields.get("backend") in ("onnx", "openvino") or "file_name" in fields
    fields.setdefault("precision", "auto" if is_graph else "fp32")
    activation = fields.pop("activation", None) or settings.activation
    return {**fields, "truncation": "longest_first", "normalize": activation == "Sigmoid"}


Fields = dict[str, Any]
"""The fields that an argument sets."""


def _text(field: str) -> Callable[[str, Any], Fields]:
    def read(name: str, value: Any) -> Fields:
        if value is None or isinstance(value, str | Path):
            return {field: None if value is None else str(value)}
        raise InvalidInputError(f"{name} is a {type(value).__name__}; give a string")

    return read


def _length(name: str, value: Any) -> Fields:
    if value is None or is_whole(value):
        return {"max_length": value}
    raise InvalidInputError(f"{name} is {value!r}; it must be a number of tokens or None")


def _truth(*fields: str) -> Callable[[str, Any], Fields]:
    def read(name: str, value: Any) -> Fields:
        if isinstance(value, bool):
            return dict.fromkeys(fields, value)
        raise InvalidInputError(f"{name} is {value!r}; it must be True or False")

    return read


def _token(name: str, value: Any) -> Fields:
    if value is None or value is True:  # both mean the token that is stored on this machine, if any
        return {"token": None}
    if isinstance(value, str):
        return {"token": SecretStr(value)}
    raise InvalidInputError(
        f"{name} is a {type(value).__name__}; give a string, or leave it out "
        "(HF_HUB_DISABLE_IMPLICIT_TOKEN=1 keeps a stored one from being sent)"
    )


def _backend(name: str, value: Any) -> Fields:
    if value in get_args(Backend) and value != "auto":
        return {"backend": value}
    raise InvalidInputError(f"{name} is {value!r}; it must be 'torch', 'onnx' or 'openvino'")


def _one_label(name: str, value: Any) -> Fields:
    if value in (None, 1):
        return {}
    raise InvalidInputError(
        f"{name} is {value!r}; a reranker has one label, and the score of a classifier is no "
        "relevance: leave it out"
    )


def _activation(name: str, value: Any) -> Fields:
    if value is None:
        return {"activation": None}
    path = value if isinstance(value, str) else f"{type(value).__module__}.{type(value).__name__}"
    kind = activation_of(path)
    if kind is None:
        raise InvalidInputError(
            f"{name} is {path}; use torch.nn.Identity() for raw scores or torch.nn.Sigmoid(), and "
            "apply any other function to the raw scores yourself"
        )
    return {"activation": kind}


def _model_kwargs(name: str, value: Any) -> Fields:
    """The number format and a graph's file, of all the arguments of `from_pretrained`."""
    given = dict(value or {})
    formats = {
        str(found).removeprefix("torch.")
        for key in ("dtype", "torch_dtype")
        if (found := given.pop(key, None))
    }
    file_name = given.pop("file_name", None)
    if given:
        raise InvalidInputError(
            f"{name} holds {min(map(str, given))!r}; of the model's own arguments only dtype and "
            "file_name are supported, and the device decides how to compute: leave it out"
        )
    if len(formats) > 1 or not formats <= PRECISIONS.keys():
        raise InvalidInputError(
            f"{name} asks for the number format {' and '.join(sorted(formats))}; it must be one of "
            "float32, float16 and bfloat16"
        )
    fields: Fields = {} if file_name is None else {"file_name": str(file_name)}
    return fields | ({"precision": PRECISIONS[formats.pop()]} if formats else {})


def _tokenizer_kwargs(name: str, value: Any) -> Fields:
    given = dict(value or {})
    length = given.pop("model_max_length", None)
    if given:
        raise InvalidInputError(
            f"{name} holds {min(map(str, given))!r}; the model's own tokenizer.json decides "
            "everything but model_max_length: leave it out"
        )
    return {} if length is None else _length(f"{name}['model_max_length']", length)


READERS: dict[str, Callable[[str, Any], Fields]] = {
    "device": _text("device"),
    "cache_folder": _text("cache_dir"),
    "revision": _text("revision"),
    "local_files_only": _truth("local_files_only"),
    # no code from a model's folder is ever run, and a model that needs it is refused by its name
    "trust_remote_code": _truth(),
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
"""The reader of each of `CrossEncoder`'s arguments, by its present and older names."""


def _as_json(name: str, value: Any, found: Fields) -> Any:
    if READERS[name] is _activation:
        return found["activation"] and f"torch.nn.{found['activation']}"
    if READERS[name] is _model_kwargs:
        return {key: str(number).removeprefix("torch.") for key, number in (value or {}).items()}
    return str(value) if isinstance(value, Path) else value
