"""The wheel: what is in it, and what it is in an environment that has nothing but its own needs."""

import json
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation"),
        *("--outdir", str(folder), str(ROOT)),
        folder=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", str(folder / "venv"), folder=folder)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "-c", str(ROOT / "constraints.txt"), str(wheel), folder=folder)
    return python


def run(*command: str, folder: Path) -> str:
    """What the command printed; it runs outside the repository, whose package it must not see."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        described = Parser().parsestr(archive.read(metadata).decode())
        models = json.loads(archive.read("bge_rerank_integrations/models.json"))
    assert {name.partition("/")[0] for name in names} == {
        "bge_rerank_integrations",
        metadata.partition("/")[0],
    }
    assert "bge_rerank_integrations/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "BAAI/bge-reranker-v2-m3" in [model["id"] for model in models]
    assert described["Requires-Python"] == ">=3.11"
    extras = {
        "local",
        "transformers",
        "llama-index",
        "langchain",
        "onnx",
        "openvino",
        "export",
        "offline",
        "cli",
        "eval",
        "remote",
        "ray",
        "all",
    }
    assert set(described.get_all("Provides-Extra", [])) == extras


def test_numpy_is_all_it_needs(bare_python: Path, tmp_path: Path) -> None:
    listed = run(str(bare_python), "-m", "pip", "list", "--format=json", folder=tmp_path)
    installed = {package["name"] for package in json.loads(listed)}
    assert installed - {"pip", "setuptools"} == {"bge-rerank-integrations", "numpy"}
    program = """
import math
import numpy as np
from bge_rerank_integrations import Reranker

class Lengths:
    name, scale = "lengths", "logit"
    def score(self, pairs):
        return np.array([len(passage) for _, passage in pairs], dtype=np.float32)

best, second = Reranker(Lengths()).rerank("query", ["ab", "", "abcd"], top_n=2)
assert (best.index, second.index) == (2, 0)
assert math.isclose(best.score, 1 / (1 + math.exp(-4)))
"""
    run(str(bare_python), "-W", "error", "-c", program, folder=tmp_path)


@pytest.mark.parametrize(
    ("statement", "extra"),
    [
        ("bge_rerank_integrations.load_scorer('offline')", "offline"),
        ("bge_rerank_integrations.load_scorer('BAAI/bge-reranker-base')", "local"),
        ("import bge_rerank_integrations.llama_index", "llama-index"),
        ("import bge_rerank_integrations.langchain", "langchain"),
    ],
)
def test_a_missing_extra_is_named(
    statement: str, extra: str, bare_python: Path, tmp_path: Path
) -> None:
    program = f"""
import bge_rerank_integrations
try:
    {statement}
except bge_rerank_integrations.MissingExtra as error:
    print(error)
"""
    said = run(str(bare_python), "-c", program, folder=tmp_path)
    assert f'pip install "bge-rerank-integrations[{extra}]"' in said
