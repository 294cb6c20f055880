"""Every error this package raises on its own account.

    RerankError
    ├── InvalidInputError (ValueError)     a query, passage or option that cannot be scored
    │   └── UnreadableInput                    a file, or standard input, that cannot be read
    ├── MissingExtra (ImportError)         an optional library is not installed
    ├── ModelNotFound (FileNotFoundError)  no such model on disk or on the hub
    ├── UnsupportedModel                   a model that is not a reranker we can score correctly
    ├── CheckpointError                    a model folder that is damaged, incomplete or unsafe
    ├── ForkedModelError                   a loaded model was carried into a forked process
    └── ScoringFailed                      the question was right, the answer did not come
        ├── ScoringTimeout (TimeoutError)      the time limit passed before all was scored
        ├── NonFiniteScoreError                NaN or infinity instead of a score, also in float32
        ├── OutOfMemoryError (MemoryError)     a model, or one single pair, does not fit into memory
        ├── ScorerContractError                a scorer gave the wrong number of scores
        └── RemoteError                        a server gave no scores, or none that can be right
            ├── RemoteUnavailable                  not reached, overloaded or failing: may pass
            ├── RemoteRefused                      it refused the request, the key or the model
            └── RemoteAnswerError                  it answered with what cannot be right

Only what is a `ScoringFailed` may be answered by the retrieval order: see `Reranker`.

Messages name the value that was wrong and what to do. They never hold the text of a query or a
passage: log files are read by people who may not read the documents.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bge_rerank_integrations.types import FloatArray


class RerankError(Exception):
    """The root: catch it to catch everything this package raises on purpose."""


class InvalidInputError(RerankError, ValueError):
    """A query, passage or option that cannot be scored; `index` is the pair's position, if any."""

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class UnreadableInput(InvalidInputError):
    """A file or standard input cannot be read as asked; the message names the file and line."""


class MissingExtra(RerankError, ImportError):
    """An optional library is missing; the message holds the `pip install` line that brings it.

    `instead` names what can be used without it.
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
    """Raise `MissingExtra`, naming `extra`, for a library that an import in this block lacks."""
    try:
        yield
    except ModuleNotFoundError as error:
        if isinstance(error, RerankError) or str(error.name).startswith("bge_rerank_integrations"):
            raise  # no extra installs a missing part of this package
        raise MissingExtra(str(error.name), extra) from error


class ModelNotFound(RerankError, FileNotFoundError):
    """No such model: the message says what was looked for and where."""


class UnsupportedModel(RerankError):
    """Not a reranker this package scores correctly: the message names the architecture."""


class CheckpointError(RerankError):
    """A model folder that is damaged, incomplete, or holds only pickle weights."""


class ForkedModelError(RerankError):
    """A model loaded before `os.fork` was used after it, where its threads no longer exist."""


class ScoringFailed(RerankError):
    """The question was right and no full answer came.

    `partial` holds the scores that did come, one float32 for each pair with NaN where none is, or
    None where there are none at all.
    """

    def __init__(self, message: str, *, partial: "FloatArray | None" = None) -> None:
        super().__init__(message)
        self.partial = partial


class ScoringTimeout(ScoringFailed, TimeoutError):
    """The time limit of a rerank passed before every pair was scored."""


class NonFiniteScoreError(ScoringFailed):
    """A score was NaN or infinite, and still was when computed again in float32."""


class OutOfMemoryError(ScoringFailed, MemoryError):
    """A model does not fit into memory, or a single pair: batches had been split down to it."""


class ScorerContractError(ScoringFailed):
    """A scorer broke the contract of `Scorer`, for example by returning too few scores."""


class RemoteError(ScoringFailed):
    """A server gave no scores, or none that can be right."""


class RemoteUnavailable(RemoteError):
    """The server was not reached, is overloaded or failing, also after the retries."""


class RemoteRefused(RemoteError):
    """The server refused the request, the key or the model: trying again would not help."""


class RemoteAnswerError(RemoteError):
    """The answer cannot be right: a count, an index or a number is wrong, or it is no answer."""
