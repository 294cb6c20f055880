"""Model folders with one hostile value, tensor or file: the reference's score, or a typed error.

    python -m tests.campaigns.folders --size 100000 --seed 1

There is one case for each subject, each key of each of its JSON files and each hostile value; for
each tensor and each hostile shape or number format; and for each file and each way to damage it.
The size bounds the number of cases, which the seed chooses: each key, tensor and file once, then a
second time with another value, and so on. 25 run in one process, and each is given 10 seconds of a
processor and 1 GB more of address space. Passes if each ends in the score of the reference for the
changed folder, or in an error of this package other than for want of memory. Where the reference
refuses the folder, the score must be the one before.
"""

import json
import math
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from bge_rerank_integrations import OutOfMemoryError, RerankError, load_scorer
from bge_rerank_integrations.local import st_config
from bge_rerank_integrations.tools.export import export_onnx
from bge_rerank_integrations.types import Pair
from tests import tiny_models
from tests.base.forking import WATCHDOG_SECONDS, in_child
from tests.campaigns.command import run_campaign, time_is_up
from tests.folders import test_key_flips, test_sentence_transformers
from tests.folders.architectures import build_model, write_folder
from tests.folders.test_config import HOSTILE
from tests.folders.test_key_flips import GONE
from tests.folders.test_tokenizers import FLIPPED, ROLES
from tests.folders.test_weights import DAMAGES
from tests.local.llm import oracle

PLAIN: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
SECONDS, MEMORY = 10, 2**30
TOGETHER = 25
TOLERANCE = 2e-5
VALUES = [*HOSTILE, GONE, True, 10**400, 1e-45, "</s>", "../../x", [None] * 9, "x" * 100_000]
# values that the places inside a tokenizer.json or a module list get: fewer, for there are many
FEW: list[Any] = [GONE, None, True, -1, 10**30, "x", [], {"x": [1]}]
FORMATS = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool)
DEEP = "[" * 100_000
CONTENTS: dict[str, bytes | None] = {
    "missing": None, "empty": b"", "cut": b'{"a": 1', "deep": DEEP.encode(), "a list": b"[7]",
    "no UTF-8": b'{"a": "\xff"}', "a huge number": b'{"a": ' + b"9" * 5000 + b"}",
    "a null byte": b"\0", "two byte orders": b"\xff\xfe{\0}\0", "no object": b'"x"',
}  # fmt: skip
FLIP_PAIRS = test_key_flips.PAIRS
CONFIG, TOKENIZER, TOKENS = "config.json", "tokenizer.json", "tokenizer_config.json"
NOT_ENTERED = {"vocab", "merges", "precompiled_charsmap", "added_tokens_decoder"}


@dataclass(frozen=True)
class Subject:
    """A folder, what the reference makes of a changed one, and which files are changed."""

    build: Callable[[Path], object]
    scores: Callable[[Path, Path], list[float]] | None
    """None where no library reads such a folder: then nothing may change the scores."""
    keys: dict[str, list[str]]
    """Names of files, each with the keys that it may have besides its own."""
    pairs: list[Pair]
    options: dict[str, Any] = field(default_factory=dict)


class Case(NamedTuple):
    """One change: in a JSON file at a path of keys, of a tensor in a file, or of a whole file."""

    subject: str
    file: str
    place: tuple[Any, ...]
    value: Any


def campaign(size: int, seed: int, *names: str) -> Counter[str]:
    """The number of cases by outcome; raises `AssertionError`, with all of them, for failures."""
    counts: Counter[str] = Counter()
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        bases = {name: Path(folder) / name for name in names or SUBJECTS}
        for name, base in bases.items():
            base.mkdir()
            SUBJECTS[name].build(base)
        cases = [case for name, base in bases.items() for case in cases_of(name, base)]
        random.Random(seed).shuffle(cases)
        cases = _each_place_first(cases)
        before = {
            name: json.loads(in_child(partial(_base, name, base))) for name, base in bases.items()
        }
        chosen = cases[:size]
        for start in range(0, len(chosen), TOGETHER):
            if time_is_up():
                break
            group = chosen[start : start + TOGETHER]
            for case, outcome in zip(group, _outcomes(group, bases, before), strict=True):
                counts["cases"] += 1
                if outcome.startswith("failed"):
                    failed.append(f"{str(case)[:300]}: {outcome}")
                    sys.stderr.write(f"{failed[-1]}\n")
                else:
                    counts[outcome] += 1
    assert not failed, "\n".join(failed)
    return counts


def _outcomes(
    cases: list[Case], bases: dict[str, Path], before: dict[str, list[float]]
) -> list[str]:
    """The outcome of each case, in a process of their own; each by itself if that process dies."""

    def run_all() -> str:
        with tempfile.TemporaryDirectory() as written:
            return json.dumps([
                _run(case, bases[case.subject], Path(written) / str(place), before[case.subject])
                for place, case in enumerate(cases)
            ])  # fmt: skip

    try:
        found: list[str] = json.loads(in_child(run_all))
    except (AssertionError, ValueError) as error:
        if len(cases) == 1:
            return [f"failed: the process died of it ({error})"]
        return [outcome for case in cases for outcome in _outcomes([case], bases, before)]
    return found


