"""Proof on the user's own machine that a model's scores are right: `bge-rerank verify`.

A fixed set of pairs is scored by this package and by every reference library that is installed, and
compared with the scores that the model's authors publish.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from bge_rerank_integrations import __version__
from bge_rerank_integrations.base.address import is_address
from bge_rerank_integrations.base.models import Family, find_model
from bge_rerank_integrations.errors import InvalidInputError, RerankError, missing_extra
from bge_rerank_integrations.load import load_scorer
from bge_rerank_integrations.types import FloatArray, Pair, Scorer

if TYPE_CHECKING:
    from bge_rerank_integrations.local.scorer import LocalScorer

TOLERANCE = 2e-5
"""float32 sums in another order differ by less; a wrong token or weight by 0.01 and more."""

HALF_TOLERANCE = 0.05
"""Published scores were computed in half precision, and servers use it by default."""

_ENGLISH = (
    "The giant panda is a bear that lives in the mountains of China and eats bamboo all day. "
    "Water boils at a lower temperature on a high mountain than at the level of the sea. "
)
_CHINESE = "大熊猫生活在中国的山区，主要以竹子为食。高山上的水在较低的温度下沸腾。"

PAIRS: tuple[Pair, ...] = (
    ("what is panda?", "hi"),
    ("what is panda?", "The giant panda is a bear species endemic to China."),
    ("what is panda?", ""),
    ("大熊猫吃什么？", _CHINESE),
    ("大熊猫吃什么？", "The giant panda eats bamboo."),
    ("pandas 🐼 and 🎋", "naïve café — “quoted” … 🐼🐼 ½"),
    ("  spaces   around ", "tabs\tand\nnew lines\n\n"),
    ("what boils on a mountain?", _ENGLISH * 2),
    ("what boils on a mountain?", _ENGLISH * 40),
    (_ENGLISH * 40, "A short passage beside a long query."),
    (_CHINESE * 20, _CHINESE * 60),
)
"""Short, empty, Chinese, emoji, white space, and texts that are longer than a model reads."""

Outcome = Literal["equal", "different", "not compared"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our scores beside those of one reference.

    `difference` is the largest of any pair, in raw scores; `reference_scores` are in the order of
    `pairs`. `detail` says why nothing was compared.
    """

    reference: str
    version: str | None
    outcome: Outcome
    tolerance: float
    pairs: tuple[Pair, ...] = ()
    scores: tuple[float, ...] = ()
    reference_scores: tuple[float, ...] = ()
    difference: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """The comparisons of one model; see `verify`."""

    model: str
    scorer: str
    plan: str
    comparisons: tuple[Comparison, ...]
    versions: dict[str, str]

    @property
    def verdict(self) -> Literal["right", "wrong", "not proven"]:
        """Wrong if any comparison differs; not proven if no reference could be compared."""
        outcomes = [comparison.outcome for comparison in self.comparisons]
        if "different" in outcomes:
            return "wrong"
        others = [c.outcome for c in self.comparisons if c.reference not in SELF_CHECKS]
        return "right" if "equal" in others else "not proven"

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, for a bug report; the pairs are this module's own."""
        written = {**asdict(self), "verdict": self.verdict}
        Path(path).write_text(json.dumps(written, ensure_ascii=False, indent=2), encoding="utf-8")


HUB_OPTIONS = ("revision", "cache_dir", "local_files_only", "token")
SELF_CHECKS = ("one pair at a time", "reversed")


def verify(
    model: str,
    *,
    base_url: str | None = None,
    tolerance: float | None = None,
    **options: Any,
) -> Verification:
    """Compare the scores of `model` with every reference that is installed here.

    The references are transformers, sentence-transformers and FlagEmbedding, one pair at a time in
    float32 on the CPU, and the scores that the model's card publishes. With `base_url` the server's
    scores are compared, with this package's own scores of the local `model` among the references.
    `options` are those of `load_scorer`; without a `device` or `precision` the model runs in
    float32 on the CPU. `tolerance` is the largest difference of a raw score that counts as equal,
    by default 2e-5, or 0.05 for a server or a half precision.

    Raises what loading the model raises. A reference that is missing or fails is reported as not
    compared, with the reason.
    """
    if is_address(model):
        raise InvalidInputError(
            f"model is an address; give the model's hub id or folder, and base_url={model!r}"
        )
    if base_url is None:
        # a graph has its own number format, and runs on the CPU alone
        on_torch = not model.startswith("offline") and options.get("backend", "torch") == "torch"
        options = {**({"device": "cpu", "precision": "fp32"} if on_torch else {}), **options}
        scorer = load_scorer(model, **options)
    else:
        scorer = load_scorer(model, base_url=base_url, **options)
    plan = str(getattr(scorer, "plan", "a server"))
    exact = base_url is None and "fp32" in plan
    allowed = tolerance or (TOLERANCE if exact else HALF_TOLERANCE)
    scores = scorer.score(PAIRS)
    alone = np.concatenate([scorer.score([pair]) for pair in PAIRS])
    compared = [
        _compared((SELF_CHECKS[0], None), PAIRS, scores, alone, allowed),
        _compared((SELF_CHECKS[1], None), PAIRS, scores, scorer.score(PAIRS[::-1])[::-1], allowed),
    ]
    if base_url is not None:
        compared += _own(model, scores, allowed, scale=scorer.scale)
    else:
        compared += _libraries(model, scorer, options, allowed)
    compared += _published(model, scorer, exact=exact)
    installed = {c.reference: c.version for c in compared if c.version is not None}
    versions = {"bge-rerank-integrations": __version__, **installed}
    return Verification(model, scorer.name, plan, tuple(compared), versions)


