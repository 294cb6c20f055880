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
class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in {modules}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Missing)
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
BGERerank(), BGECrossEncoder()
print({"torch", "transformers", "langchain_classic", "llama_index"} & set(sys.modules))
"""
    ) == str(set())


def test_before_langchain_core_1_2_19_the_base_is_langchain_classics() -> None:
    # as it was then: langchain_classic defined the class, langchain_core had none
    assert (
        run(
            without("langchain_core.cross_encoders")
            + """
import types
from abc import ABC
classic = "langchain_classic.retrievers.document_compressors.cross_encoder"
for end in (len("langchain_classic"), len("langchain_classic.retrievers"), classic.rindex(".")):
    sys.modules[classic[:end]] = types.ModuleType(classic[:end])
sys.modules[classic] = types.ModuleType(classic)
sys.modules[classic].BaseCrossEncoder = type("BaseCrossEncoder", (ABC,), {})
from bge_rerank_integrations.langchain import BGECrossEncoder
print(issubclass(BGECrossEncoder, sys.modules[classic].BaseCrossEncoder))
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
