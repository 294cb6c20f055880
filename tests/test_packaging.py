"""The wheel: what is in it, and what it is in an environment that has nothing but its own needs."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest

from bge_rerank_integrations import load_reranker, load_scorer
from bge_rerank_integrations.tools.export import export_onnx
from tests.remote.serving import serving

ROOT = Path(__file__).resolve().parent.parent
COMPUTES = {"torch", "transformers", "tokenizers", "safetensors", "onnxruntime", "openvino"}
WITH_TORCH = {"local", "transformers", "export", "mteb", "all"}
WITHOUT_TORCH = {
    *("llama-index", "langchain", "langchain-agents", "onnx", "openvino", "offline"),
    *("remote", "socks", "cli", "eval", "ray"),
}


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
    return new_environment(str(wheel), tmp_path_factory.mktemp("bare"))


def new_environment(requirement: str, folder: Path) -> Path:
    """The interpreter of an environment that has this and what it requires, and nothing else."""
    run(sys.executable, "-m", "venv", str(folder / "venv"), folder=folder)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "-c", str(ROOT / "constraints.txt"), requirement, folder=folder)
    return python


@pytest.fixture
def report_size(capsys: pytest.CaptureFixture[str]) -> Callable[[str, Path], float]:
    """Writes the size of an installation into the run's output, and gives it in MB."""

    def report(requirement: str, python: Path) -> float:
        files = python.parent.parent.rglob("*")
        size = sum(f.lstat().st_blocks * 512 for f in files if f.is_file()) / 1e6
        with capsys.disabled():
            sys.stdout.write(f"\npip install {requirement}: {size:.0f} MB\n")
        return size

    return report


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
        models = json.loads(archive.read("bge_rerank_integrations/base/models.json"))
    assert {name.partition("/")[0] for name in names} == {
        "bge_rerank_integrations",
        metadata.partition("/")[0],
    }
    assert "bge_rerank_integrations/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "BAAI/bge-reranker-v2-m3" in [model["id"] for model in models]
    assert described["Requires-Python"] == ">=3.11"
    assert set(described.get_all("Provides-Extra", [])) == WITH_TORCH | WITHOUT_TORCH


