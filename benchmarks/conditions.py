"""What every part of the programme runs under: models, contenders asked for, the machine's peak."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measures import turns_within
from benchmarks.models import model_flops, model_folder, read_width
from benchmarks.peers import Unavailable
from benchmarks.plan import EVERYONE
from benchmarks.worker import Worker
from benchmarks.workloads import EqualPairs, Passages, Workload, texts_for

LOADING = 5.0
"""Seconds to start a process and load a contender, roughly."""
FULL_WIDTH = 768
"""Products of narrower models do not reach the peak."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What was asked for, and the FLOP/s of the machine's fastest products by number format."""

    cache: Path
    peers: Sequence[str]
    peak: dict[str, float]
    smoke: bool = False
    most_turns: int = 5

    def folder(self, model: str) -> Path:
        return model_folder(self.cache, stand_in(model) if self.smoke else model)

    def wanted(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.peers]

    def draw(self, model: str, wanted: Sequence[Passages | EqualPairs]) -> list[Workload]:
        """The texts, counted by the model's tokenizer; few and short for a smoke run."""
        texts = texts_for(self.folder(model))
        return [(spec.small() if self.smoke else spec).draw(texts) for spec in wanted]

    def expected(self, name: str, model: str, lengths: Sequence[int]) -> float:
        """Seconds that the contender will need for pairs of these lengths, roughly."""
        folder = self.folder(model)
        width = min(1.0, read_width(folder) / FULL_WIDTH)
        rate = self.peak["fp32"] * EVERYONE[name].pace * width
        return model_flops(folder, lengths) / rate

    def turns(
        self, names: Sequence[str], model: str, lengths: Sequence[int], *, seconds: float, most: int
    ) -> dict[str, int]:
        """How often each of these contenders takes its turn on pairs of these lengths."""
        each = {name: self.expected(name, model, lengths) for name in names}
        return turns_within(seconds, each, min(most, self.most_turns))

    @contextmanager
    def worker(self, name: str, model: str, left_out: dict[str, str]) -> Iterator[Worker | None]:
        """The contender in a process of its own; None, with the reason, where it cannot run."""
        try:
            worker = Worker(name, self.folder(model))
        except Unavailable as error:
            left_out[name] = str(error)
            yield None
            return
        with worker:
            yield worker


def stand_in(model: str) -> str:
    """The tiny model for a smoke run."""
    return "gemma-tiny" if model.startswith("gemma") else "tiny"


def run_json(module: str, *arguments: str) -> dict[str, Any]:
    """What a module prints as its last line, run in a process of its own."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed
