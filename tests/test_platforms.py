"""What Windows and macOS bring along, as far as it can be brought about here.

Other console encodings, folders with spaces and other scripts in their names, modules that only
Unix has, and devices that this machine lacks.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.local.device import Hardware, plan_device
from tests.cli.command import json_lines, run

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bge_rerank_integrations"
QUERY = "什么是大熊猫？"
PASSAGES = ["北京是中国的首都。", "大熊猫是中国特有的动物。", "naïve café 😀 Привет"]
ENCODINGS = [
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX", "PYTHONIOENCODING": ""},
]


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my models 模型 é"
    folder.mkdir()
    return folder


@pytest.fixture
def odd_model(odd_folder: Path, reranker_base: Path) -> Path:
    return Path(shutil.copytree(reranker_base, odd_folder / "bge ранкер"))


@pytest.mark.parametrize("variables", ENCODINGS, ids=str)
def test_the_command_in_every_console_encoding(odd_model: Path, variables: dict[str, str]) -> None:
    done = run(
        *("rerank", QUERY.encode(), "--model", os.fsencode(odd_model), "--json"),
        *("--device", "cpu", "--top-n", "3"),
        stdin="\n".join(PASSAGES),
        **variables,
    )
    assert done.returncode == 0, done.stderr
    found = {row["index"]: row["passage"] for row in json_lines(done.stdout)}
    assert found == dict(enumerate(PASSAGES))


@pytest.mark.parametrize("variables", ENCODINGS, ids=str)
def test_an_error_names_the_file_in_every_console_encoding(
    odd_folder: Path, variables: dict[str, str]
) -> None:
    missing = odd_folder / "нет"
    done = run("rerank", "a", "--model", os.fsencode(missing), stdin="b", **variables)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("bge-rerank: no folder")


def test_files_in_folders_of_any_name(odd_model: Path, odd_folder: Path) -> None:
    given = odd_folder / "вход file.txt"
    given.write_text("\n".join(PASSAGES), encoding="utf-8")
    cache = odd_folder / "scores é.db"
    arguments = ["rerank", QUERY, "--model", str(odd_model), "--json", "--device", "cpu"]
    arguments += ["--score-cache", str(cache), "--file", str(given)]
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    assert cache.is_file()
    again = run(*arguments)
    assert json_lines(again.stdout) == json_lines(first.stdout)


def test_a_model_in_a_folder_of_any_name_scores_alike(odd_model: Path, reranker_base: Path) -> None:
    pairs = [(QUERY, passage) for passage in PASSAGES]
    expected = load_scorer(str(reranker_base), device="cpu").score(pairs)
    assert load_scorer(str(odd_model), device="cpu").score(pairs).tolist() == expected.tolist()


UNIX_ONLY = {"fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "posix", "syslog"}
GUARDED = {"fcntl": {"batch/results.py"}}
"""Where one is imported late, by what does not run on Windows."""


def trees() -> list[tuple[str, ast.Module]]:
    return [
        (file.relative_to(PACKAGE).as_posix(), ast.parse(file.read_text(encoding="utf-8")))
        for file in sorted(PACKAGE.rglob("*.py"))
    ]


def test_no_module_needs_unix_to_be_imported() -> None:
    found: dict[str, set[str]] = {}
    for name, tree in trees():
        at_once = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").partition(".")[0]]
            for module in UNIX_ONLY.intersection(names):
                assert id(node) not in at_once, f"{name} needs {module} to be imported"
                found.setdefault(module, set()).add(name)
    assert found == GUARDED


def test_every_text_file_is_opened_with_its_encoding() -> None:
    for name, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called not in ("read_text", "write_text", "NamedTemporaryFile"):
                continue
            assert "encoding" in {keyword.arg for keyword in node.keywords}, (
                f"{name}:{node.lineno} takes the machine's encoding"
            )


def test_processes_without_fork(reranker_base: Path) -> None:
    """On Windows `os` has neither fork nor register_at_fork, and signal no SIGALRM."""
    program = (
        "import os, signal, sys\n"
        "import torch  # of Linux, which registers its own\n"
        "for name in ('fork', 'forkpty', 'register_at_fork', 'killpg'):\n"
        "    delattr(os, name)\n"
        "del signal.SIGALRM\n"
        "from bge_rerank_integrations import load_reranker\n"
        "reranker = load_reranker(sys.argv[1], device='cpu', timeout=60)\n"
        "print([result.index for result in reranker.rerank('panda', ['a', 'panda', 'b'])])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(reranker_base)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)) == [0, 1, 2]


def test_a_mac_uses_its_gpu_only_when_asked() -> None:
    mac = Hardware(cores=8, mps=True)
    plan = plan_device(mac)
    assert (plan.device, plan.precision) == ("cpu", "fp32")
    assert "MPS is there but only used with device='mps'" in str(plan)
    asked = plan_device(mac, device="mps")
    assert (asked.device, asked.precision) == ("mps", "fp32")
    assert plan_device(mac, device="mps", precision="fp16").precision == "fp16"
    assert plan_device(mac, device="mps", precision="bf16").precision == "fp32"
