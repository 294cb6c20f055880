"""tokenizer_config.json and its relatives, read as transformers reads them beside tokenizer.json.

transformers 4.57 takes tokenizer.json and lets the tokenizer's class change a few parts of it by
the keys of tokenizer_config.json; transformers 5 builds most classes anew from the vocabulary and
those keys. A key is obeyed where both give the same ids. Where they differ the folder is refused,
and so is a key that this release does not know. One thing stays as tokenizer.json has it whatever
transformers 5 makes of it, because FlagEmbedding's scores were made with transformers 4: how XLM-R
and Llama treat several spaces, and spaces at either end of a text.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from bge_rerank_integrations.errors import CheckpointError

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
REMEDY = (
    "save the tokenizer again with the transformers that trained the model; or, if tokenizer.json "
    "is right, set tokenizer_class to 'PreTrainedTokenizerFast' in tokenizer_config.json, and "
    "model_input_names to what the model reads"
)

# Names of classes, without the endings "Tokenizer" and "Fast".
BERT = {
    "Bert", "ConvBert", "DistilBert", "Electra", "LayoutLM", "Lxmert", "MPNet", "MobileBert",
    "SqueezeBert",
}  # fmt: skip
BYTE_LEVEL = {"Bart", "Deberta", "GPT2", "LED", "Longformer", "Mvp", "Roberta"}
PIECES = {"Albert", "BigBird", "Camembert", "DebertaV2", "XLMRoberta"}
# Both generations take tokenizer.json as it is; PreTrained is PreTrainedTokenizerFast.
PLAIN = {"PreTrained", "TokenizersBackend"}
BPE = BYTE_LEVEL | {"Gemma", "Llama", "Qwen2"}
KNOWN = BERT | PIECES | BPE | PLAIN
TYPED = BERT - {"DistilBert", "MPNet"} | {"Deberta", "DebertaV2"}
# transformers 4 gives them token types, and transformers 5 does not
ONCE_TYPED = {"Albert", "PreTrained"}
# The class of a folder that names none, by model_type.
CLASSES = {
    "albert": "Albert", "bert": "Bert", "big_bird": "BigBird", "camembert": "Camembert",
    "convbert": "ConvBert", "deberta": "Deberta", "deberta-v2": "DebertaV2",
    "distilbert": "DistilBert", "electra": "Electra", "gemma": "Gemma", "gemma2": "Gemma",
    "longformer": "Longformer", "megatron-bert": "Bert", "mobilebert": "MobileBert",
    "mpnet": "MPNet", "roberta": "Roberta", "xlm-roberta": "XLMRoberta",
}  # fmt: skip
# These add a token type's number to the input as if it were a word's.
TYPES_AS_WORDS = {
    "ctrl", "flaubert", "gpt2", "gpt-sw3", "gpt_bigcode", "gpt_neo", "gptj", "openai-gpt", "xlm",
}  # fmt: skip
# For these transformers 5 takes tokenizer.json as it is, whatever class the folder names.
PLAIN_MODELS = {"modernbert", "nystromformer", "xlm-roberta-xl"}
# What a normalizer has that makes letters lower or drops accents.
FOLDING = {"BertNormalizer", "Lowercase", "NFD", "NFKD", "StripAccents"}
# Keys that change no ids: of padding, decoding, chats, slow tokenizers, and code that never runs.
NO_EFFECT = {
    "_commit_hash", "_from_auto", "add_bos_token", "add_eos_token", "auto_map", "backend",
    "chat_control_tokens", "chat_template", "clean_up_tokenization_spaces", "do_basic_tokenize",
    "errors", "files_loaded", "is_local", "legacy", "local_files_only", "max_len", "max_length",
    "model_max_length", "name_or_path", "never_split", "pad_to_multiple_of", "pad_token_type_id",
    "padding", "padding_side", "processor_class", "remove_space", "response_schema",
    "response_template", "sp_model_kwargs", "spaces_between_special_tokens",
    "special_tokens_map_file", "stride", "tokenizer_class", "trim_offsets", "truncation",
    "truncation_strategy", "use_default_system_prompt", "use_fast",
    "verbose", "vocab_file", "vocab_type", "merges_file",
}  # fmt: skip
OBEYED = {
    "add_prefix_space", "added_tokens_decoder", "additional_special_tokens", "do_lower_case",
    "extra_special_tokens", "keep_accents", "model_input_names", "model_specific_special_tokens",
    "split_by_punct", "split_special_tokens", "strip_accents", "tokenize_chinese_chars",
    "tokenizer_file", "truncation_side", "unk_id",
}  # fmt: skip


class TokenizerConfig:
    """What a folder says of its tokenizer besides tokenizer.json, obeyed in `tokenizer`.

    `unknown` is the id of the unknown token. Raises `CheckpointError`, which names the file, the
    key and both values, for what cannot be obeyed.
    """

    def __init__(
        self, folder: Path, model: Mapping[str, Any], tokenizer: Tokenizer, unknown: int | None
    ) -> None:
        self._folder, self._tokenizer = folder, tokenizer
        self._keys = _read(folder / CONFIG)
        # transformers looks at the older files only where the newer one lists no tokens
        listed = "added_tokens_decoder" in self._keys
        self._names = {**self._keys, **({} if listed else _read(folder / SPECIAL))}
        named = self._keys.get("tokenizer_class") or model.get("tokenizer_class")
        kind = model.get("model_type")
        self._kind = CLASSES.get(str(kind), "PreTrained")
        self._class = f"{self._kind}Tokenizer, by model_type {kind!r}"
        if named:
            self._class = str(named)
            self._kind = self._class.removesuffix("Fast").removesuffix("Tokenizer")
        self._plain = model.get("model_type") in PLAIN_MODELS or self._kind in PLAIN
        if kind == "qwen2" and self._kind != "Qwen2":
            self._refuse("tokenizer_class", named, "transformers 5 reads it as a Qwen2Tokenizer")
        if self._kind not in KNOWN:
            self._refuse("tokenizer_class", named, f"this release knows {', '.join(sorted(KNOWN))}")
        self.typed = self._read_typed()
        """Whether the model is given token types; None where the two generations differ."""
        if kind in TYPES_AS_WORDS and self.typed is not False:
            self._refuse(
                "model_input_names", self._keys.get("model_input_names"),
                f"a model of type {kind!r} would read the token_type_ids as words",
                remedy="list the other inputs in it",
            )  # fmt: skip
        self._check_keys()
        self._check_tokens(_read(folder / ADDED) if not listed else {})
        self._check_model(unknown)
        if self._kind in BERT:
            self._obey_bert()
        self._obey_prefix_space()
        self._check_folding()
        tokenizer.encode_special_tokens = self._flag("split_special_tokens", default=False)

    def check_template(self, template: Any, *, pair: bool, types: bool) -> None:
        """Raise `CheckpointError` where a generation puts other control ids around texts.

        `template` has the ids that tokenizer.json puts `before`, `between` and `after`, and how
        many ids between the texts have token type 0 (`second`, None where all types are 0). `types`
        says whether the model has token types at all.
        """
        expected = None if self._plain else self._expected()
        found = (template.before, template.between if pair else (), template.after)
        if expected is not None:
            wanted = (expected[0], expected[1] if pair else (), expected[2])
            if found != wanted:
                self._refuse(
                    "tokenizer_class", self._class,
                    f"it puts the ids {wanted} around texts, and the post_processor of "
                    f"tokenizer.json puts {found}",
                )  # fmt: skip
        if not (pair and types) or self.typed is False:
            return
        if self.typed is None and template.second is not None:
            self._refuse(
                "model_input_names", None,
                "transformers 4 gives this tokenizer's passages token type 1, and transformers 5 "
                "gives them 0: list token_type_ids in it if the model was trained with them, "
                "otherwise list the other inputs",
                remedy="",
            )  # fmt: skip
        segments = 1 if self._kind in TYPED | ONCE_TYPED else None
        if self.typed and expected is not None and template.second != segments:
            self._refuse(
                "tokenizer_class", self._class,
                "its token types differ from those of tokenizer.json's post_processor",
            )  # fmt: skip

    def _refuse(self, key: str, value: Any, why: str, *, remedy: str = REMEDY) -> NoReturn:
        end = f"; {remedy}" if remedy else ""
        raise CheckpointError(f"{self._folder / CONFIG} has {key}={value!r}; {why}{end}")

    def _flag(self, key: str, *, default: bool) -> bool:
        value = self._keys.get(key, default)
        if not isinstance(value, bool):
            self._refuse(key, value, "it must be true or false")
        return value

    def _read_typed(self) -> bool | None:
        names = self._keys.get("model_input_names")
        if names is not None:
            if not isinstance(names, list) or "input_ids" not in names[:1]:
                self._refuse("model_input_names", names, "it must be a list and begin by input_ids")
            return "token_type_ids" in names
        if self._kind in ONCE_TYPED:
            return None
        if self._kind in TYPED:
            return None if self._plain else True
        return False

    def _check_keys(self) -> None:
        for key, value in self._keys.items():
            custom_token = key.endswith("_token") and isinstance(value, str | dict | None)
            if key not in NO_EFFECT | OBEYED and value is not None and not custom_token:
                self._refuse(
                    key, value, "this release does not know whether it changes the tokens",
                    remedy="remove the key if transformers does not read it",
                )  # fmt: skip
        if "tokenizer_file" in self._keys:
            named = self._keys["tokenizer_file"]
            self._refuse(
                "tokenizer_file", named, "a folder's tokenizer is its tokenizer.json",
                remedy="remove the key",
            )  # fmt: skip
        stored = self._tokenizer.truncation or {}
        side = self._keys.get("truncation_side") or stored.get("direction", "right")
        if str(side).lower() != "right":
            self._refuse("truncation_side", side, "texts are cut at their end", remedy="")

    def _check_tokens(self, added: Mapping[str, Any]) -> None:
        """Every token that is named must be one of tokenizer.json's: nothing is added to it."""
        tokens = self._tokenizer.get_added_tokens_decoder().values()
        has = {token.content for token in tokens}
        for key, value in [*self._names.items(), (ADDED, list(added))]:
            if value is None or not (key in _NAMING or key.endswith("_token")):
                continue
            if not isinstance(value, str | dict | list):
                if key in _NAMING:
                    self._refuse(key, value, "it must name a token")
                continue
            if missing := [name for name in _contents(value) if name not in has]:
                self._refuse(
                    key, missing[0], "tokenizer.json has no such added token, so its number and "
                    "what it matches are not certain",
                    remedy="save the tokenizer again: AutoTokenizer.from_pretrained(folder)"
                    ".save_pretrained(folder)",
                )  # fmt: skip

    def _token(self, role: str, default: str) -> str:
        return next(iter(_contents(self._names.get(role) or default)), default)

    def _check_model(self, unknown: int | None) -> None:
        model = self._tokenizer.model
        if getattr(model, "dropout", None):
            raise CheckpointError(
                f"{self._folder / 'tokenizer.json'} has dropout={model.dropout!r}: it splits the "
                "same text differently each time; set it to null"
            )
        kinds = {models.Unigram: PIECES, models.WordPiece: BERT}
        fitting = next((k for kind, k in kinds.items() if isinstance(model, kind)), BPE)
        if not self._plain and self._kind not in fitting:
            self._refuse(
                "tokenizer_class", self._class,
                f"tokenizer.json has a {type(model).__name__}, which is the model of other classes",
            )  # fmt: skip
        if self._kind == "XLMRoberta" and unknown != 3:
            self._refuse(
                "tokenizer_class", self._class,
                f"its unknown token has id 3, and in tokenizer.json it is {unknown}",
            )  # fmt: skip
        number = self._keys.get("unk_id")
        if self._kind == "DebertaV2" and number not in (None, unknown):
            self._refuse("unk_id", number, f"in tokenizer.json it is {unknown}")

    def _obey_bert(self) -> None:
        tokenizer, model, normalizer = (
            self._tokenizer, self._tokenizer.model, self._tokenizer.normalizer,
        )  # fmt: skip
        wanted: dict[str, Any] = {
            "lowercase": self._flag("do_lower_case", default=True),
            "handle_chinese_chars": self._flag("tokenize_chinese_chars", default=True),
            "strip_accents": None,
        }
        if self._keys.get("strip_accents") is not None:
            wanted["strip_accents"] = self._flag("strip_accents", default=True)
        standard = (
            isinstance(normalizer, normalizers.BertNormalizer)
            and normalizer.clean_text
            and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
            and isinstance(model, models.WordPiece)
            and model.continuing_subword_prefix == "##"
            and model.max_input_chars_per_word == 100
            and model.unk_token == self._token("unk_token", "[UNK]")
        )
        if not standard and not self._plain:
            self._refuse(
                "tokenizer_class", self._class,
                "tokenizer.json has another normalizer, pre_tokenizer or model than that class of "
                "transformers 5 makes",
            )  # fmt: skip
        if not isinstance(normalizer, normalizers.BertNormalizer):
            return  # transformers 4 leaves it too
        differing = [name for name, value in wanted.items() if getattr(normalizer, name) != value]
        for name in differing:
            if self._plain or (self._kind == "MPNet" and name == "handle_chinese_chars"):
                self._refuse(
                    _KEYS[name], wanted[name],
                    f"the normalizer of tokenizer.json has {name}={getattr(normalizer, name)}",
                )  # fmt: skip
        if differing:
            tokenizer.normalizer = normalizers.BertNormalizer(clean_text=True, **wanted)

    def _obey_prefix_space(self) -> None:
        given, splitter = self._keys.get("add_prefix_space"), self._tokenizer.pre_tokenizer
        if given is not None:
            self._flag("add_prefix_space", default=False)
        byte_level = isinstance(splitter, pre_tokenizers.ByteLevel)
        if byte_level and splitter.add_prefix_space != bool(given):
            if self._plain or self._kind not in BYTE_LEVEL:
                self._refuse(
                    "add_prefix_space", given,
                    f"tokenizer.json has {splitter.add_prefix_space}, and transformers 4 and 5 "
                    "read it differently: set it to that",
                    remedy="",
                )  # fmt: skip
            self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
                add_prefix_space=bool(given), use_regex=splitter.use_regex
            )
        if self._plain or (byte_level and self._kind in BYTE_LEVEL):
            return
        if self._kind in BYTE_LEVEL:
            self._refuse("tokenizer_class", self._class, "tokenizer.json is not byte-level")
        if self._kind not in BERT:
            self._check_spaces()

    def _check_spaces(self) -> None:
        """What comes before the first word, which transformers 5 takes from the class."""
        given = self._keys.get("add_prefix_space")
        parts = [*_parts(self._tokenizer.normalizer), *_parts(self._tokenizer.pre_tokenizer)]
        kinds = {part["type"] for part in parts}
        schemes = {part["prepend_scheme"] for part in parts if part["type"] == "Metaspace"}
        prepends = "Prepend" in kinds or bool(schemes & {"always", "first"})
        fits = {
            "Gemma": not prepends and "ByteLevel" not in kinds,
            "Llama": given is not False and (prepends or "ByteLevel" in kinds),
            "Qwen2": {"Split", "ByteLevel"} <= kinds,
        }.get(self._kind, given is not False and schemes == {"always"})
        if not fits:
            self._refuse(
                "add_prefix_space", given,
                f"tokenizer.json has {', '.join(sorted(kinds)) or 'nothing'} before its model, and "
                f"{self._class} of transformers 5 has other parts or settings there",
            )  # fmt: skip

    def _check_folding(self) -> None:
        """Lower case and accents as transformers 5 builds them, which transformers 4 never does."""
        if self._kind in BERT or self._plain:
            return
        has = {part["type"] for part in _parts(self._tokenizer.normalizer)} & FOLDING
        lower = accents = False
        if self._kind in ("Albert", "DebertaV2"):
            lower = self._flag("do_lower_case", default=self._kind == "Albert")
            accents = self._kind == "Albert" and not self._flag("keep_accents", default=False)
            split = self._kind == "DebertaV2" and self._flag("split_by_punct", default=False)
            if split:
                self._refuse("split_by_punct", split, "transformers 4 and 5 read it differently")
        if ("Lowercase" in has, "StripAccents" in has) != (lower, accents):
            self._refuse(
                "do_lower_case", self._keys.get("do_lower_case"),
                f"the normalizer of tokenizer.json has {', '.join(sorted(has)) or 'no folding'}, "
                f"and {self._class} of transformers 5 another",
            )  # fmt: skip

    def _expected(self) -> tuple[tuple[int | None, ...], ...] | None:
        """The ids that the class puts before, between and after; None where it puts none itself."""
        kind = self._kind
        names: tuple[tuple[str, ...], ...]
        if kind in ("Gemma", "Llama"):
            bos, eos = ("<bos>", "<eos>") if kind == "Gemma" else ("<s>", "</s>")
            first = [self._token("bos_token", bos)] * self._flag("add_bos_token", default=True)
            last = [self._token("eos_token", eos)] * self._flag("add_eos_token", default=False)
            names = tuple(first), (*last, *first), tuple(last)
        elif kind in ("GPT2", "Qwen2"):
            return None
        elif kind == "XLMRoberta":
            bos, eos = self._token("bos_token", "<s>"), self._token("eos_token", "</s>")
            names = (bos,), (eos, eos), (eos,)
        else:
            roberta = kind in BYTE_LEVEL - {"Deberta"} | {"Camembert", "MPNet"}
            cls, sep = ("<s>", "</s>") if roberta else ("[CLS]", "[SEP]")
            cls, sep = self._token("cls_token", cls), self._token("sep_token", sep)
            names = (cls,), (sep, sep) if roberta else (sep,), (sep,)
        number = self._tokenizer.token_to_id
        return tuple(tuple(number(name) for name in part) for part in names)


_NAMING = {
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens",
    "model_specific_special_tokens", ADDED,
}  # fmt: skip
_KEYS = {
    "lowercase": "do_lower_case",
    "handle_chinese_chars": "tokenize_chinese_chars",
    "strip_accents": "strip_accents",
}


def _read(file: Path) -> dict[str, Any]:
    """The JSON object of a file that may be missing."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no JSON object")
    return content


def _contents(value: Any) -> Iterator[str]:
    """The names in a token, in a list of tokens, or in a table of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and isinstance(value.get("content"), str):
        yield value["content"]
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _contents(part)


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, as tokenizer.json writes them."""
    if component is not None:
        waiting = [json.loads(component.__getstate__())]
        while waiting:
            part = waiting.pop()
            yield part
            waiting += part.get("normalizers", []) + part.get("pretokenizers", [])
