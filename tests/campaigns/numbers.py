"""Numbers that are none, too large or too small in each weight; and a caller's own settings.

    python -m tests.campaigns.numbers --size 100000 --seed 1

There is one case for each model, each of its tensors and each of `DAMAGES`; for each model and each
setting of torch, numpy or Python that a caller may have changed, before a model is loaded or after;
and for each way to start a process. The size bounds the number of cases, which the seed chooses.
Passes if each score is the one of the reference, or the one without the setting, or if there is an
error of this package; and if every setting is afterwards as the caller left it. The reference
computes in float64 and in float32, which differ where a sum overflows; a score may be either, or
differ from the first by ten times what the second does.
"""

import gc
import json
import locale
import logging
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from decimal import getcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bge_rerank_integrations import RerankError, load_scorer
from bge_rerank_integrations.local.scorer import LocalScorer
from tests.campaigns.command import run_campaign, time_is_up
from tests.campaigns.folders import FLIPS, build_distilbert, build_graph
from tests.contract.test_host_settings import default_dtype
from tests.folders.test_key_flips import PAIRS, logits

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 2e-5
MODELS: dict[str, tuple[Callable[[Path], object], Callable[..., list[float]] | None]] = {
    **{name: (subject.build, subject.scores) for name, subject in FLIPS.items()},
    "distilbert": (build_distilbert, logits),
    "graph": (build_graph, None),
}
"""Each model's builder and its reference, which reads no graph."""


def _one(value: float) -> Callable[[Tensor, random.Random], object]:
    return lambda tensor, rng: tensor.view(-1)[rng.randrange(tensor.numel())].fill_(value)


DAMAGES: dict[str, Callable[[Tensor, random.Random], object]] = {
    "a NaN": _one(math.nan),
    "an infinity": _one(math.inf),
    "a negative infinity": _one(-math.inf),
    "the largest number": _one(3.4e38),
    "a number that overflows in fp16": _one(1e5),
    "NaN alone": lambda tensor, _: tensor.fill_(math.nan),
    "large numbers": lambda tensor, _: tensor.mul_(1e30),
    "denormal numbers": lambda tensor, _: tensor.mul_(1e-39),
    "zeros": lambda tensor, _: tensor.zero_(),
}


@contextmanager
def _set(change: Callable[[Any], object], value: object, before: object) -> Iterator[None]:
    """Call a setter with a value, and with the former one at the end."""
    change(value)
    try:
        yield
    finally:
        change(before)


def _deterministic(mode: str) -> None:
    torch.use_deterministic_algorithms(mode != "off", warn_only=mode == "warn")


def _precision(digits: int) -> None:
    getcontext().prec = digits


@contextmanager
def _warnings_as_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def _turkish() -> Iterator[None]:
    """A comma in numbers, and another capital of the letter i."""
    before = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_ALL, TURKISH)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@contextmanager
def _installed_locale(folder: Path) -> Iterator[None]:
    """The Turkish locale in a folder, where programs that are started now find it too."""
    target = folder / TURKISH
    subprocess.run(["localedef", "-i", "tr_TR", "-f", "UTF-8", target], check=True)
    before = os.environ.get("LOCPATH")
    os.environ["LOCPATH"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCPATH"]
        else:
            os.environ["LOCPATH"] = before


TURKISH = "tr_TR.UTF-8"
_THREADS = torch.get_num_threads()
SETTINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    **{
        f"default {dtype}": partial(default_dtype, dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.float64)
    },
    "default device meta": lambda: torch.device("meta"),
    "one thread": lambda: _set(torch.set_num_threads, 1, _THREADS),
    "three threads": lambda: _set(torch.set_num_threads, 3, _THREADS),
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic": lambda: _set(_deterministic, "on", "off"),
    "deterministic with warnings": lambda: _set(_deterministic, "warn", "off"),
    "medium matmul precision": lambda: _set(
        torch.set_float32_matmul_precision, "medium", torch.get_float32_matmul_precision()
    ),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "numpy raises": lambda: np.errstate(all="raise"),
    "numpy calls": lambda: np.errstate(all="call", call=_no_call),
    "warnings are errors": _warnings_as_errors,
    "Turkish": _turkish,
    "two decimal digits": lambda: _set(_precision, 2, getcontext().prec),
    "no garbage collection": lambda: _set(
        lambda on: gc.enable() if on else gc.disable(), False, gc.isenabled()
    ),
    "another umask": lambda: _set(os.umask, 0o777, os.umask(os.umask(0o022))),
}


