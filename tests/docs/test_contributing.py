"""CONTRIBUTING.md: its files and commands exist, and its steps work.

Each walk does the steps with values, or in a copy of the package.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.errors import RemoteAnswerError
from bge_rerank_integrations.local.checkpoint import open_checkpoint
from bge_rerank_integrations.local.device import plan_device, read_hardware
from bge_rerank_integrations.local.engine import Engine
from bge_rerank_integrations.local.scorer import LocalScorer
from bge_rerank_integrations.local.torch_backend.decoder import Decoder
from bge_rerank_integrations.options import BatchOptions
from bge_rerank_integrations.remote.dialects import Dialect
from bge_rerank_integrations.remote.scorer import RemoteScorer
from tests.docs.test_docs_snippets import ROOT
from tests.local.llm import oracle, tiny_llms
from tests.local.llm.assembly import method_of
from tests.local.llm.test_golden import TOLERANCE
from tests.remote.serving import serving
from tests.remote.stand_ins import StandIn, logit

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
WALKS = ["Add a server protocol", "Add a model family", "Add an option"]
PAIRS = [("what does a fox eat", "a fox eats mice"), ("what does a fox eat", "the sun is far")]


def files(text: str) -> list[str]:
    """The words between backticks that are files or folders of the repository."""
    words = [word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()]
    named = [word for word in words if re.fullmatch(r"[\w./]*/[\w.]+|[A-Z]+\.md", word)]
    return [word for word in named if not word.startswith(".venv/")]


@pytest.mark.parametrize("title", WALKS)
def test_the_steps_are_numbered_and_their_files_exist(title: str) -> None:
    steps = re.findall(r"^(\d+)\. ", SECTIONS[title], re.MULTILINE)
    assert steps == [str(number + 1) for number in range(len(steps))]
    named = files(SECTIONS[title])
    assert len(named) >= 5
    assert [
        name for name in named if not name.startswith(".venv") and not (ROOT / name).exists()
    ] == []


def test_the_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([\w-]+)", TEXT, re.MULTILINE))
    assert {"setup", "check", "test", "test-all", "coverage", "docs", "bench", "lock"} <= named
    assert named <= targets


def test_the_names_in_the_steps_are_in_their_files() -> None:
    found = 0
    for title in WALKS:
        for step in re.split(r"^\d+\. ", SECTIONS[title], flags=re.MULTILINE)[1:]:
            names = [
                n for n in re.findall(r"`(_?[A-Z][A-Z_]*|[A-Z][a-z]\w+)`", step) if "." not in n
            ]
            sources = [name for name in files(step) if name.endswith(".py")]
            if sources and names:
                code = "".join((ROOT / name).read_text("utf-8") for name in sources)
                assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []
                found += len(names)
    assert found >= 10


def test_a_server_protocol_is_a_row_and_a_stand_in() -> None:
    row = Dialect(
        name="made-up",
        path="/v3/relevance",
        scale="logit",
        texts=lambda query, passages: {"question": query, "answers": list(passages)},
        options={"mode": "raw"},
        items=("payload", "matches"),
        index="position",
        score=("value",),
        max_documents=2,
    )
    server = StandIn(
        "/v3/relevance",
        lambda body: (body["question"], body["answers"]),
        lambda items: {"payload": {"matches": items}},
        item=lambda index, score: {"position": index, "value": score},
        raw=("mode", "raw"),
        most=(2, 413),
    )
    pairs = [("the red fox", text) for text in ("a fox", "the sun", "the red fox", "")]
    with serving(server) as served, RemoteScorer(served.url, model="m", dialect=row) as scorer:
        assert scorer.score(pairs).tolist() == [logit(*pair) for pair in pairs]
        assert scorer.name == f"made-up:{served.url}[m]"
        asked = [body for method, _, _, body in served.requests if method == "POST"]
        assert b'"answers"' in asked[-1]
    wrong = replace(row, score=("score",))
    with (
        serving(server) as served,
        RemoteScorer(served.url, model="m", dialect=wrong) as scorer,
        pytest.raises(RemoteAnswerError, match="score"),
    ):
        scorer.score(pairs)


class CappedSilu(oracle._Model):
    """A family that does not exist: Gemma with SiLU and a cap on its logit, in float64."""

    cap = 3.0

    def _activate(self, x: oracle.Array) -> oracle.Array:
        result: oracle.Array = x / (1 + np.exp(-x))
        return result

    def _head(self, x: oracle.Array, layer: int, place: int) -> float:
        logit = super()._head(x, layer, place)
        return self.cap * float(np.tanh(logit / self.cap))


def test_a_model_family_is_a_spec(tmp_path: Path) -> None:
    folder = tiny_llms.build_gemma(tmp_path, seed=7)
    checkpoint = open_checkpoint(str(folder))
    tokenizer, method = method_of(folder)
    spec = replace(method.spec, activation="silu", logit_cap=CappedSilu.cap)
    plan = plan_device(read_hardware(), device="cpu", precision="fp32")
    engine = Engine(
        checkpoint.model, checkpoint.fingerprint, tokenizer, Decoder(checkpoint, plan, spec)
    )
    scorer = LocalScorer(
        engine, replace(method, spec=spec), limits=BatchOptions(), show_progress=False
    )
    model = CappedSilu(folder, oracle.REFERENCE)
    options: dict[str, Any] = {}
    exact = [model.score(*model.ids(*pair, options), options)[0] for pair in PAIRS]
    assert scorer.score(PAIRS) == pytest.approx(exact, abs=TOLERANCE)
    plain = load_scorer(str(folder), device="cpu", precision="fp32").score(PAIRS)
    assert np.abs(plain - exact).max() > 100 * TOLERANCE


NEW_OPTION = """
    favourite_animal: Count = None
    '''A number that is declared once.'''
"""
SEEN_EVERYWHERE = """
import json
from inspect import signature

from typer.testing import CliRunner

from bge_rerank_integrations import InvalidInputError, langchain, llama_index, load
from bge_rerank_integrations.cli import app

given = {}
adapters = langchain.BGERerank, llama_index.BGERerank
for name, place in {"load_scorer": load.load_scorer, "load_reranker": load.load_reranker}.items():
    given[name] = str(signature(place).parameters["favourite_animal"])
    try:
        place("offline", favourite_animal=0)
    except InvalidInputError as error:
        given[f"{name} refuses"] = str(error)
given["adapters"] = [adapter(favourite_animal=7).favourite_animal for adapter in adapters]
shown = CliRunner().invoke(app, ["rerank", "--help"], env={"COLUMNS": "200"}).output
given["help"] = [line for line in shown.splitlines() if "--favourite-animal" in line]
print(json.dumps(given))
"""


def test_an_option_is_one_field(tmp_path: Path) -> None:
    package = tmp_path / "bge_rerank_integrations"
    shutil.copytree(ROOT / package.name, package, ignore=shutil.ignore_patterns("__pycache__"))
    options = package / "options.py"
    head = "class PairOptions(EncodingOptions):\n"
    before, group, after = options.read_text("utf-8").partition(head)
    docstring, blank, fields = after.partition("\n\n")
    written = f"{before}{group}{docstring}\n{NEW_OPTION}{blank}{fields}"
    options.write_text(written, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SEEN_EVERYWHERE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name in ("load_scorer", "load_reranker"):
        assert found[name].startswith("favourite_animal: ")
        assert found[name].endswith(" = None")
        assert "favourite_animal" in found[f"{name} refuses"]
        assert "whole number from 1" in found[f"{name} refuses"]
    assert found["adapters"] == [7, 7]
    (line,) = found["help"]
    assert "A number that is declared once." in line
