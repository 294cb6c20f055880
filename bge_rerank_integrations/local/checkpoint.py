"""A model's files: never pickles, read tensor by tensor, named by their contents.

`config.json` is read as JSON: no code from a model folder is ever run.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bge_rerank_integrations.errors import CheckpointError
from bge_rerank_integrations.local.download import HUB_DEFAULTS, HubOptions, find_folder

# What a download may bring. Pickle weights (*.bin, *.pt) are not in it.
SETTINGS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
DOWNLOADED = (*SETTINGS, "model*.safetensors", "model.safetensors.index.json")
# Where a model has its ONNX graph: as BAAI and sentence-transformers lay it out, or on its own.
GRAPHS = ("onnx/model.onnx", "model.onnx")
PICKLES = ("pytorch_model*.bin", "model*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, with the name the caller gave it."""

    model: str
    folder: Path

    def read_json(self, name: str) -> Any:
        """The parsed file; raises `CheckpointError` if it is missing or damaged."""
        file = self.folder / name
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            adapter = self.folder / "adapter_config.json"
            if adapter.is_file():
                base = json.loads(adapter.read_text(encoding="utf-8")).get(
                    "base_model_name_or_path"
                )
                raise CheckpointError(
                    f"{self.folder} holds a LoRA adapter of {base}, not a model; merge it first: "
                    "PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(folder)"
                ) from None
            raise CheckpointError(f"{self.folder} has no {name}, so it is no model") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file} is damaged: {error}") from error

    @cached_property
    def config(self) -> dict[str, Any]:
        config = self.read_json("config.json")
        if not isinstance(config, dict):
            raise CheckpointError(f"{self.folder / 'config.json'} holds no JSON object")
        return config

    @cached_property
    def files(self) -> dict[str, Path]:
        """Where each tensor is: name to safetensors file."""
        if (self.folder / "model.safetensors.index.json").is_file():
            index = self.read_json("model.safetensors.index.json")
            shards = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(shards, dict):
                raise CheckpointError(f"{self.folder} has an index of shards without weight_map")
            files = {name: self.folder / Path(str(file)).name for name, file in shards.items()}
            held = {file: set(self._header(file)) for file in sorted(set(files.values()))}
            if lost := [name for name, file in files.items() if name not in held[file]]:
                raise CheckpointError(
                    f"{files[lost[0]]} does not hold {lost[0]!r}, as the index of shards says: "
                    "fetch the model again"
                )
            return files
        single = self.folder / "model.safetensors"
        if not single.is_file():
            raise CheckpointError(self._no_weights())
        return dict.fromkeys(self._header(single), single)

    def _no_weights(self) -> str:
        if any((self.folder / name).is_file() for name in GRAPHS):
            return (
                f"{self.folder} has no model.safetensors, only an ONNX graph: run that with "
                "backend='onnx'"
            )
        pickles = sorted({f.name for pattern in PICKLES for f in self.folder.glob(pattern)})
        if not pickles:
            return f"{self.folder} has no model.safetensors"
        return (
            f"{self.folder} holds its weights only as pickle ({', '.join(pickles)}), which can run "
            "code when it is opened and is never loaded; convert it once, where you trust it: "
            "AutoModel*.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)"
        )

    def _header(self, file: Path) -> list[str]:
        """The names of a file's tensors."""
        # here, because a folder with an ONNX graph needs no safetensors and is a checkpoint too
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(file), framework="np") as opened:
                return list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is damaged or missing ({error}): an interrupted download or copy; "
                "delete it and fetch it again"
            ) from error

    @property
    def weight_files(self) -> set[Path]:
        """The files that hold the weights."""
        return set(self.files.values())

    @property
    def _sources(self) -> list[Path]:
        names = ("config.json", "tokenizer.json", "1_Pooling/config.json")
        files = [self.folder / name for name in names]
        return [file for file in files if file.is_file()] + sorted(self.weight_files)

    @cached_property
    def signature(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size and time of change of the files as they are now: cheap, for this process."""
        try:
            return tuple(
                (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
                for file in self._sources
            )
        except OSError as error:
            raise CheckpointError(
                f"{error.filename} is missing or cannot be read ({error.strerror}); fetch the "
                "model again"
            ) from error

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if a file has changed since `signature` was first read."""
        if self.signature != type(self)(self.model, self.folder).signature:
            raise CheckpointError(f"{self.folder} has changed since it was loaded; load it again")

    def fingerprint(self) -> str:
        """Twelve hex digits that name the contents, wherever they lie: SHA-256 over the files.

        Raises `CheckpointError` if a file has changed since `signature` was first read.
        """
        self.check_unchanged()
        digest = hashlib.sha256()
        for file in self._sources:
            digest.update(file.name.encode() + _sha256(file.resolve()).encode())
        return digest.hexdigest()[:12]


def _sha256(file: Path) -> str:
    # the hub's cache names each large file by its own SHA-256
    if len(file.name) == 64 and set(file.name) <= set("0123456789abcdef"):
        return file.name
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_checkpoint(model: str, hub: HubOptions = HUB_DEFAULTS) -> Checkpoint:
    """A local folder, or a hub id whose files are downloaded unless they are cached.

    Raises `ModelNotFound` as `find_folder` does.
    """
    return Checkpoint(model, find_folder(model, DOWNLOADED, hub))