def cases_of(name: str, base: Path) -> Iterator[Case]:
    """Every case of a subject."""
    for file, extra in SUBJECTS[name].keys.items():
        content = _content(base / file)
        listed = content if isinstance(content, dict) else {}
        for key in {**listed, **dict.fromkeys(extra)}:
            yield from (Case(name, file, (key,), value) for value in VALUES)
        for place in _places(content):
            if len(place) > 1 or not listed:
                yield from (Case(name, file, place, value) for value in FEW)
        yield from (Case(name, file, (), content) for content in CONTENTS)
    for path in sorted(base.rglob("*.safetensors")):
        file = path.relative_to(base).as_posix()
        yield from (Case(name, file, (), content) for content in CONTENTS)
        for tensor in load_file(path):
            yield from (
                Case(name, file, (tensor,), change) for change in (*DAMAGES, *FORMATS, GONE)
            )


def _each_place_first(cases: list[Case]) -> list[Case]:
    """Each key, tensor and file once, before any comes a second time with another value."""
    times: Counter[tuple[Any, ...]] = Counter()

    def turn(case: Case) -> int:
        times[case[:3]] += 1
        return times[case[:3]]

    return sorted(cases, key=turn)


def _content(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, ...]]:
    """Where each value inside is; of a list, the first entries alone."""
    if not isinstance(value, dict | list) or depth > 6:
        return
    keys = list(value) if isinstance(value, dict) else range(min(3, len(value)))
    for key in keys:
        yield (key,)
        if key not in NOT_ENTERED:
            yield from ((key, *rest) for rest in _places(value[key], depth + 1))


def _run(case: Case, base: Path, folder: Path, before: list[float]) -> str:
    """The outcome of a case, within the limits."""
    if not _change(case, base, folder):
        return "same as before"
    _limit()
    subject = SUBJECTS[case.subject]
    try:
        found = _score(subject, folder)
    except OutOfMemoryError as error:
        return f"failed: {error}"
    except RerankError as error:
        return (
            "typed errors" if len(str(error)) <= 4000 else f"failed: {len(str(error))} characters"
        )
    except BaseException:  # noqa: BLE001 - this is what the campaign looks for
        return f"failed: {traceback.format_exc()}"
    try:
        expected, outcome = _reference(subject, folder, base), "scores of the reference"
    except Exception:  # noqa: BLE001 - whatever a library raises for such a folder
        expected, outcome = before, "scores as before, where the reference gives none"
    close = np.allclose(found, expected, rtol=0, atol=TOLERANCE)
    return outcome if close else f"failed: {found} instead of {expected}"


def _base(name: str, base: Path) -> str:
    subject = SUBJECTS[name]
    found = _score(subject, base)
    if subject.scores is not None:
        expected = _reference(subject, base, base)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    return json.dumps(found)


def _reference(subject: Subject, folder: Path, base: Path) -> list[float]:
    """The library's scores; raises whatever it raises, and an error after half a minute."""
    if subject.scores is None:
        raise LookupError("no library reads it")
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    before = signal.signal(signal.SIGALRM, _end)
    signal.alarm(30)
    try:
        with torch.inference_mode():
            return subject.scores(folder, base)
    finally:
        signal.alarm(WATCHDOG_SECONDS)
        signal.signal(signal.SIGALRM, before)


def _end(*_: object) -> None:
    raise TimeoutError


def _score(subject: Subject, folder: Path) -> list[float]:
    with load_scorer(str(folder), **PLAIN | subject.options) as scorer:
        found: list[float] = scorer.score(subject.pairs).tolist()
        return found


