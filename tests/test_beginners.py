"""Mistakes of a first day, in both adapters and in the shell.

Each message names the wrong value and the remedy, and for a misspelt name the nearest right one.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import ValidationError

from bge_rerank_integrations import MissingExtra, RerankError, UnsupportedModel, load_scorer
from bge_rerank_integrations.langchain import BGEEmbeddings
from bge_rerank_integrations.langchain import BGERerank as Compressor
from bge_rerank_integrations.llama_index import BGEEmbedding
from bge_rerank_integrations.llama_index import BGERerank as Postprocessor
from tests.cli.command import COMMAND, ENVIRONMENT, run, to_json_lines

QUERY, TEXT = "what is a panda?", "a bear"


def rank_nodes(nodes: Any = (TEXT,), query: Any = QUERY, **options: Any) -> Sequence[Any]:
    if not isinstance(nodes, str):
        nodes = [NodeWithScore(node=TextNode(text=text)) for text in nodes]
    return Postprocessor(**options).postprocess_nodes(nodes, query_str=query)


def rank_documents(documents: Any = (TEXT,), query: Any = QUERY, **options: Any) -> Sequence[Any]:
    if not isinstance(documents, str):
        documents = [Document(text) for text in documents]
    return Compressor(**options).compress_documents(documents, query)


class Mistake(NamedTuple):
    options: dict[str, Any]  # of an adapter; {} is the folder of the test
    said: str
    arguments: str  # of the shell's `rerank`
    shown: str
    code: int = 2


NO_HUB = {"local_files_only": True, "cache_dir": "{}"}
NO_HUB_SHELL = "--local-files-only --cache-dir {}"
MISTAKES = {
    "an option misspelt": Mistake(
        {"max_lenght": 64},
        "BGERerank has no option 'max_lenght'; did you mean max_length?",
        "--max-lenght 64",
        "No such option: --max-lenght (Possible options: --max-length",
    ),
    "top_k": Mistake(
        {"top_k": 3},
        "BGERerank has no option 'top_k'; did you mean top_n?",
        "--top-k 3",
        "No such option: --top-k (Possible options: --top-n)",
    ),
    "a number in words": Mistake(
        {"top_n": "three"},
        "top_n is 'three'; it must be a whole number from 1, or None",
        "--top-n three",
        "bge-rerank: --top-n is 'three'; it must be a whole number from 1$",
    ),
    "a model misspelt": Mistake(
        {"model": "bge-reranker-base", **NO_HUB},
        "bge-reranker-base is not in the cache .* Did you mean BAAI/bge-reranker-base?",
        f"--model bge-reranker-base {NO_HUB_SHELL}",
        "bge-reranker-base is not in the cache .* Did you mean BAAI/bge-reranker-base?",
        code=1,
    ),
    "no hub": Mistake(
        {"model": "BAAI/bge-reranker-base", **NO_HUB},
        "BAAI/bge-reranker-base is not in the cache .* Set HF_ENDPOINT to a mirror; or download "
        'the model .* ModelScope, and give its folder; or use model="offline"',
        f"--model BAAI/bge-reranker-base {NO_HUB_SHELL}",
        "BAAI/bge-reranker-base is not in the cache .* or use --model offline",
        code=1,
    ),
    "a device that is not there": Mistake(  # said before the model is looked for
        {"device": "gpu", "model": "BAAI/bge-reranker-base", **NO_HUB},
        "device 'gpu' is not available here; available: cpu",
        f"--device gpu --model BAAI/bge-reranker-base {NO_HUB_SHELL}",
        "device 'gpu' is not available here; available: cpu",
    ),
    "a device of another backend": Mistake(
        {"device": "cuda", "model": "offline"},
        "device is 'cuda'; 'offline' runs on the CPU only: leave device out, or use BAAI/",
        "--device cuda --model offline",
        "--device is 'cuda'; 'offline' runs on the CPU only: leave --device out, or use BAAI/",
    ),
    "a file for the model's folder": Mistake(
        {"model": "{}/notes.txt"},
        "{}/notes.txt is a file; a model is a folder: give {}$",
        "--model {}/notes.txt",
        "{}/notes.txt is a file; a model is a folder: give {}$",
        code=1,
    ),
    "a folder that is not there": Mistake(
        {"model": "./nowhere"},
        "no folder nowhere .looked for it in ",
        "--model ./nowhere",
        "no folder nowhere .looked for it in ",
        code=1,
    ),
    "a folder without a model": Mistake(
        {"model": "{}"},
        "{} has no config.json",
        "--model {}",
        "{} has no config.json",
        code=1,
    ),
    "broken JSON in the model": Mistake(
        {"model": "{}/broken"},
        "{}/broken/config.json is damaged: .*line 1 column 2",
        "--model {}/broken",
        "{}/broken/config.json is damaged: .*line 1 column 2",
        code=1,
    ),
    "an address without http": Mistake(
        {"base_url": "localhost:8080"},
        "base_url, .* http:// or https:// is missing; valid addresses are http://host:port",
        "--url localhost:8080",
        "--url, .* http:// or https:// is missing; valid addresses are http://host:port",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text("a bear\n", encoding="utf-8")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{", encoding="utf-8")
    return tmp_path


def assert_says(said: str, expected: str, folder: Path) -> None:
    pattern = re.sub(r"[()?]", r"\\\g<0>", expected).replace("{}", re.escape(str(folder)))
    assert re.search(pattern, " ".join(said.split())), said


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("adapter", [rank_nodes, rank_documents])
def test_a_mistake_in_an_adapter(adapter: Any, mistake: Mistake, folder: Path) -> None:
    options = {
        name: value.replace("{}", str(folder)) if isinstance(value, str) else value
        for name, value in mistake.options.items()
    }
    with pytest.raises((ValidationError, RerankError)) as refused:
        adapter(**options)
    said = str(refused.value)
    if isinstance(refused.value, ValidationError):
        said = refused.value.errors()[0]["msg"]
    assert_says(said, mistake.said, folder)


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_shell(mistake: Mistake, folder: Path) -> None:
    done = run("rerank", QUERY, TEXT, *mistake.arguments.replace("{}", str(folder)).split())
    assert (done.returncode, done.stdout) == (mistake.code, "")
    assert "Traceback" not in done.stderr
    assert_says(done.stderr, mistake.shown, folder)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: rank_nodes(TEXT), "nodes is str; pass a list of NodeWithScore, [] for none"),
        (lambda: rank_documents(TEXT), "documents is str; pass a list of Document, [] for none"),
        (
            lambda: Postprocessor().postprocess_nodes([TEXT], query_str=QUERY),  # type: ignore[list-item]
            "the item at position 0 is str, not a NodeWithScore of llama_index; wrap",
        ),
        (
            lambda: Compressor().compress_documents([TEXT], QUERY),  # type: ignore[list-item]
            "str, not a Document of langchain_core; wrap a text as Document(page_content=text)",
        ),
        (lambda: rank_nodes(query=None), "the query is NoneType; .* pass query_str='...'"),
        (lambda: rank_documents(query=None), "no query was given"),
        (lambda: Postprocessor("offline"), "takes its options by name: model='offline'"),  # type: ignore[arg-type, call-arg]
        (lambda: Compressor("offline"), "takes its options by name: model='offline'"),  # type: ignore[call-arg]
    ],
)
def test_a_mistake_in_a_call(call: Any, said: str, folder: Path) -> None:
    with pytest.raises(RerankError) as refused:
        call()
    assert_says(str(refused.value), re.sub(r"\[\]", r"\\[\\]", said), folder)


def test_an_embedding_model_ranks_by_its_cosines_and_a_reranker_has_no_vectors(
    bge_embedder: Path, reranker_base: Path
) -> None:
    texts = [TEXT, "a giant panda"]
    pairs = [(QUERY, text) for text in texts]
    cosines = dict(zip(texts, load_scorer(bge_embedder, device="cpu").score(pairs), strict=True))
    nodes = rank_nodes(texts, model=str(bge_embedder), device="cpu")
    documents = rank_documents(texts, model=str(bge_embedder), device="cpu")
    assert {node.text: node.score for node in nodes} == pytest.approx(cosines, abs=1e-6)
    assert {
        document.page_content: document.metadata["relevance_score"] for document in documents
    } == pytest.approx(cosines, abs=1e-6)
    for embed in (
        BGEEmbedding(model=str(reranker_base), device="cpu").get_query_embedding,
        BGEEmbeddings(model=str(reranker_base), device="cpu").embed_query,
    ):
        with pytest.raises(UnsupportedModel, match="has no vectors; use an embedder"):
            embed(QUERY)


def test_a_library_that_is_not_installed_is_named_with_its_extra() -> None:
    program = """
