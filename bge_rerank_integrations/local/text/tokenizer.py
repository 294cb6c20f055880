"""Turn text into token ids with the checkpoint's own tokenizer; no text can inject control ids.

The tokenizer is private and stateless: truncation and padding are switched off once, so any number
of threads may encode at once (transformers' `__call__` sets both on every call, which gives wrong
ids under threads). The methods of each model family cut and join the ids.
"""

import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from bge_rerank_integrations.base.deadline import check_time, watched
from bge_rerank_integrations.base.fork import Lock, cached_property
from bge_rerank_integrations.errors import (
    CheckpointError,
    InvalidInputError,
    RerankError,
    UnsupportedModel,
)
from bge_rerank_integrations.local.checkpoint import Checkpoint, Keys, refuse_pointer
from bge_rerank_integrations.local.text.control_tokens import (
    control_ids,
    unknown_id,
    without_control_pieces,
)
from bge_rerank_integrations.local.text.tokenizer_config import TokenizerConfig
from bge_rerank_integrations.types import SpecialTokens

T = TypeVar("T")
Ids = NDArray[np.int32]

# A text with more characters than this for each wanted token is cut before it is tokenized.
CHARACTERS_PER_TOKEN = 16
# A tenth of a second of tokenizing on a slow core.
CHARACTERS_AT_ONCE, TEXTS_AT_ONCE = 100_000, 2000
# Memory of one entry of `TokenCache` in addition to its text and ids.
ENTRY_BYTES = 150
# The vocabularies of slow tokenizers, which this package does not read.
SLOW = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "vocab.txt", "vocab.json")
# An ASCII character as JSON may spell it, in a key as well.
ESCAPED = re.compile(r"\\u00([2-7][0-9a-fA-F])")
# Both in one tokenizer.json: the library ends the process over merges without the prefix.
PREFIXED_MERGES = (r'"merges"\s*:\s*\[', r'"continuing_subword_prefix"\s*:\s*"[^"]')
NO_IDS = "cannot turn a text into tokens"
TOKENIZING = "texts were tokenized"
# Models that have two token types where their config.json does not say how many.
TYPED_MODELS = {"bert", "camembert", "electra", "roberta", "xlm-roberta"}


class TokenSequence(NamedTuple):
    """One input of a model: its ids, and where its parts end.

    `first_segment` leading ids have token type 0 (in an encoder), or are the query part that
    passages share (in an LLM); `tail` trailing ids are the LLM's prompt.
    """

    ids: Ids
    first_segment: int
    tail: int = 0


