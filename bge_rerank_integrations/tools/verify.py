"""`bge-rerank verify`: check on the user's own machine that a model's scores are right.

A fixed set of pairs is scored by this package and by every reference library that is installed, and
compared with the scores that the model's authors publish.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from bge_rerank_integrations import __version__
from bge_rerank_integrations.base.address import is_address
from bge_rerank_integrations.base.models import OFFLINE_MODELS, Family, find_model
from bge_rerank_integrations.errors import (
    InvalidInputError,
    RerankError,
    UnsupportedModel,
    missing_extra,
)
from bge_rerank_integrations.load import load_scorer
from bge_rerank_integrations.tools.doctor import installed_version
from bge_rerank_integrations.types import FloatArray, Pair, Scorer

if TYPE_CHECKING:
    from bge_rerank_integrations.local.checkpoint import Checkpoint
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

SELF_CHECKS = ("one pair at a time", "reversed")
VERDICTS = {
    "right": "the scores are right",
    "wrong": "the scores are WRONG: please report this with --json report.json",
    "not proven": "nothing to compare with; install transformers or sentence-transformers",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our scores and those of one reference, both in the order of `pairs`.

    `detail` says why nothing was compared.
    """

    reference: str
    version: str | None
    tolerance: float
    pairs: tuple[Pair, ...] = ()
    scores: tuple[float, ...] = ()
    reference_scores: tuple[float, ...] = ()
    detail: str = ""

    @property
    def difference(self) -> float | None:
        """The largest difference of a raw score."""
        apart = np.abs(np.subtract(self.scores, self.reference_scores))
        return float(apart.max()) if len(apart) else None

    @property
    def outcome(self) -> Literal["equal", "different", "not compared"]:
        if self.difference is None:
            return "not compared"
        return "equal" if self.difference <= self.tolerance else "different"

    def __str__(self) -> str:
        name = " ".join(filter(None, (self.reference, self.version)))
        if self.difference is None:
            return f"{self.outcome:<13} {name}: {self.detail}"
        return (
            f"{self.outcome:<13} {name}: largest difference {self.difference:.1e} over "
            f"{len(self.pairs)} pairs, {self.tolerance:.0e} allowed"
        )


@dataclass(frozen=True, slots=True)
class Verification:
    """The comparisons of one model; see `verify`. Print it to read them."""

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

    def __str__(self) -> str:
        rows = [f"  {comparison}" for comparison in self.comparisons]
        return "\n".join([self.scorer, self.plan.partition("\n")[0], *rows, VERDICTS[self.verdict]])

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, for a bug report; the pairs are this module's own."""
        rows = [
            {**asdict(c), "outcome": c.outcome, "difference": c.difference}
            for c in self.comparisons
        ]
        written = {**asdict(self), "comparisons": rows, "verdict": self.verdict}
        Path(path).write_text(json.dumps(written, ensure_ascii=False, indent=2), encoding="utf-8")


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
    # a graph has its own number format, and runs on the CPU alone
    on_torch = model not in OFFLINE_MODELS and options.get("backend", "torch") == "torch"
    if base_url is not None:
        scorer: Scorer = load_scorer(model, base_url=base_url, **options)
    else:
        options = {**({"device": "cpu", "precision": "fp32"} if on_torch else {}), **options}
        scorer = load_scorer(model, **options)
    plan = str(getattr(scorer, "plan", "a server"))
    exact = base_url is None and "fp32" in plan
    tolerance = tolerance or (TOLERANCE if exact else HALF_TOLERANCE)
    scores = scorer.score(PAIRS)
    alone = np.concatenate([scorer.score([pair]) for pair in PAIRS])
    compared = [
        _compared(SELF_CHECKS[0], scores, alone, tolerance),
        _compared(SELF_CHECKS[1], scores, scorer.score(PAIRS[::-1])[::-1], tolerance),
    ]
    if base_url is None:
        compared += _libraries(model, scorer, options, tolerance)
    else:
        compared.append(_own(model, scores, tolerance, scale=scorer.scale))
    spec = find_model(model)
    if spec is not None and spec.published_scores is not None and scorer.scale == "logit":
        stated = spec.published_scores
        allowed = 1e-3 if exact and stated.precision == "fp32" else HALF_TOLERANCE
        expected, found = np.array(stated.scores), scorer.score(stated.pairs)
        compared.append(_compared(stated.source, found, expected, allowed, pairs=stated.pairs))
    installed = {c.reference: c.version for c in compared if c.version is not None}
    versions = {"bge-rerank-integrations": __version__, **installed}
    return Verification(model, scorer.name, plan, tuple(compared), versions)