def _no_call(kind: str, flag: int) -> None:
    raise FloatingPointError(kind)


def _state() -> dict[str, object]:
    """Everything of the process that a caller may have set."""
    os.umask(mask := os.umask(0))
    context: Any = torch.utils._device
    return {
        "dtype": torch.get_default_dtype(),
        "device": str(context.CURRENT_DEVICE),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "anomalies": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "oneDNN": torch._C._get_mkldnn_enabled(),
        "torch's numbers": torch.random.get_rng_state().tolist(),
        "numpy's numbers": repr(np.random.get_state()),  # noqa: NPY002 - the one of a caller
        "Python's numbers": random.getstate(),
        "numpy": (np.geterr(), np.get_printoptions()),
        "locale": locale.setlocale(locale.LC_ALL),
        "warnings": list(warnings.filters),
        "decimal": str(getcontext()),
        "garbage": (gc.isenabled(), gc.get_threshold()),
        "umask": mask,
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "path": list(sys.path),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "hooks": (sys.excepthook, sys.settrace, sys.getswitchinterval(), sys.getrecursionlimit()),
    }


PROCESSES: dict[str, tuple[list[str], dict[str, str]]] = {
    "without assertions": (["-O"], {}),
    "without docstrings": (["-OO"], {}),
    "warnings are errors": (["-W", "error"], {}),
    "bytes warnings are errors": (["-bb"], {}),
    "development mode": (["-X", "dev"], {}),
    "Turkish": ([], {"LC_ALL": TURKISH, "LANG": TURKISH}),
    "ASCII": (["-X", "utf8=0"], {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}),
    "another hash seed": ([], {"PYTHONHASHSEED": "7"}),
    "three threads": ([], {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}),
    "no home": ([], {"HOME": "/nowhere"}),
    "a strange standard output": ([], {"PYTHONIOENCODING": "ascii:strict"}),
}
"""Ways to start a process: Python's options and variables of the environment."""
PROGRAM = """
import json, sys
from bge_rerank_integrations import RerankError, load_scorer
models, pairs = map(json.loads, sys.argv[1:])
for folder, options in models:
    try:
        with load_scorer(folder, **options) as scorer:
            print(json.dumps(scorer.score(pairs).tolist()))
    except RerankError:
        print("null")
"""


def campaign(size: int, seed: int, *names: str) -> Counter[str]:
    """The number of cases by outcome; raises `AssertionError`, with all of them, for failures."""
    counts: Counter[str] = Counter()
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder, _installed_locale(Path(folder)):
        models = {name: _Model(name, Path(folder)) for name in names or MODELS}
        cases = [*_cases(models)]
        random.Random(seed).shuffle(cases)
        for case in cases[:size]:
            if time_is_up():
                break
            outcome = case()
            counts["cases"] += 1
            counts[outcome] += 1
            if outcome.startswith("failed"):
                failed.append(f"{case}: {outcome}")
                sys.stderr.write(f"{failed[-1]}\n")
    assert not failed, "\n".join(failed)
    return counts


def _cases(models: dict[str, "_Model"]) -> Iterator[Callable[[], str]]:
    for model in models.values():
        tensors = load_file(model.weights) if model.reference else {}
        for damage in DAMAGES:
            yield from (partial(model.damaged, tensor, damage) for tensor in tensors)
        for setting in SETTINGS:
            yield from (
                partial(model.with_setting, setting, loads=loads) for loads in (True, False)
            )
    yield from (partial(_in_process, list(models.values()), way) for way in PROCESSES)


