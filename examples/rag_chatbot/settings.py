"""The settings of the command line: the reranker, how much it keeps, and the language model."""

import os
from dataclasses import dataclass, field

from bge_rerank_integrations import Scorer

OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class RerankSettings:
    """`candidates` are reranked; at most `top_n` of a shown score from `min_score` are kept.

    A `scorer` takes the place of loading the `model`.
    """

    model: str = "offline"
    candidates: int = 20
    top_n: int = 3
    min_score: float = 0.1
    scorer: Scorer | None = None


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A model behind an OpenAI-compatible address; the key shows itself in no repr."""

    model: str
    url: str = OPENAI
    key: str = field(default="", repr=False)

    def failure(self, error: Exception) -> str:
        """What to tell who waits for an answer; an error's own words may quote the passages."""
        return (
            f"The language model {self.model} at {self.url} did not answer "
            f"({type(error).__name__}). Check that it runs, its name and its key."
        )


class SettingsError(ValueError):
    """Options that do not go together; the message says what to give."""


def read_language_model(url: str | None, model: str | None) -> LanguageModel | None:
    """The language model of the options, else of the environment, or None if there is none.

    `OPENAI_BASE_URL` and `OPENAI_MODEL` stand in for the options; the key is read from
    `OPENAI_API_KEY` alone. Raises `SettingsError` for an address without a model or with a
    password, and for OpenAI's own without a key.
    """
    url = url or os.environ.get("OPENAI_BASE_URL") or None
    model = model or os.environ.get("OPENAI_MODEL") or None
    key = os.environ.get("OPENAI_API_KEY", "")
    if model is None:
        if url is not None:
            raise SettingsError("there is an address of a language model but no name: --llm-model")
        return None  # a key alone does not mean that files may be sent anywhere
    if url is None and not key:
        raise SettingsError(
            "set OPENAI_API_KEY, or give the address of another server: "
            "--llm-url http://localhost:11434/v1 is a local Ollama"
        )
    if url is not None and "@" in url:
        raise SettingsError(
            "the address of the language model holds a name or password, which the page would "
            "show; put the key into OPENAI_API_KEY"
        )
    # a local server asks for no key, but the client does not start without one
    return LanguageModel(model, url or OPENAI, key or "none")