def _libraries(
    model: str, scorer: Scorer, options: dict[str, Any], tolerance: float
) -> Iterator[Comparison]:
    """The reference libraries that can load the model's folder."""
    try:
        with missing_extra("transformers"):
            from bge_rerank_integrations.local import references

        checkpoint, family = _read_folder(model, options)
    except RerankError as error:
        yield Comparison("reference libraries", None, tolerance, detail=str(error))
        return
    plan = cast("LocalScorer", scorer).plan
    graph = any(runtime in str(plan) for runtime in ("ONNX Runtime", "OpenVINO"))
    for name, (distribution, score, truncation) in references.REFERENCES.items():
        version, why = installed_version(distribution), ""
        if version is None:
            why = "not installed"
        elif name == references.GRAPH_REFERENCE and not graph:
            why = "the model runs on torch"
        elif name != references.GRAPH_REFERENCE and plan.precision.startswith("int"):
            why = f"its weights are rounded to {plan.precision}"
        else:
            try:
                expected = score(checkpoint.folder, family, PAIRS)
            except references.NotComparable as error:
                why = str(error)
            except Exception as error:  # noqa: BLE001 - another library may raise anything
                why = f"it fails: {type(error).__name__}: {error}".splitlines()[0]
        if why:
            yield Comparison(name, version, tolerance, detail=why)
            continue
        ours = scorer
        if family is Family.ENCODER:
            ours = load_scorer(model, truncation=truncation, **options)
        yield _compared(name, ours.score(PAIRS), expected, tolerance, version=version)


def _read_folder(model: str, options: dict[str, Any]) -> "tuple[Checkpoint, Family]":
    from bge_rerank_integrations.local.checkpoint import open_checkpoint
    from bge_rerank_integrations.local.st_config import read_settings
    from bge_rerank_integrations.options import HubOptions

    if model in OFFLINE_MODELS:
        raise UnsupportedModel(f"{model} comes with a package and is not a folder that they read")
    hub = {name: options[name] for name in HubOptions.model_fields if name in options}
    checkpoint = open_checkpoint(model, HubOptions(**hub))
    return checkpoint, read_settings(checkpoint, options.get("label")).family


def _own(model: str, scores: FloatArray, tolerance: float, *, scale: str) -> Comparison:
    """A server's scores compared with those of the same model in this process."""
    name = "this package, on this machine"
    try:
        own = load_scorer(model, device="cpu", precision="fp32")
        expected = own.score(PAIRS)
    except RerankError as error:
        return Comparison(name, __version__, tolerance, detail=str(error))
    if (scale, own.scale) == ("probability", "logit"):
        expected = (1 / (1 + np.exp(-expected))).astype(np.float32)
    elif scale != own.scale:
        detail = f"the server gives a {scale}, the model a {own.scale}"
        return Comparison(name, __version__, tolerance, detail=detail)
    return _compared(name, scores, expected, tolerance, version=__version__)


def _compared(
    reference: str,
    scores: FloatArray,
    expected: FloatArray,
    tolerance: float,
    *,
    version: str | None = None,
    pairs: Sequence[Pair] = PAIRS,
) -> Comparison:
    ours, theirs = tuple(scores.tolist()), tuple(expected.tolist())
    return Comparison(reference, version, tolerance, tuple(pairs), ours, theirs)
