"""The arguments of sentence-transformers' `CrossEncoder`, as options that give the same scores.

LangChain's class passes its `model_kwargs` to `CrossEncoder`, LlamaIndex's its
`cross_encoder_kwargs`. As in sentence-transformers 6.2, length and activation come from the
argument, else from the folder; numbers are float32, or in a graph's own format; models are cached
in `cache_folder`, else in SENTENCE_TRANSFORMERS_HOME.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bge_rerank_integrations.base.address import refuse_address
from bge_rerank_integrations.base.models import Family
from bge_rerank_integrations.errors import InvalidInputError, UnsupportedModel
from bge_rerank_integrations.local.checkpoint import open_checkpoint
from bge_rerank_integrations.local.model_config import position_limit
from bge_rerank_integrations.local.st_config import activation_of, read_settings
from bge_rerank_integrations.options import HubOptions

MODEL_KWARGS = ("model_kwargs", "automodel_args")
TOKENIZER_KWARGS = ("processor_kwargs", "tokenizer_kwargs", "tokenizer_args")
PRECISIONS = {
    "float32": "fp32", "float": "fp32", "fp32": "fp32",
    "float16": "fp16", "half": "fp16", "fp16": "fp16",
    "bfloat16": "bf16", "bf16": "bf16",
}  # fmt: skip


def _precision(given: object) -> object:
    return given and PRECISIONS.get(str(given).removeprefix("torch."), given)


def _activation(given: object) -> object:
    kind = type(given)
    path = given if isinstance(given, str) else f"{kind.__module__}.{kind.__name__}"
    return given and (activation_of(path) or path)


def _inside(holders: Iterable[str], *names: str) -> Iterator[str]:
    return (f"{holder}.{name}" for holder in holders for name in names)


Text = Annotated[str | None, Field(description="it must be a string")]
Truth = Annotated[bool, Field(description="it must be True or False")]


class CrossEncoderArguments(BaseModel):
    """The arguments of `CrossEncoder`; the fields have the names of this package's options.

    Aliases are the arguments' current and older names; a description completes an error message.
    """

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    device: Text = None
    cache_dir: str | Path | None = Field(
        None, alias="cache_folder", description="it must be a path"
    )
    revision: Text = None
    local_files_only: Truth = False
    # no code from a model's folder is ever run, and a model that needs it is refused by its name
    trust_remote_code: Truth = Field(default=False, exclude=True)
    # True means the token that is stored on this machine, if any, as None does
    token: Annotated[
        str | None, BeforeValidator(lambda given: None if given is True else given)
    ] = Field(
        None,
        description="give a string, or leave it out (HF_HUB_DISABLE_IMPLICIT_TOKEN=1 keeps a "
        "stored one from being sent)",
    )
    backend: Literal["torch", "onnx", "openvino"] = Field(
        "torch", description="it must be 'torch', 'onnx' or 'openvino'"
    )
    num_labels: Literal[1] | None = Field(
        None,
        exclude=True,
        description="a reranker has one label, and a classifier's score is not a relevance: "
        "leave it out",
    )
    max_length: int | None = Field(
        None,
        ge=1,
        validation_alias=AliasChoices("max_length", *_inside(TOKENIZER_KWARGS, "model_max_length")),
        description="it must be a number of tokens, or None",
    )
    activation: Annotated[Literal["Sigmoid", "Identity"] | None, BeforeValidator(_activation)] = (
        Field(
            None,
            validation_alias=AliasChoices("activation_fn", "default_activation_function"),
            description="use torch.nn.Identity() for raw scores or torch.nn.Sigmoid(), and apply "
            "any other function to the raw scores yourself",
        )
    )
    precision: Annotated[Literal["fp32", "fp16", "bf16"] | None, BeforeValidator(_precision)] = (
        Field(
            None,
            validation_alias=AliasChoices(*_inside(MODEL_KWARGS, "dtype", "torch_dtype")),
            description="it must be float32, float16 or bfloat16",
        )
    )
    file_name: Text = Field(
        None, validation_alias=AliasChoices(*_inside(MODEL_KWARGS, "file_name"))
    )


ARGUMENTS = {
    str(alias): field
    for name, field in CrossEncoderArguments.model_fields.items()
    for alias in getattr(field.validation_alias, "choices", [field.validation_alias or name])
}
"""The field of each argument, by its current and older names, as in "model_kwargs.dtype"."""


def read_arguments(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of these arguments, and the `activation`, unless it is None.

    Raises `InvalidInputError` for a name or value that is not supported.
    """
    flat: dict[str, Any] = {}
    for name, value in given.items():
        if name in (*MODEL_KWARGS, *TOKENIZER_KWARGS):
            flat |= {f"{name}.{key}": inner for key, inner in dict(value or {}).items()}
        else:
            flat[name] = value
    try:
        return CrossEncoderArguments.model_validate(flat).model_dump(
            exclude_unset=True, exclude_none=True
        )
    except ValidationError as error:
        line = error.errors(include_url=False)[0]
    name, value = str(line["loc"][0]), line["input"]
    if name not in ARGUMENTS:
        message = (
            "has no counterpart here: leave it out; docs/migrating.md lists those that have one"
        )
    elif line["type"] == "extra_forbidden":
        message = "is given under another name too: leave one out"
    else:
        plain = isinstance(value, str | int | float | None) and name != "token"
        shown = repr(value) if plain else f"of type {type(value).__name__}"
        message = f"is {shown}; {ARGUMENTS[name].description}"
    raise InvalidInputError(f"{where}: {name} {message}")


def cross_encoder_options(
    model: str,
    arguments: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    where: str,
    default_max_length: int | None = None,
) -> dict[str, Any]:
    """The options of `BGERerank` or `BGECrossEncoder` that give `CrossEncoder`'s scores.

    Those of the caller's `options` replace them. The model's files are read from disk or the hub,
    and downloaded from there if necessary. `where` names the `arguments` in messages. Raises
    `InvalidInputError` for an argument that is not supported and for an address, `ModelNotFound`,
    `CheckpointError`, and `UnsupportedModel` for a model that `CrossEncoder` scores in a way that
    this package does not support.
    """
    refuse_address(model)
    fields = read_arguments(arguments, where) | dict(options)
    if fields.get("cache_dir") is None:
        fields["cache_dir"] = os.getenv("SENTENCE_TRANSFORMERS_HOME") or None
    hub = {name: fields[name] for name in HubOptions.model_fields if name in fields}
    checkpoint = open_checkpoint(model, HubOptions(**hub))
    settings = read_settings(checkpoint)
    if settings.family is not Family.ENCODER:
        raise UnsupportedModel(
            f"{model} is not an encoder with a relevance head (family: {settings.family.value}), "
            "and sentence-transformers scores it differently; use BGERerank or "
            "BGECrossEncoder, which score it as FlagEmbedding does"
        )
    limit = position_limit(checkpoint.config)
    own = settings.default_length(limit, limit)
    fields["max_length"] = fields.get("max_length") or min(own, default_max_length or own)
    is_graph = fields.get("backend") in ("onnx", "openvino") or fields.get("file_name")
    activation = fields.pop("activation", None) or settings.activation
    return {
        "model": model,
        "precision": "auto" if is_graph else "fp32",
        "truncation": "longest_first",
        "normalize": activation == "Sigmoid",
        **fields,
    }
