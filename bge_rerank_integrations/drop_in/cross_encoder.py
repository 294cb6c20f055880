"""What sentence-transformers' `CrossEncoder` would do with its arguments and a model's folder.

Both drop-in families rest on it: LangChain's class hands its `model_kwargs` to `CrossEncoder`,
LlamaIndex's its `cross_encoder_kwargs`. Rules of sentence-transformers 6.2,
`cross_encoder/model.py` and `base/modules/transformer.py`: the length is the argument's, else the
tokenizer's `model_max_length`, at most the model's positions; the activation is the argument's,
else the one saved with the model, else a sigmoid; numbers are float32.
"""

from typing import Any, TypedDict

from pydantic import SecretStr

from bge_rerank_integrations.base.address import refuse_address
from bge_rerank_integrations.base.models import Family, family_of
from bge_rerank_integrations.drop_in.cross_encoder_arguments import (
    Activation,
    CrossEncoderArguments,
    activation_of,
)
from bge_rerank_integrations.errors import UnsupportedModel
from bge_rerank_integrations.local.checkpoint import Checkpoint, open_checkpoint
from bge_rerank_integrations.local.download import HubOptions
from bge_rerank_integrations.local.model_config import position_limit
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

    The model's config is read from disk or the hub, from where the model is downloaded if need be.
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
    family = family_of(checkpoint.config, model)
    if family is not Family.ENCODER:
        raise UnsupportedModel(
            f"{model} has no relevance head of an encoder (family: {family.value}), and "
            "sentence-transformers scores it in a way of its own; use BGERerank or "
            "BGECrossEncoder, which score it as FlagEmbedding does"
        )
    saved = _saved_by_library(checkpoint)
    own = _max_length(checkpoint, saved)
    activation = arguments.activation or _saved_activation(checkpoint, saved)
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
        normalize=activation == "Sigmoid",
    )


def _saved_by_library(checkpoint: Checkpoint) -> dict[str, Any]:
    """What sentence-transformers wrote into the folder of a model that it saved, else nothing."""
    if not (checkpoint.folder / "modules.json").is_file():
        return {}
    kinds = [
        str(module["type"]).rpartition(".")[2] for module in checkpoint.read_json("modules.json")
    ]
    saved = {
        **_read_if_there(checkpoint, "sentence_bert_config.json"),
        **_read_if_there(checkpoint, "config_sentence_transformers.json"),
    }
    if kinds != ["Transformer"] or saved.get("default_prompt_name"):
        raise UnsupportedModel(
            f"{checkpoint.model} was saved by sentence-transformers with the modules "
            f"{', '.join(kinds)} and the prompt {saved.get('default_prompt_name')!r}; here it runs "
            "as one Transformer without prompt: use BGERerank or BGECrossEncoder, with a "
            "query_instruction if it needs one"
        )
    return saved


def _read_if_there(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    if not (checkpoint.folder / name).is_file():
        return {}
    found = checkpoint.read_json(name)
    return found if isinstance(found, dict) else {}


def _max_length(checkpoint: Checkpoint, saved: dict[str, Any]) -> int:
    limit = position_limit(checkpoint.config, checkpoint.model)
    tokenizer = _read_if_there(checkpoint, "tokenizer_config.json")
    length = saved.get("max_seq_length") or tokenizer.get("model_max_length")
    # 1e30 stands for "no limit"
    return int(min(length, limit)) if isinstance(length, int | float) and length > 0 else limit


def _saved_activation(checkpoint: Checkpoint, saved: dict[str, Any]) -> Activation:
    config = checkpoint.config
    inside = config.get("sentence_transformers")
    path = (
        saved.get("activation_fn")
        or (inside.get("activation_fn") if isinstance(inside, dict) else None)
        or config.get("sbert_ce_default_activation_function")
        or "torch.nn.Sigmoid"
    )
    kind = activation_of(str(path))
    if kind is None:
        raise UnsupportedModel(
            f"{checkpoint.model} asks for the activation {path}, which is not known here; for raw "
            "scores pass activation_fn=torch.nn.Identity()"
        )
    return kind
