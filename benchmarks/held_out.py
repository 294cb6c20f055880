"""Recommendations, calibrations and intervals on questions that did not choose them.

    python -m benchmarks.held_out FOLDER ... --model offline --depth 20 --queries 300

For each data set, in the folders that benchmarks.quality reads, the questions are halved many
times: one half chooses, the other judges. Coverage is that of 95% intervals of the gain in nDCG@10
over samples of the questions, whose mean over all questions counts as true. Scores are kept in
--scores, as those of benchmarks.quality. With several data sets, a second table has the error of
each one's calibration on the others, and says where a reranker would warn of unlike scores.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import DEFAULT_CACHE
from benchmarks.quality import find_data_sets, load_model, score_all
from bge_rerank_integrations import InvalidInputError
from bge_rerank_integrations.evaluate import JudgedQuery, read_beir
from bge_rerank_integrations.evaluate.measures import (
    first_stage,
    measured,
    parse_measures,
    reranked,
)
from bge_rerank_integrations.evaluate.recommend import (
    choose_depth,
    choose_threshold,
    choose_top_n,
    compare_gap,
    depths_to_try,
    f1_by_length,
)
from bge_rerank_integrations.evaluate.statistics import Array, Resampling
from bge_rerank_integrations.ranking.calibration import (
    TOP,
    Calibration,
    ScoreWatch,
    fit_calibration,
    ranks,
)
from bge_rerank_integrations.ranking.cutoffs import largest_gap
from bge_rerank_integrations.types import FloatArray

SPLITS, TRIALS = 20, 500
Judged: TypeAlias = tuple[Sequence[FloatArray], Sequence[np.ndarray]]
"""Each question's scores, and whether its candidates are relevant."""