def _libraries(
    model: str, scorer: Scorer, options: dict[str, Any], tolerance: float
) -> list[Comparison]:
    """The reference libraries that can load the model's folder."""
    try:
        from bge_rerank_integrations.local.checkpoint import open_checkpoint
        from bge_rerank_integrations.local.st_config import read_settings
        from bge_rerank_integrations.options import HubOptions

        with missing_extra("transformers"):
            from bge_rerank_integrations.local.references import (
                GRAPH_REFERENCE,
                REFERENCES,
                NotComparable,
            )

        hub = {name: options[name] for name in HUB_OPTIONS if name in options}
        checkpoint = open_checkpoint(model, HubOptions(**hub))
        family = read_settings(checkpoint, options.get("label")).family
    except RerankError as error:
        return [_not_compared("reference libraries", None, str(error), tolerance)]

    plan = cast("LocalScorer", scorer).plan
    graph = any(runtime in str(plan) for runtime in ("ONNX Runtime", "OpenVINO"))
    quantized = plan.precision.startswith("int")

    def of(reference: str) -> Comparison:
        distribution, score, truncation = REFERENCES[reference]
        version = _version(distribution)
        if version is None:
            return _not_compared(reference, None, "not installed", tolerance)
        if reference == GRAPH_REFERENCE and not graph:
            return _not_compared(reference, version, "the model runs on torch", tolerance)
        if reference != GRAPH_REFERENCE and quantized:
            detail = f"its weights are rounded to {plan.precision}"
            return _not_compared(reference, version, detail, tolerance)
        try:
            expected = score(checkpoint.folder, family, PAIRS)
        except NotComparable as error:
            return _not_compared(reference, version, str(error), tolerance)
        except Exception as error:  # noqa: BLE001 - another library fails in any way it likes
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            return _not_compared(reference, version, f"it fails: {said}", tolerance)
        ours = scorer
        if family is Family.ENCODER:
            ours = load_scorer(model, truncation=truncation, **options)
        return _compared((reference, version), PAIRS, ours.score(PAIRS), expected, tolerance)

    return [of(reference) for reference in REFERENCES]


def _own(model: str, scores: FloatArray, tolerance: float, *, scale: str) -> list[Comparison]:
    """A server's scores beside those of the same model in this process."""
    name = "this package, on this machine"
    try:
        own = load_scorer(model, device="cpu", precision="fp32")
        expected = own.score(PAIRS)
    except RerankError as error:
        return [_not_compared(name, __version__, str(error), tolerance)]
    if scale != own.scale:
        detail = f"the server gives a {scale}, the model a {own.scale}: compared as probabilities"
        if (scale, own.scale) != ("probability", "logit"):
            return [_not_compared(name, __version__, detail, tolerance)]
        expected = (1 / (1 + np.exp(-expected.astype(np.float64)))).astype(np.float32)
    return [_compared((name, __version__), PAIRS, scores, expected, tolerance)]


def _published(model: str, scorer: Scorer, *, exact: bool) -> list[Comparison]:
    """The scores that the model's authors publish, for the models of the table."""
    spec = find_model(model)
    if spec is None or spec.published_scores is None or scorer.scale != "logit":
        return []
    stated = spec.published_scores
    tolerance = 1e-3 if exact and stated.precision == "fp32" else HALF_TOLERANCE
    scores = scorer.score(stated.pairs)
    expected = np.array(stated.scores, dtype=np.float32)
    return [_compared((stated.source, None), stated.pairs, scores, expected, tolerance)]


def _compared(
    reference: tuple[str, str | None],
    pairs: Sequence[Pair],
    scores: FloatArray,
    expected: FloatArray,
    tolerance: float,
) -> Comparison:
    difference = float(np.abs(scores.astype(np.float64) - expected).max())
    return Comparison(
        *reference,
        "equal" if difference <= tolerance else "different",
        tolerance,
        tuple(pairs),
        tuple(scores.tolist()),
        tuple(expected.tolist()),
        difference,
    )


def _not_compared(reference: str, version: str | None, detail: str, tolerance: float) -> Comparison:
    return Comparison(reference, version, "not compared", tolerance, detail=detail)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def report_lines(found: Verification) -> list[str]:
    """The verification for a terminal, a line for each reference, the verdict last."""
    lines = [found.scorer, found.plan.partition("\n")[0]]
    for comparison in found.comparisons:
        name = " ".join(filter(None, (comparison.reference, comparison.version)))
        if comparison.difference is None:
            lines.append(f"  not compared  {name}: {comparison.detail}")
            continue
        lines.append(
            f"  {comparison.outcome:<13} {name}: largest difference {comparison.difference:.1e} "
            f"over {len(comparison.pairs)} pairs, {comparison.tolerance:.0e} allowed"
        )
    meaning: dict[str, str] = {
        "right": "the scores are right",
        "wrong": "the scores are WRONG: please report this with --json report.json",
        "not proven": "nothing to compare with; install transformers or sentence-transformers",
    }
    return [*lines, meaning[found.verdict]]
