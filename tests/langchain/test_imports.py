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


def test_before_langchain_core_1_2_19_langchain_classics_base_is_asked() -> None:
    # as it was then: langchain_core had no such class, langchain_classic had its own
    assert (
        run(
            without("langchain_core.cross_encoders")
            + """
from abc import ABC
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
parent = "langchain_classic.retrievers.document_compressors"
names = ("langchain_classic", "langchain_classic.retrievers", parent, parent + ".cross_encoder")
for name in names:
    sys.modules[name] = module_from_spec(ModuleSpec(name, None, is_package=True))
classic = sys.modules[parent].cross_encoder = sys.modules[parent + ".cross_encoder"]
classic.BaseCrossEncoder = type("BaseCrossEncoder", (ABC,), {})
from bge_rerank_integrations.langchain import BGECrossEncoder
print(isinstance(BGECrossEncoder(), classic.BaseCrossEncoder))
"""
        )
        == "True"
    )


def test_without_either_base_both_classes_still_work() -> None:
    assert (
        run(
            without("langchain_core.cross_encoders", "langchain_classic")
            + """
from bge_rerank_integrations.langchain import BGECrossEncoder, BGERerank
from tests.fakes import WordOverlapScorer
print(BGECrossEncoder(scorer=WordOverlapScorer()).score([("a", "b")]))
print(BGERerank(scorer=WordOverlapScorer()).rerank(["a", "b"], "b", top_n=1)[0]["index"])
"""
        )
        == "[0.5]\n1"
    )
