"""The files that sentence-transformers keeps in a model's folder, read once and strictly.

They determine the modules after the transformer, the prompt before a query, the maximum length and
the activation of the score. The rules are those of sentence-transformers 6.2
(`base/model.py`, `base/modules/transformer.py`, `cross_encoder/model.py` and
`sentence_transformer/model.py`). A key is obeyed, or known to change no score, or refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, NoReturn

from bge_rerank_integrations.base.models import (
    DEFAULT_MODEL,
    LLM_FAMILIES,
    Family,
    family_of,
    find_model,
    label_index,
)
from bge_rerank_integrations.errors import CheckpointError, UnsupportedModel
from bge_rerank_integrations.local.checkpoint import Allowed, Checkpoint, Keys, is_one_of
from bge_rerank_integrations.local.text import head as heads
from bge_rerank_integrations.local.text.head import NO_HEAD, Head, Step

ModelOutput = Literal["logit", "cls", "mean"]
Activation = Literal["Sigmoid", "Identity"]

SETTINGS = "config_sentence_transformers.json"
# Keys of config.json by which its releases 4 and 5, and some before, tell that they saved a folder.
SAVED_BY = ("sentence_transformers", "sbert_ce_default_activation_function")
TRANSFORMER = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

POOLINGS: dict[str, Literal["cls", "mean"]] = {
    "cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean",
}  # fmt: skip
MODULES = ("Dense", "Dropout", "LayerNorm", "Normalize", "Pooling", "Transformer")
PROMPTS = ("document", "passage", "corpus")

REMEDY = (
    "score the model with sentence-transformers, or change the key in a copy of the folder if its "
    "scores do not depend on it"
)

POOLING_MODES = (
    "cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens",
    "lasttoken",
)  # fmt: skip
MODULE_KEYS: dict[str, Allowed] = {
    "Pooling": {
        "embedding_dimension": None, "word_embedding_dimension": None, "pooling_mode": None,
        "include_prompt": (True,),
        **dict.fromkeys((f"pooling_mode_{mode}" for mode in POOLING_MODES), (True, False)),
    },
    "Normalize": {
        "module_input_name": ("sentence_embedding",),
        "module_output_name": ("sentence_embedding", None),
    },
    "Dense": {
        "in_features": None, "out_features": None, "bias": (True, False),
        "activation_function": None, "module_input_name": ("sentence_embedding", "scores"),
        "module_output_name": ("sentence_embedding", "scores", None),
        "use_residual": (True, False),
    },
    "LayerNorm": {"dimension": None},
    "Dropout": {"dropout": None},
}  # fmt: skip
SETTINGS_KEYS: Allowed = dict.fromkeys((
    "__version__", "activation_fn", "default_prompt_name", "keep_in_fp32_modules", "model_type",
    "prompts", "requirements", "similarity_fn_name", "truncate_dim",
))  # fmt: skip
# The arguments of transformers' classes, by their present and older names: only those that change
# no score in float32, and the length.
ARGUMENTS: dict[str, Allowed] = {
    key: dict.fromkeys(("trust_remote_code", *names))
    for keys, names in (
        ("model_args model_kwargs", (
            "add_pooling_layer", "attn_implementation", "dtype", "torch_dtype",
        )),
        ("tokenizer_args processor_kwargs", ("model_max_length",)),
        ("config_args config_kwargs", ()),
    )
    for key in keys.split()
}  # fmt: skip
TRANSFORMER_KEYS: Allowed = {
    "max_seq_length": None, "do_lower_case": (True, False), "unpad_inputs": None,
    "processing_kwargs": (None, {}), "tokenizer_name_or_path": (None,),
    "query_length": (None,), "document_length": (None,), "query_expansion": (None,),
    **dict.fromkeys(ARGUMENTS),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """A folder's settings of how its model scores.

    The forward gives `output`, from which `head` computes the rest. `max_length` is None where no
    file limits it. `passage_prompt` is None where the folder names a prompt that
    sentence-transformers does not use.
    """

    family: Family
    output: ModelOutput = "logit"
    head: Head = NO_HEAD
    activation: Activation = "Sigmoid"
    max_length: int | None = None
    query_prompt: str = ""
    passage_prompt: str | None = ""
    lowercase: bool = False
    is_saved_cross_encoder: bool = False

    def default_length(self, limit: int, usual: int) -> int:
        """The default length of a text or pair, at most `limit`.

        For a cross-encoder that sentence-transformers did not save, it is `usual`, or less if its
        tokenizer says so.
        """
        usual = usual if self.output == "logit" and not self.is_saved_cross_encoder else limit
        return min(limit, usual, self.max_length or limit)


def read_settings(checkpoint: Checkpoint, label: int | str | None = None) -> FolderSettings:
    """The settings of a reranker's or an embedder's folder.

    Raises `UnsupportedModel` for any other model and for a setting that is not supported,
    `CheckpointError` for damaged files, and `InvalidInputError` for a `label` that the model does
    not have.
    """
    return _Folder(checkpoint).settings(label)


class _Folder:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._model = checkpoint, checkpoint.model
        # first, because folders of other modules have no config.json
        self._modules = self._read_modules()
        self._config = checkpoint.config
        self._st = self._read(SETTINGS) if self._modules else Keys(SETTINGS, {})
        files = [self._read(name) for name in TRANSFORMER]
        self._transformer = next((keys for keys in files if keys), files[0])

    def settings(self, label: int | str | None) -> FolderSettings:
        st, kinds = self._st, ("SentenceTransformer", "CrossEncoder")
        if st.get("model_type", kinds[0]) not in kinds:
            st.unsupported("model_type", " or ".join(kinds))
        family = family_of(self._config, self._model, label=label)
        _check_keys(st, SETTINGS_KEYS)
        is_saved = st.get("model_type") == "CrossEncoder"
        if is_saved and family not in LLM_FAMILIES:
            return self._cross_encoder(family, label)
        if family is Family.BI_ENCODER:
            return self._embedder()
        if family in LLM_FAMILIES:
            if self._modules:
                self._refuse_module(-1, "no modules for LLM rerankers")
            return FolderSettings(family)
        self._refuse_template()
        # as in sentence-transformers, a classifier's own files count, and an embedder's do not
        return FolderSettings(
            family,
            head=self._label_head(label),
            activation=self._activation(None),
            max_length=self._tokenizer_length(),
            # BAAI's own models keep FlagEmbedding's rule, whatever their config.json gains
            is_saved_cross_encoder=find_model(self._model) is None
            and not self._config.keys().isdisjoint(SAVED_BY),
        )

    def _cross_encoder(self, family: Family, label: int | str | None) -> FolderSettings:
        output: ModelOutput = "logit"
        if family is Family.ENCODER:
            if {name for name, _ in self._modules[1:]} - {"Dropout"}:
                self._refuse_module(1, "Transformer alone for a classifier")
            head = self._label_head(label)
        else:
            output, steps, width, key = self._pooled()
            if (key, width) != ("scores", 1):
                self._refuse_module(-1, "a last module that gives one number, named scores")
            head = Head(tuple(steps))
        name, prompts = self._st.get("default_prompt_name"), self._prompts()
        return FolderSettings(
            family=Family.ENCODER,
            output=output,
            head=head,
            activation=self._activation(self._st.get("activation_fn")),
            max_length=self._max_length(classifier=family is Family.ENCODER),
            query_prompt="" if name is None else prompts[name],
            lowercase=bool(self._transformer.get("do_lower_case")),
            is_saved_cross_encoder=True,
        )

    def _embedder(self) -> FolderSettings:
        st = self._st
        if not self._modules:
            architecture = (self._config.get("architectures") or ["unknown"])[0]
            raise UnsupportedModel(
                f"{self._model} is a {architecture} with no relevance head and no modules.json "
                f"that says how its vectors are pooled; use a reranker such as {DEFAULT_MODEL}, or "
                "an embedder saved by sentence-transformers"
            )
        output, steps, _, key = self._pooled()
        if key != "sentence_embedding":
            self._refuse_module(-1, "a last module that gives sentence_embedding")
        if st.get("truncate_dim") is not None:
            steps.append(heads.first_dimensions(st.whole("truncate_dim")))
        unit = bool(steps) and steps[-1] is heads.unit_length
        similarity = st.get("similarity_fn_name")
        if similarity not in (None, "cosine") and not (similarity == "dot" and unit):
            st.unsupported(
                "similarity_fn_name",
                "cosine, and dot if Normalize is last; write cosine if cosines are good enough",
            )
        prompts = self._prompts("query", "document")
        query, passage = prompts.get("query", ""), prompts.get("document", "")
        uncertain = "document" not in prompts and any(prompts.get(name) for name in PROMPTS)
        spec = find_model(self._model)
        if spec is not None:  # the cards of BAAI's models name prompts that their folders lack
            query, passage, uncertain = spec.query_instruction or "", "", False
        return FolderSettings(
            family=Family.BI_ENCODER,
            output=output,
            # the length of a vector changes no cosine
            head=Head(tuple(steps)) if set(steps) - {heads.unit_length} else NO_HEAD,
            max_length=self._max_length(classifier=False),
            query_prompt=query,
            passage_prompt=None if uncertain else passage,
            lowercase=bool(self._transformer.get("do_lower_case")),
        )

    def _label_head(self, label: int | str | None) -> Head:
        if label is None:
            return NO_HEAD
        index = label_index(self._config, self._model, label)
        independent = self._config.get("problem_type") == "multi_label_classification"
        return Head((heads.one_label(index, independent=independent),), f",label={index}")

    def _prompts(self, *usual: str) -> dict[str, str]:
        """The prompts by name; the default must be one of them, or of the `usual` names."""
        prompts = self._st.get("prompts") or {}
        if not isinstance(prompts, dict) or not all(
            isinstance(text, str | None) for text in prompts.values()
        ):
            self._st.unsupported("prompts", "names with texts")
        if not is_one_of(self._st.get("default_prompt_name"), [None, *usual, *prompts]):
            self._st.unsupported("default_prompt_name", ", ".join(prompts) or "none")
        return {name: text or "" for name, text in prompts.items()}

    def _activation(self, saved: str | None) -> Activation:
        inside = self._config.inside("sentence_transformers")
        _check_keys(inside, {"activation_fn": None, "version": None})
        older = self._config.get("sbert_ce_default_activation_function")
        path = str(saved or inside.get("activation_fn") or older or "torch.nn.Sigmoid")
        known = activation_of(path)
        if known is None:
            raise UnsupportedModel(
                f"{self._model} asks for the activation {path}; supported: Sigmoid, Identity. If "
                "you want its logits, write torch.nn.Identity instead in a copy of "
                f"{SETTINGS} or config.json"
            )
        return known

    def _max_length(self, *, classifier: bool) -> int | None:
        """The length in tokens; every other key of the transformer's file is checked on the way."""
        found = self._transformer
        found.setdefault("transformer_task", "feature-extraction")  # sentence-transformers' default
        modalities = found.get("modality_config")
        if isinstance(modalities, dict) and "message" in modalities:
            self._refuse_template(certain=True)
        if modalities is not None and "module_output_name" not in found:
            found.unsupported("modality_config", "one together with a module_output_name")
        task, inner, outer = "feature-extraction", "last_hidden_state", "token_embeddings"
        if classifier:
            task, inner, outer = "sequence-classification", "logits", "scores"
        _check_keys(found, {
            "transformer_task": (task,),
            "modality_config": ({"text": {"method": "forward", "method_output_name": inner}},),
            "module_output_name": (outer,),
            **TRANSFORMER_KEYS,
        })  # fmt: skip
        for key, allowed in ARGUMENTS.items():
            _check_keys(found.inside(key), allowed)
        for key in ("tokenizer_args", "processor_kwargs"):
            if found.inside(key).get("model_max_length") is not None:
                return found.inside(key).whole("model_max_length")
        if found.get("max_seq_length") is not None:
            return found.whole("max_seq_length")
        return self._tokenizer_length()

    def _tokenizer_length(self) -> int | None:
        length = self._read("tokenizer_config.json").get("model_max_length")
        # transformers writes 1e30 for "no limit"
        return int(length) if isinstance(length, int | float) and 0 < length < 1e9 else None

    def _pooled(self) -> tuple[ModelOutput, list[Step], int | None, str]:
        """The pooling, the steps after it, and the width and name of their result."""
        names = [name for name, _ in self._modules]
        if names[:2] != ["Transformer", "Pooling"]:
            raise UnsupportedModel(
                f"{self._model} has the modules {', '.join(names)}; supported: "
                f"Transformer, Pooling, and then {', '.join(MODULES[:4])}"
            )
        pooling = self._pooling(self._modules[1][1])
        steps: list[Step] = []
        width: int | None = self._config.get("hidden_size", self._config.get("dim"))  # DistilBERT's
        result = "sentence_embedding"
        for place, (name, path) in enumerate(self._modules[2:], 2):
            config = self._read(f"{path}/config.json")
            if name in ("Pooling", "Transformer"):
                self._refuse_module(place, "one Transformer and one Pooling")
            _check_keys(config, MODULE_KEYS[name])
            if name == "Dropout":
                continue
            if config.get("module_input_name", "sentence_embedding") != result:
                config.unsupported("module_input_name", result)
            if name == "Normalize":
                steps.append(heads.unit_length)
            elif name == "LayerNorm":
                shapes = {"norm.weight": (width,), "norm.bias": (width,)}
                found = heads.read_tensors(self._checkpoint.folder / path, shapes)
                steps.append(heads.layer_norm(found["norm.weight"], found["norm.bias"]))
            else:
                step, width = self._dense(path, config, width)
                steps.append(step)
                result = config.get("module_output_name") or result
        return pooling, steps, width, result

    def _dense(self, path: str, config: Keys, width: int | None) -> tuple[Step, int]:
        if config.whole("in_features") != width:
            config.refuse("in_features", f"the module before it gives {width}")
        out = config.whole("out_features")
        activation = str(config.get("activation_function", "torch.nn.Tanh"))
        kind = activation.rpartition(".")[2]
        if not activation.startswith("torch.nn.") or kind not in heads.ACTIVATIONS:
            config.unsupported("activation_function", ", ".join(heads.ACTIVATIONS))
        residual = config.get("use_residual", False)
        shapes: dict[str, tuple[int | None, ...]] = {"linear.weight": (out, width)}
        if config.get("bias", True):
            shapes["linear.bias"] = (out,)
        if residual and out != width:
            shapes["residual.weight"] = (out, width)
        found = heads.read_tensors(self._checkpoint.folder / path, shapes)
        weight, bias = found["linear.weight"], found.get("linear.bias")
        projection = found.get("residual.weight")
        return heads.dense(weight, bias, kind, residual=residual, projection=projection), out

    def _pooling(self, path: str) -> Literal["cls", "mean"]:
        file = f"{path}/config.json"
        config = self._checkpoint.read_keys(file, remedy=REMEDY, optional=False)
        _check_keys(config, MODULE_KEYS["Pooling"])
        modes = config.get("pooling_mode")
        if modes is None:  # sentence-transformers before 6 wrote one flag for each
            modes = [mode for mode in POOLING_MODES if config.get(f"pooling_mode_{mode}")]
        listed = " and ".join(map(str, modes)) if isinstance(modes, list) else str(modes)
        if listed not in POOLINGS:
            raise UnsupportedModel(
                f"{self._model} pools by {listed or 'nothing'} ({file}); supported: cls, mean"
            )
        return POOLINGS[listed]

    def _read_modules(self) -> list[tuple[str, str]]:
        """The class and path of each module, in order; none where the folder has no list."""
        file = self._checkpoint.folder / "modules.json"
        if not file.is_file():
            return []
        listed = self._checkpoint.read_json("modules.json")
        if not isinstance(listed, list) or not listed or not all(
            isinstance(module, dict) and isinstance(module.get("type"), str) for module in listed
        ):  # fmt: skip
            raise CheckpointError(f"{file} is not a list of modules")
        found = []
        for place, content in enumerate(listed):
            module = self._module(content)
            kind, path = module["type"], module.get("path", "")
            name = kind.rpartition(".")[2]
            known = kind.startswith("sentence_transformers.")
            if known and name == "LogitScore":
                raise UnsupportedModel(
                    f"{self._model} is a language model that answers with one token, and "
                    "modules.json scores it by LogitScore through a chat template, which is not "
                    "supported; serve it with vLLM and give its base_url, or use a reranker such "
                    f"as {DEFAULT_MODEL}"
                )
            if not known or name not in MODULES:
                module.unsupported("type", ", ".join(MODULES))
            _check_keys(module, {
                "type": None, "idx": None, "name": None, "path": None, "kwargs": (None, []),
            })  # fmt: skip
            if not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in path:
                raise CheckpointError(f"{file} points outside its folder")
            if name == "Transformer" and (path or place):
                module.unsupported("path", "'' for a Transformer, which is the first module")
            found.append((name, path))
        return found

    def _module(self, content: Mapping[str, Any]) -> Keys:
        return Keys(f"modules.json of {self._model}", content, remedy=REMEDY)

    def _refuse_module(self, place: int, supported: str) -> NoReturn:
        self._module({}).unsupported("type", supported, value=self._modules[place][0])

    def _refuse_template(self, *, certain: bool = False) -> None:
        """Raise `UnsupportedModel` if the folder has a chat template, or always if `certain`."""
        folder = self._checkpoint.folder
        files = (folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja"))
        written = self._read("tokenizer_config.json").get("chat_template")
        if certain or written or any(file.is_file() for file in files):
            raise UnsupportedModel(
                f"{self._model} has a chat template, through which "
                "sentence-transformers renders each pair; this package joins a pair as the "
                "tokenizer does. If the model was trained so, remove chat_template.jinja (or "
                "chat_template in tokenizer_config.json) and message in modality_config in a copy "
                "of the folder; else use sentence-transformers"
            )

    def _read(self, name: str) -> Keys:
        return self._checkpoint.read_keys(name, remedy=REMEDY)


def _check_keys(keys: Keys, allowed: Allowed) -> None:
    for key in keys:
        if key not in allowed:
            keys.refuse(
                key, f"supported keys: {', '.join(sorted(allowed))}", error=UnsupportedModel
            )
        if (values := allowed[key]) is not None:
            keys.check(key, values)


def activation_of(path: str) -> Activation | None:
    """The activation of this class path, as in "torch.nn.modules.activation.Sigmoid", if known."""
    known: dict[str, Activation] = {"Sigmoid": "Sigmoid", "Identity": "Identity"}
    return known.get(path.rpartition(".")[2]) if path.startswith("torch.nn.") else None