class _Model:
    def __init__(self, name: str, parent: Path) -> None:
        build, self.reference = MODELS[name]
        self.folder = parent / name
        self.folder.mkdir()
        build(self.folder)
        self.weights = self.folder / "model.safetensors"
        self.options = {"device": "cpu", "precision": "fp32"}
        if self.reference is None:
            self.options["backend"] = "onnx"
        self.expected = self._load().score(PAIRS).tolist()

    def __repr__(self) -> str:
        return self.folder.name

    def _load(self, folder: Path | None = None) -> LocalScorer:
        options: Any = self.options
        scorer: LocalScorer = load_scorer(str(folder or self.folder), **options)
        return scorer

    def damaged(self, tensor: str, damage: str) -> str:
        """Each pair by itself, because the numbers of one may be damaged and of another not."""
        assert self.reference is not None
        with tempfile.TemporaryDirectory() as written, np.errstate(all="ignore"):
            folder = Path(written) / "model"
            shutil.copytree(self.folder, folder)
            tensors = load_file(self.weights)
            DAMAGES[damage](tensors[tensor], random.Random(f"{self}/{tensor}/{damage}"))
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            with torch.inference_mode():
                exact, rounded = (
                    self.reference(folder, self.folder, dtype)
                    for dtype in (torch.float64, torch.float32)
                )
            outcome = "typed errors"
            with self._load(folder) as scorer:
                for pair, right, theirs in zip(PAIRS, exact, rounded, strict=True):
                    try:
                        (found,) = scorer.score([pair]).tolist()
                    except RerankError:
                        continue
                    if not (_near(found, right, theirs) or _near(found, theirs, theirs)):
                        return f"failed: {found} instead of {right}, or {theirs} in float32"
                    outcome = "scores of the reference"
        return outcome

    def with_setting(self, name: str, *, loads: bool) -> str:
        """Scores in the caller's setting, of a model that is loaded in it or before."""
        loaded = None if loads else self._load()
        with SETTINGS[name]():
            state = _state()
            try:
                found = (loaded or self._load()).score(PAIRS).tolist()
            except RerankError:
                found = None
            except Exception:  # noqa: BLE001 - this is what the campaign looks for
                return f"failed: {traceback.format_exc()}"
            after = _state()
        if changed := [key for key in state if state[key] != after[key]]:
            return f"failed: it changed {changed}"
        return "typed errors" if found is None else _compared(found, self.expected)


def _near(found: float, right: float, rounded: float) -> bool:
    """Whether a score is as near to the right one as ten times float32's own error."""
    allowed = 1e-4 * max(1, abs(right)) + 10 * abs(rounded - right)
    return abs(found - right) <= (allowed if math.isfinite(allowed) else 1e-3)


def _in_process(models: list[_Model], way: str) -> str:
    flags, variables = PROCESSES[way]
    given = [(str(model.folder), model.options) for model in models], PAIRS
    run = subprocess.run(
        [sys.executable, *flags, "-c", PROGRAM, *map(json.dumps, given)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        return f"failed: it ended with {run.returncode}: {run.stderr[-2000:]}"
    lines = run.stdout.splitlines()  # in which transformers complains of docstrings that -OO drops
    found = [json.loads(line) for line in lines if not line.startswith("[ERROR]")]
    scored = [(one, model.expected) for one, model in zip(found, models, strict=True) if one]
    outcome = _compared(*zip(*scored, strict=True))
    return outcome if len(scored) == len(models) or outcome.startswith("failed") else "typed errors"


def _compared(found: Any, expected: Any) -> str:
    close = np.allclose(found, expected, rtol=0, atol=TOLERANCE)
    return "scores without the setting" if close else f"failed: {found} instead of {expected}"


if __name__ == "__main__":
    run_campaign("numbers", campaign, size=100_000)
