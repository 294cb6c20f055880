"""What each cut-off layer of an LLM reranker is worth: nDCG@10 on judged data, and its time.

The scores of every layer come out of one pass, unless a layer's head depends on the request. Time
is measured apart, of each depth by itself as it would be used, in turns so that a machine that
slows down does so for all of them.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, cast

import numpy as np

from bge_rerank_integrations.base.address import refuse_address
from bge_rerank_integrations.base.models import LLM_FAMILIES, OFFLINE_MODELS, Family, family_of
from bge_rerank_integrations.errors import InvalidInputError, MissingExtra
from bge_rerank_integrations.evaluate.judged import JudgedQuery
from bge_rerank_integrations.load import load_scorer
from bge_rerank_integrations.options import LocalOptions
from bge_rerank_integrations.types import FloatArray, Pair

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bge_rerank_integrations.local.scorer import LocalScorer


@dataclass(frozen=True, slots=True)
class Sweep:
    """What to compare: the layers of one model, all with the same options.

    `timed_pairs` pairs are scored in each of `rounds` rounds at each layer, and the model is loaded
    anew for it, so that only one is in memory.
    """

    model: str
    cutoffs: tuple[int, ...]
    options: LocalOptions = field(default_factory=LocalOptions)
    timed_pairs: int = 64
    rounds: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "cutoffs", tuple(sorted(set(self.cutoffs))))
        refuse_address(self.model)
        for name in ("timed_pairs", "rounds"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One layer: mean nDCG@10 over the queries, and the median time of `pairs` pairs."""

    cutoff: int
    ndcg: float
    seconds: float
    pairs: int


def measure_layers(sweep: Sweep, queries: Sequence[JudgedQuery]) -> list[SweepRow]:
    """A row for each cut-off layer, ascending.

    Raises `InvalidInputError` for a model without cut-offs or without these, with what is allowed,
    and `MissingExtra` without the `eval` extra; both before anything is scored.
    """
    mean_ndcg([], np.empty(0, dtype=np.float32))
    alike = _heads_follow_layers(sweep)
    pairs = [(query.text, text) for query in queries for text in query.candidates.values()]
    scores = _score_layers(sweep, pairs, in_one_pass=alike)
    timed = pairs[: sweep.timed_pairs]
    seconds = _time_layers(sweep, timed)
    return [
        SweepRow(cutoff, mean_ndcg(queries, scores[:, column]), seconds[cutoff], len(timed))
        for column, cutoff in enumerate(sweep.cutoffs)
    ]


def mean_ndcg(queries: Sequence[JudgedQuery], scores: FloatArray) -> float:
    """Mean nDCG@10 of the queries' candidates, which `scores` goes through one after another.

    NaN for no queries. Raises `MissingExtra` without the `eval` extra.
    """
    try:
        from ir_measures import Qrel, ScoredDoc, nDCG
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "eval") from error
    owners = [(query.id, passage) for query in queries for passage in query.candidates]
    run = [
        ScoredDoc(query, passage, score)
        for (query, passage), score in zip(owners, scores.tolist(), strict=True)
    ]
    judged = [
        Qrel(query.id, passage, grade)
        for query in queries
        for passage, grade in query.grades.items()
    ]
    return float((nDCG @ 10).calc_aggregate(judged, run))


def check_chart(file: Path) -> None:
    """Raise now what `draw_chart` would after hours: `MissingExtra`, or `InvalidInputError`."""
    figure_type = _figure_type()
    kinds = figure_type().canvas.get_supported_filetypes()
    if file.suffix.removeprefix(".") not in kinds:
        raise InvalidInputError(f"{file} cannot be drawn; it must end in .{', .'.join(kinds)}")
    if not file.parent.is_dir():
        raise InvalidInputError(f"{file} cannot be written: there is no folder {file.parent}")


def _figure_type() -> "type[Figure]":
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "eval") from error
    return Figure


