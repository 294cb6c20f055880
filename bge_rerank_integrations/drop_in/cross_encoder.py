"""What makes `BGERerank` and `BGECrossEncoder` score as sentence-transformers' `CrossEncoder`.

Both drop-in families rest on it: LangChain's class hands its `model_kwargs` to `CrossEncoder`,
LlamaIndex's its `cross_encoder_kwargs`. By sentence-transformers 6.2 the length is the argument's,
else the folder's; the activation is the argument's, else the folder's; numbers are float32.
"""

from typing import TypedDict

from pydantic import SecretStr

from bge_rerank_integrations.base.address import refuse_address
from bge_rerank_integrations.base.models import Family
from bge_rerank_integrations.drop_in.cross_encoder_arguments import CrossEncoderArguments
from bge_rerank_integrations.errors import UnsupportedModel
from bge_rerank_integrations.local.checkpoint import open_checkpoint
from bge_rerank_integrations.local.model_config import position_limit
from bge_rerank_integrations.local.st_config import read_settings
from bge_rerank_integrations.options import HubOptions
from bge_rerank_integrations.types import Backend, Precision, Truncation


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
