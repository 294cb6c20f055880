"""A model's files: never pickles, read tensor by tensor, named by their contents.

`config.json` is read as JSON: no code from a model folder is ever run.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from bge_rerank_integrations.errors import CheckpointError, ModelNotFound
from bge_rerank_integrations.local.download import HUB_DEFAULTS, find_folder
from bge_rerank_integrations.options import HubOptions

# Every file besides the weights that decides a score: downloaded, and part of the fingerprint.
SETTINGS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
)
# Files that say the weights alone are not the model; a folder with one of them is refused.
ADAPTER = "adapter_config.json"
QUANTIZERS = (
    "hf_quant_config.json",
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
)
# What a download may bring. Pickle weights (*.bin, *.pt) are not in it.
DOWNLOADED = (
    *SETTINGS,
    ADAPTER,
    *QUANTIZERS,
    "[0-9]_*/model.safetensors",
    "model*.safetensors",
    "model.safetensors.index.json",
)
# Where a model has its ONNX graph: as BAAI and sentence-transformers lay it out, or on its own.
GRAPHS = ("onnx/model.onnx", "model.onnx")
PICKLES = ("pytorch_model*.bin", "model*.bin", "*.pt", "*.pth", "*.ckpt")
# TensorFlow's names of a LayerNorm's parts, which transformers 5.0 to 5.5 wrote again for XLM-R.
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class StoredTensor(NamedTuple):
    """Where a tensor lies and what its file says of it; `dtype` in safetensors' words: "F32"."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


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
            self.refuse_adapter()
            raise CheckpointError(f"{self.folder} has no {name}, so it is no model") from None
        # ValueError is any damage: no JSON, no UTF-8, a number of more digits than Python reads
        except (ValueError, RecursionError, OSError) as error:
            raise CheckpointError(f"{file} is damaged: {error}") from error

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`, whose `architectures` and `model_type` are strings if they are there."""
        config, file = self.read_json("config.json"), self.folder / "config.json"
        if not isinstance(config, dict):
            raise CheckpointError(f"{file} holds no JSON object")
        names = config.get("architectures")
        if names is not None and not (
            isinstance(names, list) and all(isinstance(name, str) for name in names)
        ):
            raise CheckpointError(f"{file} has architectures={names!r}; it must be a list of names")
        kind = config.get("model_type")
        if kind is not None and not isinstance(kind, str):
            raise CheckpointError(f"{file} has model_type={kind!r}; it must be a name")
        return config

    def refuse_adapter(self) -> None:
        """Raise `CheckpointError`, with the lines that merge it, for a LoRA adapter."""
        if not (self.folder / ADAPTER).is_file():
            return
        adapter = self.read_json(ADAPTER)
        adapter = adapter if isinstance(adapter, dict) else {}
        task = str(adapter.get("task_type"))
        kind = {"CAUSAL_LM": "ForCausalLM", "FEATURE_EXTRACTION": ""}.get(
            task, "ForSequenceClassification"
        )
        base = adapter.get("base_model_name_or_path")
        advice = (
            f"merge it into its base model with peft, and load the merged folder:\n"
            f"  model = AutoModel{kind}.from_pretrained({base!r})\n"
            f"  PeftModel.from_pretrained(model, {str(self.folder)!r}).merge_and_unload()"
            f'.save_pretrained("merged")\n'
            "and copy the tokenizer's files beside it"
        )
        for merged in (self.folder / "merged_model", self.folder.parent / "merged_model"):
            if (merged / "config.json").is_file():
                advice = f"load {merged}, where it is merged already"
                break
        raise CheckpointError(
            f"{self.folder} holds a LoRA adapter ({ADAPTER}) of {base}, which is not applied "
            f"here; {advice}"
        )

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor by its name; a single file counts before shards, as in transformers."""
        single, index_file = (
            self.folder / name for name in ("model.safetensors", "model.safetensors.index.json")
        )
        if single.is_file():
            return self._header(single)
        if not index_file.is_file():
            raise CheckpointError(self._no_weights())
        index = self.read_json(index_file.name)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict):
            raise CheckpointError(f"{self.folder} has an index of shards without weight_map")
        for name in shards.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise CheckpointError(f"{index_file} has {name!r}, which is no file's name")
        held = {name: self._header(self.folder / name) for name in sorted(set(shards.values()))}
        found = {name: tensor for part in held.values() for name, tensor in part.items()}
        listed = {_new_name(name): file for name, file in shards.items()}
        if lost := sorted(name for name, file in listed.items() if name not in held[file]):
            raise CheckpointError(
                f"{self.folder / listed[lost[0]]} does not hold {lost[0]!r}, as the index of "
                "shards says: fetch the model again"
            )
        if extra := sorted(found.keys() - listed.keys()):
            raise CheckpointError(
                f"{found[extra[0]].file} holds {extra[0]!r}, of which the index of shards says "
                "nothing: the shards are of different models; fetch the model again"
            )
        return found

    def _no_weights(self) -> str:
        for backend, kind in (("onnx", "*.onnx"), ("openvino", "openvino_model*.xml")):
            if any(self.folder.glob(kind)) or any(self.folder.glob(f"*/{kind}")):
                return (
                    f"{self.folder} has no model.safetensors, only an ONNX or OpenVINO graph: run "
                    f"that with backend={backend!r}"
                )
        pickles = sorted({f.name for pattern in PICKLES for f in self.folder.glob(pattern)})
        if pickles:
            what, where = f"holds its weights only as pickle ({', '.join(pickles)})", "folder"
        elif Path(self.model).expanduser().is_dir():
            return f"{self.folder} has no model.safetensors"
        else:  # a hub id, of which no pickle is ever downloaded
            what = "has no model.safetensors on the hub; what it has there is at most a pickle"
            where = repr(self.model)
        return (
            f"{self.folder if pickles else self.model} {what}, which can run code when it is "
            "opened and is never loaded; convert it once, where you trust it: "
            f"AutoModel*.from_pretrained({where}).save_pretrained(folder, safe_serialization=True)"
        )

    def _header(self, file: Path) -> dict[str, StoredTensor]:
        """A file's tensors."""
        # here, because a folder with an ONNX graph needs no safetensors and is a checkpoint too
        from safetensors import SafetensorError, safe_open

        tensors: dict[str, StoredTensor] = {}
        try:
            with safe_open(str(file), framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    part = opened.get_slice(name)
                    stored = StoredTensor(file, name, tuple(part.get_shape()), part.get_dtype())
                    if tensors.setdefault(_new_name(name), stored) is not stored:
                        raise CheckpointError(f"{file} holds {_new_name(name)!r} and {name!r}")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is damaged or missing ({error}): an interrupted download or copy; "
                "delete it and fetch it again"
            ) from error
        return tensors

    @property
    def weight_files(self) -> set[Path]:
        """The files that hold the weights."""
        return {tensor.file for tensor in self.tensors.values()}

    @property
    def _sources(self) -> list[Path]:
        """Every file that decides a score."""
        files = {file for pattern in SETTINGS for file in self.folder.glob(pattern)}
        heads = set(self.folder.glob("[0-9]_*/*.safetensors"))
        return sorted(file for file in files | heads | self.weight_files if file.is_file())

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
        if self.signature != replace(self).signature:
            raise CheckpointError(f"{self.folder} has changed since it was loaded; load it again")

    def fingerprint(self) -> str:
        """Twelve hex digits that name the contents, wherever they lie: SHA-256 over the files.

        Raises `CheckpointError` if a file has changed since `signature` was first read.
        """
        self.check_unchanged()
        digest = hashlib.sha256()
        for file in self._sources:
            name = file.relative_to(self.folder).as_posix()
            digest.update(name.encode() + _sha256(file.resolve()).encode())
        return digest.hexdigest()[:12]


def _new_name(name: str) -> str:
    old = next((old for old in OLD_NAMES if name.endswith(old)), None)
    return name if old is None else name.removesuffix(old) + OLD_NAMES[old]


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


@dataclass(frozen=True, slots=True)
class HubCache:
    """The folder of the hub's cache, and whether HF_HUB_OFFLINE has switched downloads off."""

    folder: str
    offline: bool


def hub_cache() -> HubCache:
    """The cache that is used when no `cache_dir` is given."""
    from huggingface_hub import constants

    return HubCache(str(constants.HF_HUB_CACHE), offline=bool(constants.HF_HUB_OFFLINE))


def is_cached(model: str, cache_dir: str | None = None) -> bool:
    """Whether config, tokenizer and all weights are on this machine; never asks the network."""
    try:
        checkpoint = open_checkpoint(model, HubOptions(cache_dir=cache_dir, local_files_only=True))
        files = checkpoint.weight_files
    except (ModelNotFound, CheckpointError):
        return False
    files |= {checkpoint.folder / name for name in ("config.json", "tokenizer.json")}
    return all(file.is_file() for file in files)
