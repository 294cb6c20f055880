"""What a caller asks of a model that is loaded here, checked before anything is opened.

None, or the default, leaves a thing to the model and the device; `TextOptions`, `DecoderSpec` and
`DevicePlan` are what is then decided.
"""

from dataclasses import dataclass
from typing import get_args

from bge_rerank_integrations.base.contract import check_text
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.local.decoder_spec import LayerRequest
from bge_rerank_integrations.option_checks import whole_number
from bge_rerank_integrations.types import Precision, SpecialTokens, Truncation


@dataclass(frozen=True, slots=True)
class TextRequest:
    """How the caller wants texts to become ids; None leaves it to the model."""

    max_length: int | None = None
    query_max_length: int | None = None
    query_instruction: str | None = None
    passage_instruction: str | None = None
    special_tokens: SpecialTokens = "literal"
    prompt: str | None = None
    truncation: Truncation = "only_second"
    label: int | str | None = None

    def __post_init__(self) -> None:
        for name in ("max_length", "query_max_length"):
            if (given := getattr(self, name)) is not None:
                number = whole_number(given)
                if number is None:
                    raise InvalidInputError(
                        f"{name} is {given!r}; it must be a whole number or None"
                    )
                object.__setattr__(self, name, number)
        for name in ("query_instruction", "passage_instruction", "prompt"):
            text = getattr(self, name)
            if text is not None:
                object.__setattr__(self, name, check_text(text, name))
        if self.special_tokens not in get_args(SpecialTokens):
            raise InvalidInputError(
                f"special_tokens is {self.special_tokens!r}; "
                f"it must be one of {', '.join(get_args(SpecialTokens))}"
            )
        if not isinstance(self.label, int | str | None) or isinstance(self.label, bool):
            raise InvalidInputError(
                f"label is {self.label!r}; it must be a label's number or its name"
            )
        if self.truncation not in get_args(Truncation):
            raise InvalidInputError(
                f"truncation is {self.truncation!r}; "
                f"it must be one of {', '.join(get_args(Truncation))}"
            )


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What the caller asks of a batch; None leaves it to the device plan."""

    max_tokens: int | None = None
    max_sequences: int | None = None

    def __post_init__(self) -> None:
        for name, option in (("max_tokens", "max_batch_tokens"), ("max_sequences", "batch_size")):
            if (given := getattr(self, name)) is not None:
                number = whole_number(given)
                if number is None or number < 1:
                    raise InvalidInputError(
                        f"{option} is {given!r}; it must be a whole number from 1, or None"
                    )
                object.__setattr__(self, name, number)


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Everything a caller asks of a local scorer but the model."""

    text: TextRequest
    layers: LayerRequest
    limits: BatchLimits
    device: str | tuple[str, ...] | None
    precision: Precision
    show_progress: bool
    file_name: str | None = None


def refuse_llm_options(model: str, request: LoadRequest) -> None:
    """Raise `InvalidInputError` if an option was given that only the LLM rerankers have."""
    if request.layers != LayerRequest() or request.text.prompt is not None:
        raise InvalidInputError(
            "cutoff_layers, compress_ratio, compress_layers, head_indexing and prompt are options "
            f"of the LLM rerankers; {model} is none"
        )


def refuse_truncation(text: TextRequest) -> None:
    """Raise `InvalidInputError` if a way to cut was chosen that only cross-encoders have."""
    if text.truncation != "only_second":
        raise InvalidInputError(
            f"truncation is {text.truncation!r}, which is for cross-encoders; this model is an "
            "embedder or an LLM reranker: leave it out"
        )
