"""What an evaluation found, as data: every figure that a table or a page shows is here."""

from collections.abc import Mapping
from dataclasses import dataclass

from bge_rerank_integrations.evaluate.bootstrap import Difference, Estimate
from bge_rerank_integrations.evaluate.recommend import Depth, Threshold, TopN
from bge_rerank_integrations.types import Scale


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the first stage gave, and what no reranker can mend.

    `recall` is the mean share of a question's relevant passages that are among its candidates;
    `answerable` the share of questions that have at least one there; `best` each measure of the
    best possible order of them.
    """

    most: int
    mean: float
    recall: float
    answerable: float
    none_found: int
    best: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class DepthRow:
    """Reranking the first `depth` candidates; the others follow as they came.

    `quality` and `gain` (over the first stage) are of the main measure. `recall` is that of the
    first `depth` candidates. `seconds` is an estimate: the median over the questions of the
    measured time of all candidates, in proportion to their number.
    """

    depth: int
    quality: Estimate
    gain: Difference
    recall: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Measured seconds for all candidates of a question, and milliseconds for one candidate."""

    median: float
    p95: float
    ms_per_candidate: float


@dataclass(frozen=True, slots=True)
class Change:
    """A question whose value of the main measure changed.

    `rank_before` and `rank_after` are those of its first relevant candidate, None if there is
    none; `top_before` and `top_after` the texts that stand first.
    """

    id: str
    question: str
    before: float
    after: float
    rank_before: int | None
    rank_after: int | None
    top_before: str
    top_after: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many relevant and other candidates have a raw score between two neighbouring edges."""

    edges: tuple[float, ...]
    relevant: tuple[int, ...]
    others: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RerankerResult:
    """One reranker over all the candidates of every question.

    `differences` are the main measure after less before, of each question, in ascending order;
    `wins` and `losses` the questions that changed most, the largest change first.
    """

    name: str
    scorer: str
    scale: Scale
    measures: Mapping[str, Estimate]
    gains: Mapping[str, Difference]
    depths: tuple[DepthRow, ...]
    latency: Latency
    depth: Depth | None
    top_n: TopN | None
    threshold: Threshold | None
    wins: tuple[Change, ...]
    losses: tuple[Change, ...]
    differences: tuple[float, ...]
    histogram: Histogram


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much more of the main measure `second` has than `first`, both of them rerankers."""

    first: str
    second: str
    difference: Difference


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation: `main` is the first of the measures, which the verdict goes by.

    `questions` have a relevant passage and count; `left_out` have none, and no order of theirs is
    better than another. `resamples` and `seed` are those of the bootstrap. `verdict` says which
    reranker to take, if any, and how to set it; `verdicts` has one for each by its name.
    """

    title: str
    questions: int
    left_out: int
    main: str
    candidates: Candidates
    first_stage: Mapping[str, Estimate]
    rerankers: tuple[RerankerResult, ...]
    comparisons: tuple[Comparison, ...]
    resamples: int
    seed: int
    verdict: str
    verdicts: Mapping[str, str]
