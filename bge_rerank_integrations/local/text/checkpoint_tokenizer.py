"""A checkpoint's tokenizer, held against the checkpoint's config."""

from bge_rerank_integrations.errors import CheckpointError
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.model_config import read_size
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer


def read_tokenizer(checkpoint: Checkpoint, *, lowercase: bool = False) -> TextTokenizer:
    """The checkpoint's tokenizer, with texts in small letters if `lowercase`.

    Raises `CheckpointError` if it belongs to another model.
    """
    config = checkpoint.config
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id")
    declared = [config[name] for name in names if isinstance(config.get(name), int)]
    tokenizer = TextTokenizer(checkpoint.folder, declared, config=config, lowercase=lowercase)
    vocabulary = read_size(config, "vocab_size", checkpoint.model)
    if tokenizer.size > vocabulary:
        raise CheckpointError(
            f"{checkpoint.folder / 'tokenizer.json'} has {tokenizer.size} tokens and the model "
            f"{vocabulary}: they belong to different models"
        )
    return tokenizer