@pytest.mark.parametrize("extra", sorted(WITH_TORCH | WITHOUT_TORCH))
def test_pip_finds_what_an_extra_needs_in_a_bare_environment(
    wheel: Path, bare_python: Path, extra: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    pip = (str(bare_python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    constraints = ("-c", str(ROOT / "constraints.txt"))
    wanted = ("--dry-run", "--report", str(report), f"{wheel}[{extra}]")
    run(*pip, *constraints, *wanted, folder=tmp_path)
    found = json.loads(report.read_text(encoding="utf-8"))["install"]
    names = {package["metadata"]["name"].lower() for package in found}
    assert ("torch" in names) == (extra in WITH_TORCH)


def test_numpy_pydantic_and_regex_are_all_it_needs(
    bare_python: Path, tmp_path: Path, report_size: Callable[[str, Path], float]
) -> None:
    assert report_size("bge-rerank-integrations", bare_python) < 150
    installed = installed_in(bare_python, tmp_path)
    brought = {"pydantic_core", "annotated-types", "typing_extensions", "typing-inspection"}
    assert installed - {"pip", "setuptools"} - brought == {
        "bge-rerank-integrations",
        "numpy",
        "pydantic",
        "regex",
    }
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


def installed_in(python: Path, folder: Path) -> set[str]:
    listed = run(str(python), "-m", "pip", "list", "--format=json", folder=folder)
    return {package["name"] for package in json.loads(listed)}


def test_onnx_runtime_needs_no_torch_and_serves_llama_index(
    wheel: Path,
    bert_reranker: Path,
    mean_embedder: Path,
    tmp_path: Path,
    report_size: Callable[[str, Path], float],
) -> None:
    python = new_environment(f"{wheel}[onnx,llama-index]", tmp_path)
    assert report_size("bge-rerank-integrations[onnx,llama-index]", python) < 600
    installed = installed_in(python, tmp_path)
    assert {"onnxruntime", "tokenizers", "huggingface_hub", "llama-index-core"} <= installed
    assert installed.isdisjoint({"torch", "transformers", "safetensors", "onnx"})
    pairs = [("what is a panda?", "The giant panda is a bear."), ("a ship", "")]
    program = """
import json, sys
from bge_rerank_integrations import load_scorer
scorer = load_scorer(sys.argv[1])
print(json.dumps([scorer.score(json.loads(sys.argv[2])).tolist(), str(scorer.plan)]))
"""
    for model in (bert_reranker, mean_embedder):
        folder = export_onnx(str(model), tmp_path / model.name).folder
        command = (str(python), "-W", "error", "-c", program, str(folder), json.dumps(pairs))
        scores, plan = json.loads(run(*command, folder=tmp_path))
        expected = load_scorer(str(model), device="cpu", precision="fp32").score(pairs)
        assert scores == pytest.approx(expected, abs=1e-5)
        assert "backend onnx: torch is not installed" in plan
    passages = ["a ship", "The giant panda is a bear.", "what is a panda?"]
    program = """
import json, sys
from llama_index.core.schema import NodeWithScore, TextNode
from bge_rerank_integrations.llama_index import BGERerank
query, *passages = json.loads(sys.argv[2])
nodes = [NodeWithScore(node=TextNode(text=text)) for text in passages]
found = BGERerank(model=sys.argv[1], top_n=3).postprocess_nodes(nodes, query_str=query)
print(json.dumps([[node.text, node.score] for node in found]))
"""
    folder = tmp_path / bert_reranker.name
    texts = json.dumps(["what is a panda?", *passages])
    shown = json.loads(run(str(python), "-c", program, str(folder), texts, folder=tmp_path))
    results = load_reranker(str(bert_reranker), device="cpu", precision="fp32").rerank(
        "what is a panda?", passages
    )
    assert [text for text, _ in shown] == [passages[result.index] for result in results]
    assert [score for _, score in shown] == pytest.approx(
        [result.score for result in results], abs=1e-5
    )


def test_the_readme_s_command_needs_no_torch(
    wheel: Path, tmp_path: Path, report_size: Callable[[str, Path], float]
) -> None:
    python = new_environment(f"{wheel}[offline,langchain,cli]", tmp_path)
    assert report_size("bge-rerank-integrations[offline,langchain,cli]", python) < 700
    assert installed_in(python, tmp_path).isdisjoint({"torch", "transformers"})
    command = str(python.with_name("bge-rerank"))
    asked = ("rerank", "What do pandas eat?", "Pandas live in China.", "Pandas eat bamboo.")
    shown = run(command, *asked, "--model", "offline", "--top-n", "1", folder=tmp_path)
    assert json.loads(shown)["passage"] == "Pandas eat bamboo."


def test_a_server_asked_from_langchain_needs_no_torch(
    wheel: Path, tmp_path: Path, report_size: Callable[[str, Path], float]
) -> None:
    python = new_environment(f"{wheel}[remote,langchain]", tmp_path)
    assert report_size("bge-rerank-integrations[remote,langchain]", python) < 300
    installed = installed_in(python, tmp_path)
    assert {"httpx2", "langchain-core"} <= installed
    assert installed.isdisjoint(COMPUTES)
    program = """
import json, sys
from langchain_core.documents import Document
from bge_rerank_integrations import MissingExtra
from bge_rerank_integrations.langchain import BGERerank
documents = [Document("a ship"), Document("the giant panda is a bear"), Document("a bear")]
ranked = BGERerank(base_url=sys.argv[1], top_n=2, include_logit=True)
found = ranked.compress_documents(documents, "the giant panda")
print(json.dumps([[one.page_content, one.metadata["rerank_raw_score"]] for one in found]))
try:
    BGERerank().compress_documents(documents, "the giant panda")
except MissingExtra as error:
    print(error)
"""
    with serving("tei") as served:
        ranked, refusal = run(str(python), "-c", program, served.url, folder=tmp_path).splitlines()
    # of the query's three words the best passage has all, the others none; equal ones keep order
    assert json.loads(ranked) == [["the giant panda is a bear", 1.5], ["a ship", -1.5]]
    assert 'pip install "bge-rerank-integrations[local]"' in refusal


@pytest.mark.parametrize(
    ("statement", "extra"),
    [
        ("bge_rerank_integrations.load_scorer('offline')", "offline"),
        ("bge_rerank_integrations.load_scorer('BAAI/bge-reranker-base')", "local"),
        ("bge_rerank_integrations.load_scorer('http://127.0.0.1:9')", "remote"),
        ("bge_rerank_integrations.load_scorer('x/y', backend='onnx')", "onnx"),
        ("bge_rerank_integrations.load_scorer('x/y', backend='openvino')", "openvino"),
        (
            "from bge_rerank_integrations.tools.export import export_onnx; export_onnx('a', 'b')",
            "export",
        ),
        ("import bge_rerank_integrations.llama_index", "llama-index"),
        ("import bge_rerank_integrations.langchain", "langchain"),
        ("import bge_rerank_integrations.langchain_agents", "langchain-agents"),
        ("import bge_rerank_integrations.mteb", "mteb"),
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