def draw_chart(rows: Sequence[SweepRow], file: Path, *, title: str) -> None:
    """Write quality against time to an image file, a point for each layer."""
    figure = _figure_type()(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([row.seconds for row in rows], [row.ndcg for row in rows], marker="o")
    for row in rows:
        place = (row.seconds, row.ndcg)
        axes.annotate(f"layer {row.cutoff}", place, xytext=(6, -12), textcoords="offset points")
    axes.set_xlabel(f"seconds for {rows[0].pairs} pairs")
    axes.set_ylabel("nDCG@10")
    axes.set_title(title)
    axes.margins(x=0.15, y=0.15)  # room for the last point's label
    axes.set_xlim(left=0)
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(file, dpi=150)


def _heads_follow_layers(sweep: Sweep) -> bool:
    """Whether a layer's score is the same alone and together with others.

    Raises what `load_scorer` would for these cut-offs, without reading any weights.
    """
    options = sweep.options
    try:
        from bge_rerank_integrations.local.checkpoint import open_checkpoint
        from bge_rerank_integrations.local.decoder_spec import LayerRequest, decoder_spec
        from bge_rerank_integrations.local.download import HubOptions
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "local") from error
    if sweep.model in OFFLINE_MODELS:
        raise InvalidInputError(f"{sweep.model!r} has no cut-off layers; the LLM rerankers have")
    checkpoint = open_checkpoint(
        sweep.model,
        HubOptions(
            revision=options.get("revision"),
            cache_dir=options.get("cache_dir"),
            local_files_only=options.get("local_files_only", False),
            token=options.get("token"),
        ),
    )
    family = family_of(checkpoint.config, sweep.model)
    indexing = options.get("head_indexing", "request")
    request = LayerRequest(
        sweep.cutoffs,
        options.get("compress_ratio", 1),
        tuple(options.get("compress_layers", ())),
        indexing,
    )
    if family not in LLM_FAMILIES:
        raise InvalidInputError(
            f"{sweep.model} is of the {family} family, without cut-off layers; the layerwise and "
            "lightweight LLM rerankers have them"
        )
    decoder_spec(family, checkpoint.config, request, yes=0, tied=True)
    return family is Family.LAYERWISE or indexing == "layer"


def _score_layers(sweep: Sweep, pairs: Sequence[Pair], *, in_one_pass: bool) -> FloatArray:
    """Raw scores, [pairs, layers], as each layer gives them when it is asked for alone."""
    if in_one_pass:
        with _loaded(sweep, sweep.cutoffs) as scorer:
            return scorer.score_layers(pairs)
    columns = []
    for cutoff in sweep.cutoffs:
        with _loaded(sweep, (cutoff,)) as scorer:
            columns.append(scorer.score(pairs))
    return np.stack(columns, axis=1)


def _time_layers(sweep: Sweep, pairs: Sequence[Pair]) -> dict[int, float]:
    """Median seconds for all the pairs at each layer, each loaded only as deep as it needs."""
    taken: dict[int, list[float]] = {cutoff: [] for cutoff in sweep.cutoffs}
    for number in range(sweep.rounds):
        for cutoff in sweep.cutoffs if number % 2 == 0 else reversed(sweep.cutoffs):
            with _loaded(sweep, (cutoff,)) as scorer:
                scorer.score(pairs[:1])  # what is done once is not what is compared
                begin = time.perf_counter()
                scorer.score(pairs)
                taken[cutoff].append(time.perf_counter() - begin)
    return {cutoff: median(times) for cutoff, times in taken.items()}


@contextmanager
def _loaded(sweep: Sweep, cutoffs: tuple[int, ...]) -> "Iterator[LocalScorer]":
    options: LocalOptions = {**sweep.options, "cutoff_layers": cutoffs}
    # no server takes cut-off layers
    with cast("LocalScorer", load_scorer(sweep.model, **options)) as scorer:
        yield scorer