@dataclass(frozen=True, slots=True)
class Template:
    """The control ids around one text, or around and between two.

    Where the second text has token type 1, `second` is how many ids `between` have type 0; where
    all types are 0 it is None.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    second: int | None = None

    def __len__(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


class TokenCache:
    """The ids of recent texts, because many queries find the same passages.

    The least recently used texts are dropped when texts and ids take more than `max_bytes`.
    """

    def __init__(self, max_bytes: int = 64 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._ids: OrderedDict[str, Ids] = OrderedDict()
        self._lock = Lock()

    def get_or_encode(
        self, texts: Sequence[str], encode: Callable[[list[str]], list[Ids]]
    ) -> list[Ids]:
        """The ids of each text; `encode` computes the unknown ones, all at once."""
        with self._lock:
            known = {text: self._ids[text] for text in texts if text in self._ids}
            for text in known:
                self._ids.move_to_end(text)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        found = dict(zip(missing, encode(missing) if missing else (), strict=True))
        with self._lock:
            for text, ids in found.items():
                if text not in self._ids:
                    ids.flags.writeable = False
                    self._ids[text] = ids
                    self._bytes += _bytes_of(text, ids)
            while self._bytes > self._max_bytes:
                self._bytes -= _bytes_of(*self._ids.popitem(last=False))
        known |= found
        return [known[text] for text in texts]


def _bytes_of(text: str, ids: Ids) -> int:
    return sys.getsizeof(text) + sys.getsizeof(ids) + ENTRY_BYTES


class TextTokenizer:
    """A checkpoint's `tokenizer.json`, in which text and control tokens are kept apart.

    In `"literal"` mode no text can give a control id. `declared` are the control ids of the model's
    config, in addition to the tokenizer's own special tokens. With the model's `config` the files
    next to tokenizer.json are obeyed too, or refused: see `TokenizerConfig`.
    """

    def __init__(
        self,
        folder: Path,
        declared: Iterable[int] = (),
        *,
        config: Mapping[str, Any] | None = None,
        lowercase: bool = False,
    ) -> None:
        self._file = folder / "tokenizer.json"
        if not self._file.is_file():
            raise CheckpointError(_no_tokenizer(folder))
        with self._failures_named("is not a tokenizer that this release can read: {!r}"):
            refuse_pointer(self._file)
            self._content = self._file.read_text(encoding="utf-8")
            plain = ESCAPED.sub(lambda found: chr(int(found[1], 16)), self._content)
            if all(re.search(key, plain) for key in PREFIXED_MERGES):
                raise UnsupportedModel(
                    f"{self._file} has merges and a continuing_subword_prefix, over which the "
                    "tokenizers library may end the process: no BGE model has both"
                )
            self._parsing = Tokenizer.from_str(self._content)
        self._config: TokenizerConfig | None = None
        self._types, self._reads_first = 2, True
        if config is not None:
            self._reads_first = config.get("model_type") in TYPED_MODELS
            unknown = unknown_id(self._parsing, self._content)
            self._config = TokenizerConfig(folder, config, self._parsing, unknown)
            self._types = token_types(config)
        if lowercase:
            self._parsing.normalizer = _lowercased(self._parsing.normalizer)
        _uncut(self._parsing)
        self.control_ids = control_ids(self._parsing, self._content, declared)
        self.size = _size(self._parsing)
        self._cut_at_spaces = _splits_at_spaces(self._parsing.pre_tokenizer)
        self._caches = {"literal": TokenCache(), "parse": TokenCache()}

    @contextmanager
    def _failures_named(self, message: str) -> Iterator[None]:
        """Raise `CheckpointError` for whatever the tokenizers library raises."""
        try:
            yield
        except RerankError:
            raise
        except BaseException as error:
            # it raises Exception itself, and after a panic in Rust a BaseException
            if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
                raise
            raise CheckpointError(
                f"{self._file} {message.format(error)}; fetch the model again, or update tokenizers"
            ) from None  # a panic may quote the text

    @cached_property
    def _literal(self) -> Tokenizer:
        # a second vocabulary in memory, only once a text holds the name of a control token
        with self._failures_named("cannot be kept from turning text into control tokens: {!r}"):
            literal = Tokenizer.from_str(without_control_pieces(self._content, self.control_ids))
        literal.normalizer = self._parsing.normalizer
        literal.pre_tokenizer = self._parsing.pre_tokenizer
        _uncut(literal)
        return literal

    @cached_property
    def single_template(self) -> Template:
        """The control ids around one text."""
        return self._template(texts=1)

    @cached_property
    def pair_template(self) -> Template:
        """The control ids around and between two texts."""
        return self._template(texts=2)

    def _template(self, *, texts: int) -> Template:
        with self._failures_named("has a damaged post_processor: {!r}"):
            probe = self._parsing.encode("a", "a" if texts == 2 else None)
            alone = self._parsing.encode("a", add_special_tokens=False).ids
        ids, owners = probe.ids, probe.sequence_ids
        found = [owner for owner in owners if owner is not None]
        if found != sorted(found) or len(set(found)) != texts:
            raise CheckpointError(
                f"the post_processor of {self._file} does not put {texts} texts one after "
                "the other; save the tokenizer again from the original model"
            )
        starts = [owners.index(text) for text in range(texts)]
        ends = [len(owners) - owners[::-1].index(text) for text in range(texts)]
        if any(ids[start:end] != alone for start, end in zip(starts, ends, strict=True)):
            raise CheckpointError(
                f"the post_processor of {self._file} encodes a single text differently from its "
                "template; save the tokenizer again from the original model"
            )
        if starts[0] == 0 and self._reads_first:
            raise CheckpointError(
                f"{self._file} has no post_processor that puts a control token before a text, from "
                "which the score is read; save the tokenizer again from the original model"
            )
        typed = self._types > 0 and (self._config is None or self._config.typed is not False)
        types, second = probe.type_ids if typed else [], None
        if any(types):
            first = types.index(1) if 1 in types else 0
            second = first - ends[0]
            one_change = types == [0] * first + [1] * (len(types) - first)
            if not one_change or first not in range(ends[0], starts[-1] + 1):
                raise CheckpointError(
                    f"the post_processor of {self._file} gives token types {types}; supported: 0 "
                    "for the query and 1 for the passage"
                )
        before, between, after = ids[: starts[0]], ids[ends[0] : starts[-1]], ids[ends[-1] :]
        template = Template(tuple(before), tuple(between), tuple(after), second)
        if self._config is not None:
            self._config.check_template(template, pair=texts == 2, types=self._types > 0)
        if any(types) and self._types == 1:
            raise CheckpointError(
                f"{self._file} gives passages token type 1, and the config.json of this model has "
                "type_vocab_size 1: tokenizer and model do not belong together"
            )
        return template

    def encode(
        self,
        texts: Sequence[str],
        positions: Sequence[int],
        *,
        keep: int | None = None,
        special_tokens: SpecialTokens = "literal",
    ) -> list[Ids]:
        """The ids of each text, without a template.

        With `keep` only the first `keep` ids of a text are needed: a longer text gives more than
        that, but perhaps not all of its ids. `positions` has the caller's pair of each text, for
        error messages. Raises `InvalidInputError` in mode `"error"` for a text that holds a control
        token.
        """
        parts = _in_parts(texts)
        if special_tokens == "error":
            found = [ids for part in parts for ids in self._ids(self._parsing, part)]
            for position, ids in zip(positions, found, strict=True):
                if name := self._control_token(ids):
                    raise InvalidInputError(
                        f"the pair at position {position} holds the control token {name!r}; remove "
                        "it, or use special_tokens='literal' to score it as plain text",
                        index=position,
                    )
            return found
        cache = self._caches[special_tokens]
        parse = partial(self._ids, self._parsing)
        encode = parse if special_tokens == "parse" else self._encode_literal
        if keep is None or not self._cut_at_spaces:
            return [ids for part in parts for ids in cache.get_or_encode(part, encode)]
        found = []
        for part in parts:
            begun = [_beginning(text, keep) for text in part]
            ids_of_part = cache.get_or_encode(begun, encode)
            for text, beginning, ids in zip(part, begun, ids_of_part, strict=True):
                # fewer tokens than expected: the whole text is needed
                short = beginning is not text and len(ids) <= keep
                found.append(encode([text])[0] if short else ids)
        return found

    def offsets(
        self, texts: Sequence[str], *, special_tokens: SpecialTokens = "literal"
    ) -> list[NDArray[np.int64]]:
        """Start and end of each of the ids of `encode` in the characters of its text, [ids, 2]."""

        def offsets_of(part: list[str]) -> list[NDArray[np.int64]]:
            found = []
            encodings = self._parsing.encode_batch(part, add_special_tokens=False)
            for text, encoding in zip(part, encodings, strict=True):
                offsets = encoding.offsets
                ids = np.asarray(encoding.ids, dtype=np.int32)
                if special_tokens == "literal" and self._control_token(ids):
                    offsets = self._literal.encode(text, add_special_tokens=False).offsets
                found.append(np.asarray(offsets, dtype=np.int64).reshape(-1, 2))
            return found

        parts = _in_parts(texts)
        return [offsets for part in parts for offsets in self._tokenized(offsets_of, part)]

    def control_token_in(self, text: str) -> str | None:
        """The name of the first control token that the text holds when it is parsed, if any."""
        return self._control_token(self._ids(self._parsing, [text])[0])

    def _ids(self, tokenizer: Tokenizer, texts: list[str]) -> list[Ids]:
        def ids_of(part: list[str]) -> list[Ids]:
            encodings = tokenizer.encode_batch_fast(part, add_special_tokens=False)
            return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

        return self._tokenized(ids_of, texts)

    def _tokenized(self, encode: Callable[[list[str]], list[T]], texts: list[str]) -> list[T]:
        """The result of `encode`; if a text takes long, the time limit is checked meanwhile."""
        with self._failures_named(NO_IDS):
            if max(map(len, texts)) > CHARACTERS_AT_ONCE:
                return watched(partial(encode, texts), TOKENIZING)
            return encode(texts)

    def _encode_literal(self, texts: list[str]) -> list[Ids]:
        ids = self._ids(self._parsing, texts)
        suspect = [number for number, found in enumerate(ids) if self._control_token(found)]
        if suspect:
            again = self._ids(self._literal, [texts[number] for number in suspect])
            for number, found in zip(suspect, again, strict=True):
                if name := self._control_token(found):
                    raise CheckpointError(
                        f"{self._file} turns plain text into the control token {name!r} and cannot "
                        "be kept from it; use special_tokens='error' to refuse such texts"
                    )
                ids[number] = found
        return ids

    def _control_token(self, ids: Ids) -> str | None:
        """The name of the first control token among the ids, if there is one."""
        numbers = ids.tolist()
        if self.control_ids.isdisjoint(numbers):
            return None
        first = next(number for number in numbers if number in self.control_ids)
        return str(self._parsing.id_to_token(first))


def read_tokenizer(checkpoint: Checkpoint, *, lowercase: bool = False) -> TextTokenizer:
    """The checkpoint's tokenizer; `lowercase` puts texts into lower case.

    Raises `CheckpointError` if it belongs to another model.
    """
    config = checkpoint.config
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id")
    declared = [config[name] for name in names if isinstance(config.get(name), int)]
    tokenizer = TextTokenizer(checkpoint.folder, declared, config=config, lowercase=lowercase)
    vocabulary = config.whole("vocab_size")
    if tokenizer.size > vocabulary:
        raise CheckpointError(
            f"{checkpoint.folder / 'tokenizer.json'} has {tokenizer.size} tokens and the model "
            f"{vocabulary}: they belong to different models"
        )
    return tokenizer


def join_pair(query: Ids, passage: Ids, template: Template) -> TokenSequence:
    """Template, query, template, passage, template: one sequence of ids."""
    ids = np.concatenate([template.before, query, template.between, passage, template.after])
    segment = len(ids)
    if template.second is not None:
        segment = len(template.before) + len(query) + template.second
    return TokenSequence(ids.astype(np.int32), segment)


def join_single(text: Ids, template: Template) -> TokenSequence:
    """Template, text, template: one sequence of ids, all of the first segment."""
    ids = np.concatenate([template.before, text, template.after]).astype(np.int32)
    return TokenSequence(ids, len(ids))


def _uncut(tokenizer: Tokenizer) -> None:
    tokenizer.no_padding()
    tokenizer.no_truncation()


def _in_parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in lists of a tenth of a second's work; the time limit is checked before each.

    The tokenizers library cannot be interrupted, and holds its encodings of all texts at once.
    """
    start = size = 0
    for place, text in enumerate(texts):
        size += len(text)
        if place > start and (size > CHARACTERS_AT_ONCE or place - start == TEXTS_AT_ONCE):
            check_time(TOKENIZING)
            yield [*texts[start:place]]
            start, size = place, len(text)
    if start < len(texts):
        check_time(TOKENIZING)
        yield [*texts[start:]]


