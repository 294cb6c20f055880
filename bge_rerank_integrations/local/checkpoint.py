"""A model's files: their checked settings, their tensors, and a fingerprint of their contents.

Settings are read as JSON and weights as safetensors: no pickle is opened, and no code is run.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from bge_rerank_integrations.base.fork import cached_property
from bge_rerank_integrations.errors import CheckpointError, ModelNotFound, UnsupportedModel
from bge_rerank_integrations.local.download import HUB_DEFAULTS, find_folder
from bge_rerank_integrations.options import HubOptions

# Every file that determines a score, except the weights: part of downloads and fingerprints.
SETTINGS = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "modules.json", "sentence_*_config.json",
    "config_sentence_transformers.json", "[0-9]_*/config.json",
)  # fmt: skip
# A folder with one of these is refused: its weights alone are not the model.
ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
QUANTIZERS = (
    "hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json",
)  # fmt: skip
# The files of a download. Pickle weights (*.bin, *.pt) are not among them.
DOWNLOADED = (
    *SETTINGS, ADAPTER, *QUANTIZERS, "[0-9]_*/model.safetensors", "model*.safetensors",
    INDEX,
)  # fmt: skip
# The usual places of a model's ONNX graph.
GRAPHS = ("onnx/model.onnx", "model.onnx")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Files of weights that are not read; the state of a trainer is not a model's.
WEIGHTS = re.compile(
    r"(?!optimizer|scheduler|scaler|rng_state|training_args)"
    r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf)"
)
# TensorFlow's names of a LayerNorm's parts, which transformers 5.0 to 5.5 wrote again for XLM-R.
NEW_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

MAX_NUMBER = 2**31 - 1
# These are counted one by one, so a number that is too large would take hours.
COUNTS = {
    "decoder_layers", "encoder_layers", "inner_group_num", "n_layer", "n_layers",
    "n_routed_experts", "num_attention_heads", "num_decoder_layers", "num_experts",
    "num_hidden_groups", "num_hidden_layers", "num_key_value_heads", "num_labels", "num_layers",
    "num_local_experts",
}  # fmt: skip
ABSENT = object()

Allowed = Mapping[str, Sequence[object] | None]
"""The values that each key may have; None allows all."""


class Keys(dict[str, Any]):
    """The JSON object in a file, whose values are checked when they are read.

    `source` names the file and the model. A refusal names the source, the key, its value and a
    remedy: its own, or the one for the whole file.
    """

    def __init__(self, source: str, values: Mapping[str, Any], *, remedy: str = "") -> None:
        super().__init__(values)
        self._source, self._remedy = source, remedy

    def refuse(
        self,
        key: str,
        why: str,
        *,
        value: object = ABSENT,
        remedy: str | None = None,
        error: type[CheckpointError | UnsupportedModel] = CheckpointError,
    ) -> NoReturn:
        """Raise the error for this key; `value` replaces the file's own in the message."""
        shown = repr(self.get(key) if value is ABSENT else value)
        shown = shown if len(shown) <= 100 else f"{shown[:97]}..."
        end = self._remedy if remedy is None else remedy
        raise error(f"{self._source} has {key}={shown}; {why}{end and '; '}{end}")

    def unsupported(self, key: str, supported: str, *, value: object = ABSENT) -> NoReturn:
        """Raise `UnsupportedModel`, with the values that are supported."""
        self.refuse(key, f"supported values: {supported}", value=value, error=UnsupportedModel)

    def check(self, key: str, allowed: Sequence[object]) -> None:
        """Raise `UnsupportedModel` unless the value is one of these; a missing key is None."""
        if not is_one_of(self.get(key), allowed):
            self.unsupported(key, " or ".join(map(repr, allowed)))

    def inside(self, key: str) -> "Keys":
        """The object that a key holds; without keys where it is missing or null."""
        found = self.get(key)
        if not isinstance(found, dict | None):
            self.refuse(key, "it must be a JSON object")
        return Keys(f"{key} in {self._source}", found or {}, remedy=self._remedy)

    def whole(self, key: str, *, default: object = None, minimum: int = 1) -> int:
        """A whole number; raises `CheckpointError` for anything else."""
        number = self.get(key, default)
        maximum = 1000 if key in COUNTS else MAX_NUMBER
        if not is_whole(number, minimum=minimum) or number > maximum:
            self.refuse(key, f"it must be a whole number from {minimum} to {maximum}", value=number)
        return int(number)

    def number(self, key: str, *, default: object = None) -> float:
        """A number above 0; raises `CheckpointError` for anything else."""
        number = self.get(key, default)
        # not NaN either, which is neither above nor below
        if not isinstance(number, int | float) or number is True or not 0 < number <= MAX_NUMBER:
            self.refuse(key, "it must be a number above 0", value=number)
        return float(number)

    def flag(self, key: str, *, default: bool) -> bool:
        """A truth value; raises `CheckpointError` for anything else."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "it must be true or false")
        return value


def is_one_of(value: object, allowed: Sequence[object]) -> bool:
    """Whether the value is one of these, of the same type too: 0 is not False."""
    return any(type(value) is type(one) and value == one for one in allowed)


def is_whole(value: object, *, minimum: int = 1) -> bool:
    """Whether the value is a whole number of at least `minimum`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


