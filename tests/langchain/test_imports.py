"""What the module needs to be imported; each case in a fresh interpreter."""

import subprocess
import sys

import pytest


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout.strip()


def without(*modules: str) -> str:
    """Program lines after which these cannot be found, as if they were not installed."""
    return f"""
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in {modules} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


@pytest.mark.parametrize("missing", ["langchain_core", "langchain_core.documents"])
def test_without_langchain_the_extra_is_named(missing: str) -> None:
    said = run(
        without(missing)
        + """
from bge_rerank_integrations import MissingExtra
try:
    import bge_rerank_integrations.langchain
except MissingExtra as error:
    print(error.name, error.extra, error, sep="|")
"""
    )
    name, extra, message = said.split("|")
    assert name == missing
    assert extra == "langchain"
    assert 'pip install "bge-rerank-integrations[langchain]"' in message


def test_importing_and_building_loads_no_torch_and_no_langchain_classic() -> None:
    assert run(
        """
import sys
from bge_rerank_integrations.langchain import BGECrossEncoder, BGERerank
BGERerank()
print({"torch", "transformers", "langchain_classic", "llama_index"} & set(sys.modules))
"""
    ) == str(set())