def _lowercased(normalizer: Any) -> Any:
    """`Lowercase` before a normalizer that has none, as sentence-transformers puts it."""
    several = isinstance(normalizer, normalizers.Sequence)
    steps = list(normalizer) if several else [] if normalizer is None else [normalizer]
    if any(isinstance(step, normalizers.Lowercase) for step in steps):
        return normalizer
    return normalizers.Sequence([normalizers.Lowercase(), *steps])


def _no_tokenizer(folder: Path) -> str:
    """The error for a folder without tokenizer.json, with a way to make one."""
    for slow in SLOW:
        if (folder / slow).is_file():
            needs = " sentencepiece protobuf" if slow.endswith(".model") else ""
            return (
                f"{folder} has no tokenizer.json, only {slow}, the vocabulary of a slow tokenizer; "
                f"make one where the model is trusted: pip install transformers{needs}, then "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
    return f"{folder} has no tokenizer.json; copy it from the model that this one was trained from"


def token_types(config: Mapping[str, Any]) -> int:
    """The rows of the model's table of token types; 0 where it has no such table."""
    if config.get("type_vocab_size") is None:
        return 2 if config.get("model_type") in TYPED_MODELS else 0
    return Keys("config.json", config).whole("type_vocab_size", minimum=0)


def _size(tokenizer: Tokenizer) -> int:
    """One more than the largest id there is."""
    if type(tokenizer.model).__name__ == "Unigram":
        # pieces are numbered by their places; the whole vocabulary as a dictionary takes 0.4 s
        pieces: int = tokenizer.get_vocab_size(with_added_tokens=False)
        return max(pieces, 1 + max(tokenizer.get_added_tokens_decoder(), default=-1))
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def _splits_at_spaces(pre_tokenizer: object) -> bool:
    """Whether each word is tokenized separately, so that a text may be cut before a space."""
    if isinstance(pre_tokenizer, pre_tokenizers.Sequence):
        return _splits_at_spaces(pre_tokenizer[0])
    if isinstance(pre_tokenizer, pre_tokenizers.Metaspace):
        return bool(pre_tokenizer.split)
    return isinstance(
        pre_tokenizer, pre_tokenizers.WhitespaceSplit | pre_tokenizers.BertPreTokenizer
    )


def _beginning(text: str, keep: int) -> str:
    """The text itself, or its beginning up to a space if it is very long."""
    longest = (keep + 1) * CHARACTERS_PER_TOKEN
    if len(text) <= 2 * longest:
        return text
    space = text.rfind(" ", 0, longest)
    return text[:space] if space > 0 else text
