"""The errors of this package.

    RerankError
    ├── InvalidInputError (ValueError)     a query, passage or option that cannot be scored
    │   └── UnreadableInput                    a file, or standard input, that cannot be read
    ├── MissingExtra (ImportError)         an optional library is not installed
    ├── ModelNotFound (FileNotFoundError)  no such model on disk or on the hub
    ├── UnsupportedModel                   a model that is not a reranker we can score correctly
    ├── CheckpointError                    a model folder that is damaged, incomplete or unsafe
    ├── ForkedModelError                   a loaded model was carried into a forked process
    └── ScoringFailed                      the input was valid, but some scores are missing
        ├── ScoringTimeout (TimeoutError)      the time limit passed before all was scored
        ├── NonFiniteScoreError                a score is NaN or infinite, even in float32
        ├── OutOfMemoryError (MemoryError)     a model, or a single pair, does not fit into memory
        ├── ScorerContractError                a scorer gave the wrong number of scores
        └── RemoteError                        a server gave no scores, or wrong ones
            ├── RemoteUnavailable                  unreachable, overloaded or failing; may recover
            ├── RemoteRefused                      it refused the request, the key or the model
            └── RemoteAnswerError                  its answer cannot be right

With `on_error="keep"`, a `ScoringFailed` keeps the retrieval order: see `Reranker`.

Messages name the wrong value and the remedy. They never contain the text of a query or a passage,
because people who may read logs are not always allowed to read the documents.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bge_rerank_integrations.types import FloatArray


class RerankError(Exception):
    """The base class of all errors of this package.

    The middle of a very long message is left out: a damaged file may hold a value of any length.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= 4000 else f"{text[:2000]}…{text[-1999:]}"


class InvalidInputError(RerankError, ValueError):
    """A query, passage or option that cannot be scored; `index` is the pair's position, if any."""

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class UnreadableInput(InvalidInputError):
    """A file, or standard input, cannot be read; the message names the file and line."""


class MissingExtra(RerankError, ImportError):
    """An optional library is missing; the message has the `pip install` command for it.

    `instead` names an alternative that works without it.
    """

    def __init__(self, module: str, extra: str, instead: str = "") -> None:
        super().__init__(
            f"{module!r} is not installed; it comes with: "
            f'pip install "bge-rerank-integrations[{extra}]"{instead and f"; or use {instead}"}',
            name=module,
        )
        self.extra, self.instead = extra, instead

    def __reduce__(self) -> tuple[type["MissingExtra"], tuple[str, str, str]]:
        return type(self), (str(self.name), self.extra, self.instead)


@contextmanager
def missing_extra(extra: str) -> Iterator[None]:
    """Raise `MissingExtra`, which names `extra`, if an import in this block lacks a library."""
    try:
        yield
    except ModuleNotFoundError as error:
        if isinstance(error, RerankError) or str(error.name).startswith("bge_rerank_integrations"):
            raise  # no extra installs a missing part of this package
        raise MissingExtra(str(error.name), extra) from error


class ModelNotFound(RerankError, FileNotFoundError):
    """There is no such model; the message says where it was searched for."""


class UnsupportedModel(RerankError):
    """A model that this package cannot score correctly; the message names its architecture."""


class CheckpointError(RerankError):
    """A model folder that is damaged, incomplete, or holds only pickle weights."""


class ForkedModelError(RerankError):
    """A model loaded before `os.fork` was used in the child process, which lacks its threads."""


class ScoringFailed(RerankError):
    """The input was valid, but scoring did not finish.

    `partial` holds one float32 for each pair, NaN where a score is missing; it is None if there are
    no scores at all.
    """

    def __init__(self, message: str, *, partial: "FloatArray | None" = None) -> None:
        super().__init__(message)
        self.partial = partial


class ScoringTimeout(ScoringFailed, TimeoutError):
    """The time limit of a rerank passed before every pair was scored."""


class NonFiniteScoreError(ScoringFailed):
    """A score was NaN or infinite, even when computed again in float32."""


class OutOfMemoryError(ScoringFailed, MemoryError):
    """A model, or a single pair after its batch was split, does not fit into memory."""


class ScorerContractError(ScoringFailed):
    """A scorer broke the contract of `Scorer`, for example by returning too few scores."""


class RemoteError(ScoringFailed):
    """A server gave no scores, or wrong ones."""


class RemoteUnavailable(RemoteError):
    """The server cannot be reached, is overloaded or fails, even after retries."""


class RemoteRefused(RemoteError):
    """The server refused the request, the key or the model; a retry would not help."""


class RemoteAnswerError(RemoteError):
    """The answer cannot be right: it is malformed, or has a wrong count, index or number."""