COLUMNS = (
    *("data set", "questions, candidates", "95% interval covers, 20 / 50 questions"),
    *("depth: share of the gain", "top_n: answered", "score_threshold: relevant kept"),
    *("calibration error / at best", "first three: error / at best", "first three: bias"),
    *("target_recall=0.95: recall / kept", "min_n=1: F1 / of a fixed number"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each data set."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--run", default="run.bm25.top100.trec")
    parser.add_argument("--model", default="offline")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--queries", type=int)
    parser.add_argument("--scores", type=Path, default=DEFAULT_CACHE / "quality")
    asked = parser.parse_args(arguments)
    print(f"| {' | '.join(COLUMNS)} |\n" + "|---" * len(COLUMNS) + "|")
    scorer = load_model(asked.model)
    judged: dict[str, Judged] = {}
    for folder in (found for given in asked.folders for found in find_data_sets(given, asked.run)):
        queries = read_beir(folder, folder / asked.run, depth=asked.depth)[: asked.queries]
        known = score_all(scorer, queries, asked.scores.expanduser(), folder.name)
        queries = [query for query in queries if query.candidates]
        scores = [known.score([(q.text, text) for text in q.candidates.values()]) for q in queries]
        print(f"| {' | '.join([folder.name, *row(queries, scores)])} |", flush=True)
        judged[folder.name] = scores, [query.relevance for query in queries]
    if len(judged) > 1:
        print(f"\n| fitted on | {' | '.join(judged)} |\n" + "|---" * (len(judged) + 1) + "|")
        for name, own in judged.items():
            calibration = fit(*own, range(len(own[0])))
            cells = (carried(calibration, *other) for other in judged.values())
            print(f"| {name} | {' | '.join(cells)} |")


def row(queries: Sequence[JudgedQuery], scores: Sequence[FloatArray]) -> Iterator[str]:
    """The figures of one data set, in the order of the columns."""
    longest = max(map(len, scores))
    depths, measures = depths_to_try(longest), parse_measures(["nDCG@10"])
    before = measured(queries, first_stage(queries), measures)
    after = [measured(queries, reranked(scores, depth), measures) for depth in depths]
    gains = np.hstack(after) - before
    relevant = [query.relevance for query in queries]
    order = reranked(scores, longest)
    first = np.array(
        [np.argmax(r[o]) + 1 if r.any() else np.inf for r, o in zip(relevant, order, strict=True)]
    )
    yield f"{len(queries)}, {longest}"
    yield " / ".join(coverage(gains[:, -1], number) for number in (20, 50))
    sums: dict[str, list[float]] = {"depth": [0, 0], "top_n": [0, 0], "threshold": [0, 0]}
    fitted: list[tuple[float, ...]] = []
    for here, there in halves(len(queries)):
        (gain,) = Resampling(1000, 0).differences(before[here], after[-1][here])
        # as in evaluate, no depth is recommended without a measurable gain
        if gain.is_gain and (depth := choose_depth(depths, gains[here])) is not None:
            add(sums["depth"], gains[there, depths.index(int(depth.value))], gains[there, -1])
        answered = there[np.isfinite(first[there])]
        if (top_n := choose_top_n(first[here][np.isfinite(first[here])])) is not None:
            add(sums["top_n"], first[answered] <= top_n.value, np.ones(len(answered)))
        threshold, _ = choose_threshold(
            [scores[q][relevant[q]] for q in here], [scores[q][~relevant[q]] for q in here]
        )
        if threshold is not None:
            good = np.concatenate([scores[q][relevant[q]] for q in there])
            add(sums["threshold"], good >= threshold.value, np.ones(len(good)))
        fitted += calibrated(scores, relevant, here, there)
    for part, whole in sums.values():
        yield f"{part / whole:.3f}" if whole > 0 else "no gain"
    error, floor, top_error, top_floor, bias = np.mean(fitted, axis=0)
    yield f"{error:.3f} / {floor:.3f}"
    yield f"{top_error:.3f} / {top_floor:.3f}"
    yield f"{bias:+.3f}"
    yield recalled(scores, relevant)
    yield gap(queries, scores)


def halves(number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The positions of two halves of the questions, many times."""
    random = np.random.default_rng(1)
    for _ in range(SPLITS):
        shuffled = random.permutation(number)
        yield shuffled[: number // 2], shuffled[number // 2 :]


def add(sums: list[float], part: NDArray[Any], whole: NDArray[Any]) -> None:
    """Add up a share's part and whole."""
    sums[0] += float(part.sum())
    sums[1] += float(whole.sum())


def coverage(gains: Array, number: int) -> str:
    """How often the interval of a sample of questions contains the mean of all questions.

    Samples in which so few questions change that no interval is given do not count.
    """
    random, true = np.random.default_rng(3), float(gains.mean())
    sample = gains[random.integers(len(gains), size=(number, TRIALS))]
    found = Resampling(1000, 0).differences(np.zeros_like(sample), sample)
    covered = [
        one.low - 1e-12 <= true <= one.high + 1e-12
        for one in found
        if one.low is not None and one.high is not None
    ]
    return f"{np.mean(covered):.2f}" if len(covered) >= TRIALS / 2 else "mostly none given"


def calibrated(
    scores: Sequence[FloatArray],
    relevant: Sequence[np.ndarray],
    here: np.ndarray,
    there: np.ndarray,
) -> Iterator[tuple[float, ...]]:
    """Errors of one half's calibration on the other half."""
    try:
        one = fit(scores, relevant, here)
    except InvalidInputError:  # too few judgements
        return
    places = [ranks(scores[q]) for q in there]
    rated = [probabilities(one, scores[q]) for q in there]
    labels = [relevant[q] for q in there]
    random = np.random.default_rng(0)
    figures: list[float] = []
    for top in (len(scores), TOP):
        chosen = np.concatenate([own < top for own in places])
        said, true = np.concatenate(rated)[chosen], np.concatenate(labels)[chosen]
        draws = [expected_error(said, random.random(len(said)) < said) for _ in range(20)]
        figures += [expected_error(said, true), float(np.mean(draws))]
    bias = float(said.mean() - true.mean())
    yield (*figures, bias)


def probabilities(calibration: Calibration, raw: FloatArray) -> np.ndarray:
    """Those of a question's candidates."""
    places = ranks(raw).tolist()
    return np.array(list(map(calibration.probability, raw.tolist(), places)))


def carried(
    calibration: Calibration, scores: Sequence[FloatArray], relevant: Sequence[np.ndarray]
) -> str:
    """The calibration's error on these questions; bold where a reranker would warn."""
    said = np.concatenate([probabilities(calibration, raw) for raw in scores])
    error = f"{expected_error(said, np.concatenate(relevant)):.3f}"
    watch = ScoreWatch(calibration)
    warned = [watch.observe(raw) is not None for raw in scores]
    return f"**{error}**" if any(warned) else error


def fit(
    scores: Sequence[FloatArray], relevant: Sequence[np.ndarray], chosen: Sequence[int] | np.ndarray
) -> Calibration:
    """The calibration of these questions."""
    return fit_calibration(
        "scorer",
        np.concatenate([scores[q] for q in chosen]),
        np.concatenate([relevant[q] for q in chosen]),
        [str(q) for q in chosen for _ in scores[q]],
    )


def recalled(scores: Sequence[FloatArray], relevant: Sequence[np.ndarray]) -> str:
    """A question's mean recall with the threshold of all others, and the passages it keeps."""
    rows = [tuple(raw[good].tolist()) for raw, good in zip(scores, relevant, strict=True)]
    answered = [place for place, own in enumerate(rows) if own]
    whole = fit(scores, relevant, range(len(scores)))
    recall, kept = [], []
    for place in answered:
        others = tuple(rows[other] for other in answered if other != place)
        try:
            threshold = replace(whole, relevant_scores=others).threshold(0.95)
        except InvalidInputError:
            return "too few questions"
        recall.append(np.mean(np.array(rows[place]) >= threshold))
        kept.append(np.mean(scores[place] >= threshold))
    return f"{np.mean(recall):.3f} / {np.mean(kept):.0%}"


def expected_error(said: np.ndarray, true: np.ndarray) -> float:
    """The expected calibration error over ten bins of one width."""
    place = np.minimum((said * 10).astype(int), 9)
    return float(
        sum(abs(said[place == one].sum() - true[place == one].sum()) for one in range(10))
        / len(said)
    )


def gap(queries: Sequence[JudgedQuery], scores: Sequence[FloatArray]) -> str:
    """The largest gap within ten results against a fixed number of as many."""
    order = reranked(scores, 10**6)
    rows = list(zip(queries, order, scores, strict=True))
    lengths = [max(1, largest_gap(raw[best].tolist(), 1, 10)) for _, best, raw in rows]
    f1 = [
        f1_by_length(query.relevance[best], sum(g >= 1 for g in query.grades.values()), 10)
        for query, best, _ in rows
    ]
    found = compare_gap(np.array(lengths), np.array(f1), Resampling(10_000, 0))
    cut, fixed = f"{found.f1:.3f}", f"{found.fixed_f1:.3f}"
    if found.gain.is_clear:
        cut, fixed = (f"**{cut}**", fixed) if found.gain.is_gain else (cut, f"**{fixed}**")
    return f"{found.length:.1f} results: {cut} / {fixed}"


if __name__ == "__main__":
    main()