def _limit() -> None:
    """Let this process have `SECONDS` and `MEMORY` more than it has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        memory = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))


def _change(case: Case, base: Path, folder: Path) -> bool:
    """Write the changed folder, whose other files are links; False where nothing changes."""
    for path in base.rglob("*"):
        name = path.relative_to(base)
        if path.is_file() and name.as_posix() != case.file:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path)
    source, target = base / case.file, folder / case.file
    target.parent.mkdir(parents=True, exist_ok=True)
    if not case.place:
        content = CONTENTS[case.value]
        if content is not None:
            target.write_bytes(content)
        return True
    if source.suffix == ".safetensors":
        return _change_tensor(source, target, case.place[0], case.value)
    content = _content(source)
    inside, last = content, case.place[-1]
    for key in case.place[:-1]:
        inside = inside[key]
    if case.value != GONE:
        inside[last] = case.value
    elif isinstance(inside, list) or last in inside:
        del inside[last]
    target.write_text(json.dumps(content), encoding="utf-8")
    return True


def _change_tensor(source: Path, target: Path, name: str, change: Any) -> bool:
    tensors: dict[str, Tensor] = load_file(source)
    was = tensors.pop(name)
    if isinstance(change, torch.dtype):
        tensors[name] = was.to(change)
    elif change != GONE:
        tensors[name] = DAMAGES[change](was).contiguous()
    save_file(tensors, target, metadata={"format": "pt"})
    now = tensors.get(name)
    return now is None or (now.shape, now.dtype) != (was.shape, was.dtype)


def _with_tokens_of(folder: Path, base: Path, name: str) -> list[float]:
    """The scores of an LLM; where its tokenizer has changed, of the ids that transformers gives."""
    if folder == base or all((folder / file).is_symlink() for file in (TOKENIZER, TOKENS)):
        return FLIPS[name].scores(folder, base)
    auto = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = oracle._Model(folder, oracle.REFERENCE)
    model.tokenizer = SimpleNamespace(  # type: ignore[assignment]
        encode=lambda text, **options: SimpleNamespace(ids=auto(text, **options)["input_ids"])
    )
    return [model.score(*model.ids(*pair, {}), {})[-1] for pair in FLIP_PAIRS]


def build_distilbert(folder: Path) -> None:
    """A classifier that runs through transformers' own forward."""
    tokens = folder / "tokens"
    tokens.mkdir()
    tiny_models.build_bert_reranker(tokens)
    size = json.loads((tokens / CONFIG).read_text(encoding="utf-8"))["vocab_size"]
    model = build_model("distilbert", vocab_size=size, pad_token_id=0, num_labels=1)
    write_folder(model, tokens, folder)
    shutil.rmtree(tokens)


def _build_dense(folder: Path) -> None:
    embedder = folder / "embedder"
    embedder.mkdir()
    tiny_models.build_bge_embedder(embedder)
    test_sentence_transformers.build_dense_reranker(embedder, folder)
    shutil.rmtree(embedder)


def build_graph(folder: Path) -> None:
    """A reranker's graph for ONNX Runtime, without its weights."""
    source = folder / "source"
    source.mkdir()
    tiny_models.build_bert_reranker(source)
    export_onnx(str(source), folder / "graph", dtype="fp32")
    shutil.rmtree(source)
    for path in (folder / "graph").iterdir():
        path.rename(folder / path.name)


FLIPS = test_key_flips.SUBJECTS
_TOKENS: dict[str, list[str]] = {TOKENIZER: [], TOKENS: FLIPPED}
_ST, _TRANSFORMER = test_sentence_transformers.ST, test_sentence_transformers.BERT
_MODULES: dict[str, list[str]] = {
    "modules.json": [],
    _ST: [*st_config.SETTINGS_KEYS],
    _TRANSFORMER: [*st_config.TRANSFORMER_KEYS, "transformer_task", "modality_config"],
    "1_Pooling/config.json": [*st_config.MODULE_KEYS["Pooling"]],
}
_DENSE = [*st_config.MODULE_KEYS["Dense"]]


def _flipped(name: str, files: Mapping[str, list[str]]) -> Subject:
    """A subject of the test that flips keys, with these files besides its config.json."""
    kind, scores = FLIPS[name], FLIPS[name].scores
    if TOKENIZER in files and name not in ("bert", "xlmr"):
        scores = partial(_with_tokens_of, name=name)
    return Subject(kind.build, scores, {CONFIG: [*kind.keys], **files}, FLIP_PAIRS)


def _modules(
    build: Callable[[Path], object],
    scores: Callable[[Path], list[float]],
    files: Mapping[str, list[str]],
    **options: Any,
) -> Subject:
    """A subject with modules of sentence-transformers, whose own scores are the reference's."""
    pairs = test_sentence_transformers.PAIRS
    return Subject(build, lambda folder, _: scores(folder), {**_MODULES, **files}, pairs, options)


SUBJECTS = {
    "bert": _flipped("bert", {**_TOKENS, "special_tokens_map.json": [*ROLES]}),
    "xlmr": _flipped("xlmr", _TOKENS),
    "gemma": _flipped("gemma", _TOKENS),
    "minicpm": _flipped("minicpm", _TOKENS),
    "gemma2": _flipped("gemma2", {}),
    "embedder": _modules(
        tiny_models.build_bge_embedder,
        test_sentence_transformers.similarities,
        {"2_Normalize/config.json": [*st_config.MODULE_KEYS["Normalize"]]},
    ),
    "dense": _modules(
        _build_dense,
        test_sentence_transformers.logits,
        {
            "2_Dense/config.json": _DENSE,
            "3_LayerNorm/config.json": [],
            "4_Dense/config.json": _DENSE,
        },
    ),
    "distilbert": Subject(
        build_distilbert, test_key_flips.logits, {CONFIG: [*FLIPS["bert"].keys]}, FLIP_PAIRS
    ),
    "graph": Subject(
        build_graph, None, {CONFIG: [*FLIPS["bert"].keys]}, FLIP_PAIRS, {"backend": "onnx"}
    ),
}


if __name__ == "__main__":
    run_campaign("folders", campaign, size=100_000)