class StoredTensor(NamedTuple):
    """A tensor's file, name, shape and `dtype`, which is safetensors' word: "F32"."""

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
            return json.loads(file.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            self.refuse_adapter()
            models = sorted(f.parent.name for f in self.folder.glob("*/tokenizer.json"))
            inside = f"; folders in it have a model: {', '.join(models)}" if models else ""
            raise CheckpointError(
                f"{self.folder} has no {name}, so it is not a model{inside}"
            ) from None
        # ValueError is any damage: no JSON, no UTF-8, a number of more digits than Python reads
        except (ValueError, RecursionError, OSError) as error:
            raise CheckpointError(f"{file} is damaged: {error}") from error

    def read_keys(self, name: str, *, remedy: str = "", optional: bool = True) -> Keys:
        """The JSON object in a file; an `optional` file that is missing has no keys."""
        missing = optional and not (self.folder / name).is_file()
        found = {} if missing else self.read_json(name)
        if not isinstance(found, dict):
            raise CheckpointError(f"{self.folder / name} is not a JSON object")
        return Keys(f"{name} of {self.model}", found, remedy=remedy)

    @cached_property
    def config(self) -> Keys:
        """`config.json`, whose `architectures` and `model_type` are strings if they are there."""
        config = self.read_keys("config.json", optional=False)
        names = config.get("architectures", [])
        if names is not None and not (
            isinstance(names, list) and all(isinstance(name, str) for name in names)
        ):
            config.refuse("architectures", "it must be a list of names")
        if not isinstance(config.get("model_type"), str | None):
            config.refuse("model_type", "it must be a name")
        if names and (self.folder / "modules.json").is_file():
            # of an embedder trained from a masked language model; modules read the model inside
            named = [re.sub("For(MaskedLM|PreTraining)$", "Model", name) for name in names]
            config["architectures"] = named
        return config

    def refuse_adapter(self) -> None:
        """Raise `CheckpointError`, with the lines that merge it, for a LoRA adapter."""
        if not (self.folder / ADAPTER).is_file():
            return
        adapter = self.read_keys(ADAPTER)
        base, task = adapter.get("base_model_name_or_path"), str(adapter.get("task_type"))
        kinds = {"CAUSAL_LM": "ForCausalLM", "FEATURE_EXTRACTION": ""}
        advice = (
            f"merge it into its base model with peft, and load the merged folder:\n"
            f"  model = AutoModel{kinds.get(task, 'ForSequenceClassification')}"
            f".from_pretrained({base!r})\n"
            f"  PeftModel.from_pretrained(model, {str(self.folder)!r}).merge_and_unload()"
            f'.save_pretrained("merged")\n'
            "and copy the tokenizer's files next to it"
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
        single, index_file = self.folder / "model.safetensors", self.folder / INDEX
        if single.is_file():
            return _header(single)
        if not index_file.is_file():
            raise CheckpointError(self._no_weights())
        index = self.read_keys(INDEX)
        shards = index.inside("weight_map")
        if not shards:
            index.refuse("weight_map", "it must name the file of each tensor")
        for name in shards.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise CheckpointError(f"{index_file} has {name!r}, which is not a file name")
        files = [self.folder / name for name in sorted(set(shards.values()))]
        found = {name: tensor for file in files for name, tensor in _header(file).items()}
        listed = {_new_name(name): self.folder / file for name, file in shards.items()}
        held = {name: tensor.file for name, tensor in found.items()}
        if differ := sorted(name for name, _ in listed.items() ^ held.items()):
            name = differ[0]
            raise CheckpointError(
                f"{index_file} says that {name!r} is in {listed.get(name)}, and it is in "
                f"{held.get(name)}: the shards are of different models; fetch the model again"
            )
        return found

    def _no_weights(self) -> str:
        for backend, kind in (("onnx", "*.onnx"), ("openvino", "openvino_model*.xml")):
            if any(self.folder.glob(kind)) or any(self.folder.glob(f"*/{kind}")):
                return (
                    f"{self.folder} has no model.safetensors, only an ONNX or OpenVINO graph: run "
                    f"that with backend={backend!r}"
                )
        there = sorted(f.name for f in self.folder.iterdir() if WEIGHTS.fullmatch(f.name))
        pickles = [name for name in there if name.endswith(PICKLES)]
        if not pickles and Path(self.model).expanduser().is_dir():
            return (
                f"{self.folder} has no model.safetensors and no {INDEX}, only "
                f"{', '.join(there) or 'other files'}; fetch the missing one, or save the model "
                "again with save_pretrained"
            )
        problem = f"{self.folder} holds its weights only as pickle ({', '.join(pickles)})"
        if not pickles:  # a hub id, of which no pickle is ever downloaded
            problem = (
                f"{self.model} has no model.safetensors in the cache (if its download broke off, "
                "load it again) or on the hub, at most a pickle"
            )
        return (
            f"{problem}, which can run code when opened and is never loaded; convert it once, "
            "where you trust it: AutoModel*.from_pretrained("
            f"{'folder' if pickles else repr(self.model)}"
            ").save_pretrained(folder, safe_serialization=True)"
        )

    @property
    def weight_files(self) -> set[Path]:
        """The files that hold the weights."""
        return {tensor.file for tensor in self.tensors.values()}

    @property
    def _sources(self) -> list[Path]:
        """Every file that determines a score."""
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


def refuse_pointer(file: Path) -> None:
    """Raise `CheckpointError` for a file that Git LFS left in place of the real one."""
    with file.open("rb") as stream:
        if stream.read(30).startswith(b"version https://git-lfs"):
            raise CheckpointError(
                f"{file} is a pointer of Git LFS in place of the file: run git lfs pull there"
            )


def _header(file: Path) -> dict[str, StoredTensor]:
    """A file's tensors."""
    # here, because a folder with an ONNX graph needs no safetensors and is a checkpoint too
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, StoredTensor] = {}
    try:
        refuse_pointer(file)
        with safe_open(str(file), framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                part = opened.get_slice(name)
                stored = StoredTensor(file, name, tuple(part.get_shape()), part.get_dtype())
                known = tensors.setdefault(_new_name(name), stored)
                if known is not stored:
                    raise CheckpointError(
                        f"{file} holds {known.name!r} and {name!r}, two names of one tensor"
                    )
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or missing ({error}): an interrupted download or copy; "
            "delete it and fetch it again"
        ) from error
    return tensors


def _new_name(name: str) -> str:
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda found: NEW_NAMES[found[0]], name)


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
    return Checkpoint(model, find_folder(model, DOWNLOADED, hub, is_complete=is_complete))


@dataclass(frozen=True, slots=True)
class HubCache:
    """The folder of the hub's cache, and whether HF_HUB_OFFLINE has switched downloads off."""

    folder: str
    offline: bool


def hub_cache() -> HubCache:
    """The cache that is used when no `cache_dir` is given."""
    from huggingface_hub import constants

    return HubCache(str(constants.HF_HUB_CACHE), offline=bool(constants.HF_HUB_OFFLINE))


def is_complete(folder: Path) -> bool:
    """Whether the folder has config, tokenizer and all weights."""
    try:
        files = Checkpoint(str(folder), folder).weight_files
    except CheckpointError:
        return False
    files |= {folder / name for name in ("config.json", "tokenizer.json")}
    return all(file.is_file() for file in files)


def is_cached(model: str, cache_dir: str | None = None) -> bool:
    """Whether config, tokenizer and all weights are on this machine; never asks the network."""
    hub = HubOptions(cache_dir=cache_dir, local_files_only=True)
    try:
        return is_complete(find_folder(model, DOWNLOADED, hub, is_complete=is_complete))
    except ModelNotFound:
        return False
