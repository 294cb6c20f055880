"""tokenizer_config.json and related files, read with tokenizer.json as transformers reads them.

transformers 4.57 takes tokenizer.json and lets the tokenizer's class change a few parts of it by
the keys of tokenizer_config.json; transformers 5 builds most classes again from the vocabulary and
those keys. A key is obeyed where both give the same ids. Where they differ the folder is refused,
and so is a key that this release does not know. Two things stay as tokenizer.json has them whatever
transformers 5 makes of them, because they are those of the training: how XLM-R, Llama and
DeBERTa-v2 treat several spaces, and spaces at either end of a text; and DeBERTa-v2's map of
characters, which transformers 4 saved and transformers 5 replaces by NFC.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from bge_rerank_integrations.local.checkpoint import Checkpoint, Keys

logger = logging.getLogger("bge_rerank_integrations")

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
REMEDY = (
    "save the tokenizer again with the transformers that trained the model; or, if tokenizer.json "
    "is right, set tokenizer_class to 'PreTrainedTokenizerFast' in tokenizer_config.json, and "
    "model_input_names to what the model reads"
)

# Classes, without the endings "Tokenizer" and "Fast", by the model that their tokenizer.json has.
BERT = {
    "Bert", "ConvBert", "DistilBert", "Electra", "LayoutLM", "Lxmert", "MPNet", "MobileBert",
    "SqueezeBert",
}  # fmt: skip
PIECES = {"Albert", "BigBird", "Camembert", "DebertaV2", "XLMRoberta"}
BYTE_LEVEL = {"Bart", "Deberta", "GPT2", "LED", "Longformer", "Mvp", "Roberta"}
BYTES_AS_PIECES = {"Gemma", "Llama"}
BPE = BYTE_LEVEL | BYTES_AS_PIECES | {"Qwen2"}
# Both generations take tokenizer.json as it is; PreTrained is PreTrainedTokenizerFast.
PLAIN = {"PreTrained", "TokenizersBackend"}
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
# For these transformers 5 takes tokenizer.json as it is, whatever class the folder names.
PLAIN_MODELS = {"modernbert", "nystromformer", "xlm-roberta-xl"}
# These add a token type's number to the input as if it were a word's.
TYPES_AS_WORDS = {
    "ctrl", "flaubert", "gpt2", "gpt-sw3", "gpt_bigcode", "gpt_neo", "gptj", "openai-gpt", "xlm",
}  # fmt: skip
# Parts of a normalizer that transformers 5 keeps of tokenizer.json, or adds.
NORMALIZERS = {
    "Albert": {"NFKD", "Precompiled", "Replace", "Sequence", "Strip"},
    "BigBird": {"Replace", "Sequence", "Strip"},
    "DebertaV2": {"NFC", "Precompiled", "Replace", "Sequence", "Strip"},
    "Camembert": {"Precompiled", "Replace", "Sequence", "Strip"},
    "XLMRoberta": {"Precompiled", "Replace", "Sequence", "Strip"},
}
# Parts of a normalizer that make letters lower or drop accents.
FOLDING = {"BertNormalizer", "Lowercase", "NFD", "NFKD", "StripAccents"}
# Keys that change no ids: of padding, decoding, chats, slow tokenizers, code that never runs, and
# arguments of from_pretrained that were meant for the model.
NO_EFFECT = {
    "_commit_hash", "_from_auto", "add_bos_token", "add_eos_token", "attn_implementation",
    "auto_map", "backend", "cache_dir", "chat_control_tokens", "chat_template",
    "clean_up_tokenization_spaces", "device_map", "do_basic_tokenize", "dtype", "errors",
    "files_loaded", "full_tokenizer_file", "is_local", "legacy", "local_files_only",
    "low_cpu_mem_usage", "max_len", "max_length", "max_seq_length", "merges_file",
    "model_max_length", "name_or_path", "never_split", "pad_to_multiple_of", "pad_token_type_id",
    "padding", "padding_side", "processor_class", "remove_space", "response_schema",
    "response_template", "resume_download", "revision", "sp_model_kwargs",
    "spaces_between_special_tokens", "special_tokens_map_file", "stride", "subfolder",
    "tokenizer_class", "tokenizer_type", "torch_dtype", "trim_offsets", "truncation",
    "truncation_strategy", "trust_remote_code", "use_auth_token", "use_default_system_prompt",
    "use_fast", "verbose", "vocab_file", "vocab_type",
}  # fmt: skip
# Keys that change ids, with the value that both generations have without them.
ONLY_VALUE = {"clean_text": True, "wordpieces_prefix": "##"}
# Keys that list tokens; a key that ends in _token names one.
TOKEN_LISTS = {
    "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens",
    "model_specific_special_tokens", ADDED,
}  # fmt: skip
# BertNormalizer's parameters, by their keys.
FOLDING_KEYS = {
    "do_lower_case": "lowercase",
    "tokenize_chinese_chars": "handle_chinese_chars",
    "strip_accents": "strip_accents",
}
OBEYED = TOKEN_LISTS | FOLDING_KEYS.keys() | {
    "add_prefix_space", "keep_accents", "model_input_names", "split_by_punct",
    "split_special_tokens", "tokenizer_file", "truncation_side", "unk_id",
}  # fmt: skip


class TokenizerConfig:
    """A folder's settings of its tokenizer outside tokenizer.json, applied to `tokenizer`.

    `unknown` is the id of the unknown token. Raises `CheckpointError`, which names the file, the
    key and both values, for a setting that cannot be obeyed.
    """

    def __init__(
        self, folder: Path, model: Mapping[str, Any], tokenizer: Tokenizer, unknown: int | None
    ) -> None:
        files = Checkpoint(str(folder), folder)
        self._folder, self._tokenizer = folder, tokenizer
        self._keys = keys = files.read_keys(CONFIG, remedy=REMEDY)
        # transformers reads the older files only where the newer one lists no tokens
        older = "added_tokens_decoder" not in keys
        added = list(files.read_keys(ADDED)) if older else []
        self._older = files.read_keys(SPECIAL, remedy=REMEDY) if older else keys
        self._names = {**keys, **self._older, ADDED: added}
        kind = model.get("model_type")
        self._kind = CLASSES.get(str(kind), "PreTrained")
        self._class = f"{self._kind}Tokenizer, by model_type {kind!r}"
        named = keys if keys.get("tokenizer_class") is not None else model
        if named.get("tokenizer_class") is not None:
            self._class = str(named["tokenizer_class"])
            self._kind = self._class.removesuffix("Fast").removesuffix("Tokenizer")
        self._plain = kind in PLAIN_MODELS or self._kind in PLAIN
        if kind == "qwen2" and self._kind != "Qwen2":
            self._refuse_class("transformers 5 reads it as a Qwen2Tokenizer")
        if self._kind not in KNOWN:
            self._refuse_class(f"this release knows {', '.join(sorted(KNOWN))}")
        self.typed = self._read_typed()
        """Whether the model is given token types; None where the two generations differ."""
        if kind in TYPES_AS_WORDS and self.typed is not False:
            why = f"a model of type {kind!r} would read the token_type_ids as words"
            keys.refuse("model_input_names", why, remedy="list the other inputs in it")
        self._check_keys()
        self._check_tokens()
        if dropout := getattr(tokenizer.model, "dropout", None):
            why = "it splits the same text differently each time; set it to null"
            Keys("tokenizer.json", {"dropout": dropout}).refuse("dropout", why)
        if not self._plain:
            self._check_model(unknown)
        if self._kind in BERT:
            self._obey_folding()
        elif not self._plain:
            self._check_normalizer()
        self._obey_prefix_space()
        tokenizer.encode_special_tokens = keys.flag("split_special_tokens", default=False)

    def check_template(self, template: Any, *, pair: bool, types: bool) -> None:
        """Raise `CheckpointError` where a generation puts other control ids around texts.

        `types` is whether the model has token types.
        """
        expected = None if self._plain else self._expected()
        if expected is not None:
            wanted = (expected[0], expected[1] if pair else (), expected[2])
            found = (template.before, template.between, template.after)
            if found != wanted:
                self._refuse_class(
                    f"it puts the ids {wanted} around texts, and the post_processor of "
                    f"tokenizer.json puts {found}"
                )
        if not (pair and types) or self.typed is False:
            return
        if self.typed is None and template.second is not None:
            self._keys.refuse(
                "model_input_names",
                "transformers 4 gives this tokenizer's passages token type 1, and transformers 5 "
                "gives them 0: list token_type_ids in it if the model was trained with them, "
                "otherwise list the other inputs",
                remedy="",
            )
        segments = 1 if self._kind in TYPED - {"Deberta"} | ONCE_TYPED else None
        if self.typed and expected is not None and template.second != segments:
            self._refuse_class("its token types differ from those of the post_processor")

    def _refuse_class(self, why: str) -> NoReturn:
        self._keys.refuse("tokenizer_class", why, value=self._class)

    def _read_typed(self) -> bool | None:
        names = self._keys.get("model_input_names")
        if names is not None:
            if not isinstance(names, list) or "input_ids" not in names[:1]:
                self._keys.refuse("model_input_names", "it must be a list and begin by input_ids")
            return "token_type_ids" in names
        if self._kind in ONCE_TYPED or (self._kind in TYPED and self._plain):
            return None
        return self._kind in TYPED

    def _check_keys(self) -> None:
        keys = self._keys
        for key, value in keys.items():
            custom_token = key.endswith("_token") and isinstance(value, str | dict)
            known = key in NO_EFFECT | OBEYED or value == ONLY_VALUE.get(key)
            if not known and value is not None and not custom_token:
                keys.refuse(
                    key,
                    "this release does not know whether it changes the tokens",
                    remedy="remove the key if transformers does not read it",
                )
        if keys.get("tokenizer_file") is not None:
            why = "a folder's tokenizer is its tokenizer.json"
            keys.refuse("tokenizer_file", why, remedy="remove the key")
        stored = self._tokenizer.truncation or {}
        side = keys.get("truncation_side") or stored.get("direction", "right")
        if str(side).lower() != "right":
            keys.refuse("truncation_side", "texts are cut at their end", value=side, remedy="")

    def _check_tokens(self) -> None:
        """Every token that is named must be one of tokenizer.json's: nothing is added to it."""
        has = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        for key, value in self._names.items():
            one = key.endswith("_token") and key not in NO_EFFECT
            if value is None or not (one or key in TOKEN_LISTS):
                continue
            content = value.get("content") if one and isinstance(value, dict) else value
            file = self._older if key in self._older else self._keys
            if not isinstance(content, str if one else str | dict | list):
                file.refuse(key, "it must name a token", value=value)
            if missing := [name for name in _contents(value) if name not in has]:
                file.refuse(
                    key,
                    "tokenizer.json has no such added token, so its number and what it matches "
                    "are not certain",
                    value=missing[0],
                    remedy="save the tokenizer again: AutoTokenizer.from_pretrained(folder)"
                    ".save_pretrained(folder)",
                )

    def _token(self, role: str, default: str) -> str:
        return next(_contents(self._names.get(role) or default), default)

    def _check_model(self, unknown: int | None) -> None:
        model = self._tokenizer.model
        kinds = {models.Unigram: PIECES, models.WordPiece: BERT}
        if self._kind not in kinds.get(type(model), BPE):
            name = type(model).__name__
            self._refuse_class(f"tokenizer.json has a {name}, which is the model of other classes")
        if isinstance(model, models.BPE):
            pieces = self._kind in BYTES_AS_PIECES
            settings = {"byte_fallback": pieces, "fuse_unk": pieces, "ignore_merges": False}
            for name, value in (settings | {"end_of_word_suffix": None}).items():
                if (has := getattr(model, name)) != value and (has or value):
                    why = (
                        f"{self._class} of transformers 5 has {value}, and transformers 4 obeys it"
                    )
                    Keys("tokenizer.json", {name: has}).refuse(name, why)
        if self._kind == "XLMRoberta" and unknown != 3:
            self._refuse_class(f"its unknown token has id 3, and in tokenizer.json it is {unknown}")
        if self._kind == "DebertaV2" and self._keys.get("unk_id") not in (None, unknown):
            self._keys.refuse("unk_id", f"in tokenizer.json it is {unknown}")

    def _obey_folding(self) -> None:
        """The settings of BERT's normalizer, by the keys."""
        tokenizer, keys = self._tokenizer, self._keys
        model, normalizer = tokenizer.model, tokenizer.normalizer
        several: Any = normalizer if isinstance(normalizer, normalizers.Sequence) else ()
        steps = list(several)
        doubled = [type(s) for s in steps] == [normalizers.Lowercase, normalizers.BertNormalizer]
        if doubled and steps[1].lowercase and keys.flag("do_lower_case", default=True):
            normalizer = steps[1]  # sentence-transformers 6 saves a Lowercase that adds nothing
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
            self._refuse_class(
                "tokenizer.json has another normalizer, pre_tokenizer or model than that class of "
                "transformers 5 makes"
            )
        if not isinstance(normalizer, normalizers.BertNormalizer):
            return  # transformers 4 leaves it too
        wanted: dict[str, Any] = {}
        for key, name in FOLDING_KEYS.items():
            unset = key == "strip_accents" and keys.get(key) is None
            wanted[name] = value = None if unset else keys.flag(key, default=True)
            has = getattr(normalizer, name)
            certain = not (self._plain or (self._kind, name) == ("MPNet", "handle_chinese_chars"))
            if has != value and not certain:
                why = f"the normalizer of tokenizer.json has {name}={has}"
                keys.refuse(key, why, value=value)
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=normalizer.clean_text, **wanted
        )

    def _check_normalizer(self) -> None:
        """Lower case and accents as transformers 5 builds them, which transformers 4 never does."""
        kind, keys = self._kind, self._keys
        parts = {part["type"] for part in _parts(self._tokenizer.normalizer)}
        if kind == "XLMRoberta" and "Precompiled" not in parts:
            logger.warning(
                "tokenizer.json of %s has no character map: transformers 5.0 to 5.2 saved XLM-R's "
                "tokenizer like that, and full-width or composed characters get other ids than in "
                "training; copy tokenizer.json from the model that was fine-tuned",
                self._folder,
            )
        if lost := parts - NORMALIZERS.get(kind, parts) - {"Lowercase", "StripAccents"}:
            self._refuse_class(
                f"it leaves {_listed(lost)} out of the normalizer of tokenizer.json in "
                "transformers 5, and not in transformers 4"
            )
        albert, deberta, has = kind == "Albert", kind == "DebertaV2", parts & FOLDING
        if deberta and keys.flag("split_by_punct", default=False):
            keys.refuse("split_by_punct", "transformers 4 and 5 read it differently")
        lower = (albert or deberta) and keys.flag("do_lower_case", default=albert)
        accents = albert and not keys.flag("keep_accents", default=False)
        if ("Lowercase" in has, "StripAccents" in has) != (lower, accents):
            keys.refuse(
                "do_lower_case",
                f"the normalizer of tokenizer.json has {_listed(has)} to change letters, and that "
                f"of {self._class} in transformers 5 differs",
            )

    def _obey_prefix_space(self) -> None:
        given, splitter = self._keys.get("add_prefix_space"), self._tokenizer.pre_tokenizer
        if given is not None:
            self._keys.flag("add_prefix_space", default=False)
        byte_level = isinstance(splitter, pre_tokenizers.ByteLevel)
        obeyed = self._kind in BYTE_LEVEL and not self._plain
        if byte_level and splitter.add_prefix_space != bool(given):
            if not obeyed:
                self._keys.refuse(
                    "add_prefix_space",
                    f"tokenizer.json has {splitter.add_prefix_space}, and transformers 4 and 5 "
                    "read it differently: set it to that",
                    remedy="",
                )
            self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
                add_prefix_space=bool(given), use_regex=splitter.use_regex
            )
        if obeyed and not byte_level:
            self._refuse_class("tokenizer.json is not byte-level")
        if not (obeyed or self._plain or self._kind in BERT):
            self._check_spaces()

    def _check_spaces(self) -> None:
        """The part before the first word, which transformers 5 takes from the class."""
        given = self._keys.get("add_prefix_space")
        parts = [*_parts(self._tokenizer.normalizer), *_parts(self._tokenizer.pre_tokenizer)]
        kinds = {part["type"] for part in parts}
        schemes = {part["prepend_scheme"] for part in parts if part["type"] == "Metaspace"}
        prepends = {"Prepend", "Replace"} <= kinds or bool(schemes & {"always", "first"})
        words = self._kind in ("Gemma", "Llama")
        marked = all(_marks_spaces(part) for part in parts if words or part["type"] == "Metaspace")
        fits = {
            "Gemma": not prepends and "Replace" in kinds and not kinds & {"ByteLevel", "Prepend"},
            "Llama": given is not False and (prepends or "ByteLevel" in kinds),
            "Qwen2": {"Split", "ByteLevel"} <= kinds,
            # for all others null is false
        }.get(self._kind, self._keys.get("add_prefix_space", True) and schemes == {"always"})
        if not (fits and marked):
            self._keys.refuse(
                "add_prefix_space",
                f"tokenizer.json has {_listed(kinds)} before its model, and {self._class} of "
                "transformers 5 has other parts or settings there",
            )

    def _expected(self) -> tuple[tuple[int | None, ...], ...] | None:
        """The ids that the class puts before, between and after; None where it puts none itself."""
        kind, flag = self._kind, self._keys.flag
        if kind in ("GPT2", "Qwen2"):
            return None
        if kind in ("Gemma", "Llama"):
            bos, eos = ("<bos>", "<eos>") if kind == "Gemma" else ("<s>", "</s>")
            first = (self._token("bos_token", bos),) * flag("add_bos_token", default=True)
            last = (self._token("eos_token", eos),) * flag("add_eos_token", default=False)
            names = first, (*last, *first), last
        else:
            roles = ("bos_token", "eos_token") if kind == "XLMRoberta" else (
                "cls_token", "sep_token",
            )  # fmt: skip
            double = kind in BYTE_LEVEL | {"Camembert", "MPNet", "XLMRoberta"}
            usual = ("<s>", "</s>") if double and kind != "Deberta" else ("[CLS]", "[SEP]")
            cls, sep = map(self._token, roles, usual)
            names = (cls,), (sep,) * (2 if double else 1), (sep,)
        number = self._tokenizer.token_to_id
        return tuple(tuple(number(name) for name in part) for part in names)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _contents(value: Any) -> Iterator[str]:
    """The names in a token, in a list of tokens, or in a table of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and isinstance(value.get("content"), str):
        yield value["content"]
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _contents(part)


def _marks_spaces(part: Mapping[str, Any]) -> bool:
    """Whether a part that writes spaces writes "▁", as the classes of transformers 5 do."""
    if part["type"] == "Replace":
        return (part["pattern"], part["content"]) == ({"String": " "}, "▁")
    mark: object = part.get("prepend", part.get("replacement", "▁"))
    return mark == "▁"


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, as tokenizer.json writes them."""
    if component is not None:
        waiting = [json.loads(component.__getstate__())]
        while waiting:
            part = waiting.pop()
            yield part
            waiting += part.get("normalizers", []) + part.get("pretokenizers", [])
