"""The fields that decide a score, shared by every adapter, and the late loading behind them.

Needs pydantic, which both frameworks bring; knows neither of them. Construction loads nothing:
the first use does, or `warm_up()`. Pickles and dictionaries carry the fields alone, never weights
and never secrets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from bge_rerank_integrations import field_checks
from bge_rerank_integrations.base.models import DEFAULT_MODEL
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.load import load_scorer
from bge_rerank_integrations.options import ScorerOptions
from bge_rerank_integrations.types import (
    Backend,
    HeadIndexing,
    LongPassages,
    Precision,
    Scorer,
    SpecialTokens,
    Truncation,
)
from bge_rerank_integrations.wrapped import wrapped_scorer


class ScorerFields(BaseModel):
    """What decides a score: the options of `load_scorer`, as declared and checked fields."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        # pydantic's errors quote the arguments, the token among them
        hide_input_in_errors=True,
    )

    model: str = Field(
        default=DEFAULT_MODEL,
        description="A hub id, a local folder, 'offline' for the embedded model, or what a server "
        "is asked for.",
    )
    backend: Backend = Field(
        default="auto",
        description="'torch', or an ONNX graph on 'onnx' or 'openvino'; 'auto' chooses.",
    )
    device: str | tuple[str, ...] | None = Field(
        default=None,
        description="'cpu', 'cuda', 'cuda:1', 'xpu', 'mps', or several of them that share each "
        "call; None chooses.",
    )
    precision: Precision = Field(
        default="auto", description="Number format of the forward pass; scores are always float32."
    )
    use_fp16: bool | None = Field(
        default=None,
        description="FlagEmbedding's name: True is precision='fp16', False 'fp32'.",
    )
    max_length: int | None = Field(
        default=None, ge=1, description="Most tokens of a pair; None: 512 or the model's own limit."
    )
    query_max_length: int | None = Field(
        default=None, ge=1, description="Most tokens of a query; None: three quarters of a pair."
    )
    query_instruction: str | None = Field(default=None, description="Put before each query.")
    passage_instruction: str | None = Field(default=None, description="Put before each passage.")
    special_tokens: SpecialTokens = Field(
        default="literal",
        description="What '</s>' inside a text is: plain text, an error, or a control token.",
    )
    truncation: Truncation = Field(
        default="only_second",
        description="What a pair that is too long loses: the passage its end, as in FlagEmbedding, "
        "or 'longest_first', as in sentence-transformers.",
    )
    label: int | str | None = Field(
        default=None, description="Which label of a classifier of several means relevant."
    )
    prompt: str | None = Field(default=None, description="An LLM reranker's question.")
    cutoff_layers: tuple[int, ...] | None = Field(
        default=None, description="Layers that score, of the layerwise and lightweight models."
    )
    compress_ratio: int = Field(
        default=1, ge=1, description="Passage tokens averaged into one, lightweight model."
    )
    compress_layers: tuple[int, ...] = Field(
        default=(), description="Layers before which passages are compressed, lightweight model."
    )
    head_indexing: HeadIndexing = Field(
        default="request", description="Heads of the lightweight model by 'request' or 'layer'."
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Most pairs in a batch; None leaves it to the token budget."
    )
    max_batch_tokens: int | None = Field(
        default=None, ge=1, description="Token budget of a batch; None chooses by device."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit on the hub.")
    cache_dir: str | None = Field(default=None, description="Where downloads are kept.")
    local_files_only: bool = Field(default=False, description="Never ask the network.")
    token: SecretStr | None = Field(
        default=None, exclude=True, repr=False, description="Hub token; in no dump, repr or pickle."
    )
    show_progress: bool = Field(default=False, description="A progress bar over the batches.")
    base_url: str | None = Field(
        default=None, description="A server to score on, as in 'http://host:port'."
    )
    dialect: str = Field(
        default="auto", description="The server's protocol: docs/remote.md; 'auto' asks it."
    )
    api_key: SecretStr | None = Field(
        default=None,
        exclude=True,
        repr=False,
        description="The server's key, else the environment's; in no dump, repr or pickle.",
    )
    deployment: str | None = Field(
        default=None, description="The deployment of an Azure endpoint to ask."
    )
    connect_timeout: float = Field(
        default=5.0, gt=0, description="Seconds to wait for a connection to the server."
    )
    read_timeout: float = Field(
        default=30.0, gt=0, description="Longest silence of the server, in seconds."
    )
    request_timeout: float = Field(
        default=60.0, gt=0, description="Seconds for one request to the server and its retries."
    )
    max_retries: int = Field(
        default=3, ge=0, description="How often a request that the server failed is tried again."
    )
    max_concurrency: int = Field(
        default=8, ge=1, description="Most requests to the server at once."
    )
    long_passages: LongPassages = Field(
        default="cut",
        description="A passage longer than the model reads: 'cut' it, read it in overlapping "
        "'windows' of which the best counts, or raise an 'error'.",
    )
    score_cache: str | None = Field(
        default=None, description="A file that keeps scores, or ':memory:'; it holds no texts."
    )
    lazy_load: bool = Field(default=True, description="False loads the model at construction.")
    scorer: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        description="A ready scorer to use instead of loading `model`; cannot be serialized.",
    )

    # No lock: loading is thread-safe in itself, and two threads that come first at once get two
    # light scorers over one shared engine.
    _loaded: tuple[tuple[Any, ...], Scorer] | None = PrivateAttr(default=None)

    _errors = model_validator(mode="wrap")(field_checks.errors_that_tell)
    _base_url = field_validator("base_url")(field_checks.checked_base_url)
    _model = field_validator("model")(field_checks.checked_model)
    _scorer = field_validator("scorer")(field_checks.checked_scorer)

    @model_validator(mode="after")
    def _nothing_is_said_twice(self) -> Self:
        if self.use_fp16 is not None and self.precision != "auto":
            raise ValueError("give precision or use_fp16, not both: they say the same thing")
        if self.scorer is not None and (self.long_passages != "cut" or self.score_cache):
            raise ValueError(
                "long_passages and score_cache are for a model that is loaded here; give "
                "scorer=CachedScorer(WindowedScorer(...), ...) instead"
            )
        return self

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if not self.lazy_load:
            self.warm_up()

    def warm_up(self) -> Self:
        """Load the model now rather than at first use; returns the adapter itself."""
        self.loaded_scorer()
        return self

    def close(self) -> None:
        """Give the model up; its memory goes when its last user does. The next use loads again."""
        self._loaded = None

    def loaded_scorer(self) -> Scorer:
        """The scorer behind this adapter, loaded on the first call from however many threads."""
        if self.scorer is not None:
            scorer: Scorer = self.scorer
            return scorer
        # The process is part of the key: a model loaded before a fork cannot be used after it.
        options, loaded = self._scorer_options(), self._loaded
        wraps, secrets = (self.long_passages, self.score_cache), (self.token, self.api_key)
        key = (os.getpid(), self.model, options, wraps, secrets)
        if loaded is None or loaded[0] != key:
            scorer = wrapped_scorer(
                load_scorer(self.model, **self._with_secrets(options)),
                model=self.model,
                long_passages=self.long_passages,
                score_cache=self.score_cache,
            )
            loaded = self._loaded = (key, scorer)
        return loaded[1]

    def _scorer_options(self) -> ScorerOptions:
        precision = self.precision
        if self.use_fp16 is not None:
            precision = "fp16" if self.use_fp16 else "fp32"
        return ScorerOptions(
            backend=self.backend,
            device=self.device,
            precision=precision,
            max_length=self.max_length,
            query_max_length=self.query_max_length,
            query_instruction=self.query_instruction,
            passage_instruction=self.passage_instruction,
            special_tokens=self.special_tokens,
            prompt=self.prompt,
            truncation=self.truncation,
            label=self.label,
            cutoff_layers=self.cutoff_layers,
            compress_ratio=self.compress_ratio,
            compress_layers=self.compress_layers,
            head_indexing=self.head_indexing,
            batch_size=self.batch_size,
            max_batch_tokens=self.max_batch_tokens,
            revision=self.revision,
            cache_dir=self.cache_dir,
            local_files_only=self.local_files_only,
            show_progress=self.show_progress,
            base_url=self.base_url,
            dialect=self.dialect,
            deployment=self.deployment,
            connect_timeout=self.connect_timeout,
            read_timeout=self.read_timeout,
            request_timeout=self.request_timeout,
            max_retries=self.max_retries,
            max_concurrency=self.max_concurrency,
        )

    def _with_secrets(self, options: ScorerOptions) -> ScorerOptions:
        token, key = self.token, self.api_key
        return {
            **options,
            "token": token.get_secret_value() if token else None,
            "api_key": key.get_secret_value() if key else None,
        }

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        there = self.__dict__  # nothing yet where a traceback shows an object whose making failed
        scorer = there.get("scorer")
        yield "model", there.get("model") if scorer is None else scorer.name
        for name, field in type(self).model_fields.items():
            value = there.get(name, field.default)
            if name != "model" and field.repr and not field.exclude and value != field.default:
                yield name, value

    @model_serializer(mode="wrap")
    def _only_what_can_be_read_back(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        if self.scorer is not None:
            raise InvalidInputError(
                f"this adapter was given a scorer object ({self.scorer.name}), which cannot be "
                "written down; give model=... instead to serialize or pickle it"
            )
        written: dict[str, Any] = handler(self)
        return written

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuild, (type(self), self.model_dump())

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()  # the weights are shared by design

    def __eq__(self, other: object) -> bool:
        # The settings alone: pydantic would also compare what happens to be loaded, and secrets
        # and callback managers, which no round trip brings back.
        if type(self) is not type(other) or not isinstance(other, ScorerFields):
            return NotImplemented
        written = [name for name, field in type(self).model_fields.items() if not field.exclude]
        return self.scorer is other.scorer and all(
            getattr(self, name) == getattr(other, name) for name in written
        )


def _rebuild(cls: type[ScorerFields], fields: dict[str, Any]) -> ScorerFields:
    return cls(**fields)