import sys
from importlib import import_module
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        missing = name.split(".")[0] in ("torch", "typer", "langchain_core", "llama_index")
        return None if missing else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
from bge_rerank_integrations import MissingExtra, load_reranker

for call in (
    lambda: load_reranker("BAAI/bge-reranker-base", backend="torch"),
    lambda: import_module("bge_rerank_integrations.llama_index"),
    lambda: import_module("bge_rerank_integrations.langchain"),
    lambda: import_module("bge_rerank_integrations.cli"),
):
    try:
        call()
    except (MissingExtra, SystemExit) as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    extras = {"torch": "local", "llama_index": "llama-index", "langchain_core": "langchain"}
    assert len(said) == 4
    for line, (library, extra) in zip(said, [*extras.items(), ("typer", "cli")], strict=True):
        assert library in line
        assert f'pip install "bge-rerank-integrations[{extra}]"' in line
    assert "model='offline'" in said[0]
    assert said[3].startswith("bge-rerank: ")
    assert issubclass(MissingExtra, ImportError)


@pytest.mark.parametrize(
    ("arguments", "stdin", "shown"),
    [
        (("rernk",), "", "No such command 'rernk'. Did you mean 'rerank'?"),
        (("--file", "{}"), "", "Invalid value for '--file': file '{}' is a directory"),
        (("--file", "{}/nowhere"), "", "Invalid value for '--file': file '{}/nowhere' does not"),
        (("--jsonl",), '{"passage": "a"}\n{"passage"\n', "line 2 of standard input"),
    ],
    ids=["a command misspelt", "a folder for a file", "a file that is not there", "broken JSON"],
)
def test_a_mistake_in_the_shell_alone(
    arguments: tuple[str, ...], stdin: str, shown: str, folder: Path
) -> None:
    given = [argument.replace("{}", str(folder)) for argument in arguments]
    command = given if given[0] == "rernk" else ["rerank", QUERY, "--model", "offline", *given]
    done = run(*command, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert_says(done.stderr, shown, folder)


def test_a_pipe_that_is_closed_early_is_no_error(folder: Path) -> None:
    request = {"query": "q", "passages": ["a bear"], "padding": "x" * 10_000}
    file = folder / "requests.jsonl"
    file.write_text(to_json_lines([request] * 100), encoding="utf-8")
    process = subprocess.Popen(
        [*COMMAND, "rerank", "--file", str(file), "--model", "offline"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        assert json.loads(process.stdout.readline())["query"] == "q"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to every process of a console")
def test_ctrl_c_ends_the_command_without_a_traceback() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # which a child would inherit
        signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*COMMAND, "rerank", "--model", "offline"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdin.write(to_json_lines([{"query": "q", "passages": ["a"]}]).encode())
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["query"] == "q"
        process.send_signal(signal.SIGINT)
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 130
