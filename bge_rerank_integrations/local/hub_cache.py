"""Where the hub's client keeps models, and which models are there; never asks the network."""

from dataclasses import dataclass

from huggingface_hub import constants

from bge_rerank_integrations.errors import CheckpointError, ModelNotFound
from bge_rerank_integrations.local.checkpoint import open_checkpoint
from bge_rerank_integrations.options import HubOptions


@dataclass(frozen=True, slots=True)
class HubCache:
    """The cache's folder, and whether HF_HUB_OFFLINE has switched downloads off."""

    folder: str
    offline: bool


def hub_cache() -> HubCache:
    """The cache that a model is looked for in when no `cache_dir` is given."""
    return HubCache(str(constants.HF_HUB_CACHE), offline=bool(constants.HF_HUB_OFFLINE))


def is_cached(model: str, cache_dir: str | None = None) -> bool:
    """Whether the model's config, tokenizer and whole weights are on this machine."""
    try:
        checkpoint = open_checkpoint(model, HubOptions(cache_dir=cache_dir, local_files_only=True))
        files = checkpoint.weight_files
    except (ModelNotFound, CheckpointError):
        return False
    files |= {checkpoint.folder / name for name in ("config.json", "tokenizer.json")}
    return all(file.is_file() for file in files)
