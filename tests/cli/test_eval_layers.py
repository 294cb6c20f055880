"""`bge-rerank eval --cutoff-layers`: figures that agree with scoring at each layer alone."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.errors import UnreadableInput
from bge_rerank_integrations.evaluate.judged import JudgedQuery, read_beir, read_judged_lines
from bge_rerank_integrations.evaluate.measures import measured, parse_measures
from tests.cli.command import run, to_json_lines
from tests.local.llm import tiny_llms

QUERY = "what is a panda?"
TEXTS = [
    "A panda is a black and white bear.",
    "Water boils at 100 degrees.",
    "A ship of steel floats.",
    "Paris is the capital of France.",
    "Who wrote the first program?",
    "The heart moves blood.",
    "Many people live in Berlin.",
    "大熊猫吃竹子。",
]


@pytest.fixture(scope="module")
def minicpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llms.MODELS["minicpm"](tmp_path_factory.mktemp("minicpm"))


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llms.MODELS["gemma2"](tmp_path_factory.mktemp("gemma2"))


def order(folder: Path, layer: int, query: str = QUERY, **options: Any) -> list[int]:
    """The texts' numbers, the best first, as this layer ranks them when it is asked for alone."""
    scorer = load_scorer(str(folder), device="cpu", cutoff_layers=[layer], **options)
    return [int(n) for n in np.argsort(-scorer.score([(query, text) for text in TEXTS]))]


def judged(folder: Path, good: dict[str, int]) -> Path:
    """A BEIR folder of these queries, each with all texts, of which one is good and comes last."""
    folder.mkdir()
    corpus = [{"_id": f"p{number}", "text": text} for number, text in enumerate(TEXTS)]
    queries = [{"_id": f"q{number}", "text": query} for number, query in enumerate(good)]
    (folder / "corpus.jsonl").write_text(to_json_lines(corpus), encoding="utf-8")
    (folder / "queries.jsonl").write_text(to_json_lines(queries), encoding="utf-8")
    judgements = [f"q{number}\tp{best}\t1\n" for number, best in enumerate(good.values())]
    (folder / "qrels.tsv").write_text("".join(judgements), encoding="utf-8")
    rows = [
        f"q{number} Q0 p{passage} {rank} {-rank} x\n"
        for number, best in enumerate(good.values())
        for rank, passage in enumerate([*(n for n in range(len(TEXTS)) if n != best), best])
    ]
    (folder / "run.trec").write_text("".join(rows), encoding="utf-8")
    return folder


def gain(rank: int) -> float:
    """nDCG@10 of a query whose one good passage stands at this rank, from 1."""
    return 1 / math.log2(rank + 1)


def layers(*arguments: object) -> Any:
    same = ("--device", "cpu", "--measure", "nDCG@10", "--resamples", "100")
    return run("eval", *map(str, arguments), *same)


def ndcg(done: Any) -> list[float]:
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["rerankers"]
    return [reranker["measures"]["nDCG@10"]["value"] for reranker in found]


def test_ndcg_is_that_of_the_textbook() -> None:
    # good passages of grade 2 and 1 at ranks 3 and 1, and one of grade 1 that is no candidate
    one = JudgedQuery("1", "q", dict.fromkeys("abcd", ""), {"a": 0, "b": 2, "c": 1, "z": 1})
    # the only good passage is at rank 11
    two = JudgedQuery("2", "q", {f"p{n}": "" for n in range(11)}, {"p0": 1})
    found = 1 / math.log2(2) + 2 / math.log2(4)
    best = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    orders = [np.array([2, 0, 1, 3]), np.arange(10, -1, -1)]
    (first,), (second,) = measured([one, two], orders, parse_measures(["nDCG@10"]))
    assert first == pytest.approx(found / best)
    assert second == 0


def test_each_layer_is_compared(minicpm: Path, tmp_path: Path) -> None:
    # what layer 3 puts first is good by decree, so layer 3 is perfect
    good = {query: order(minicpm, 3, query)[0] for query in (QUERY, "how do ships float")}
    folder = judged(tmp_path / "data", good)
    each = [part for layer in (8, 3, 5, 3) for part in ("--cutoff-layers", layer)]
    done = layers("--model", minicpm, *each, "--data", folder)
    found = ndcg(done)
    for value, layer in zip(found, (8, 3, 5), strict=True):
        ranks = [order(minicpm, layer, query).index(best) + 1 for query, best in good.items()]
        assert value == pytest.approx(sum(map(gain, ranks)) / 2)
    assert found[1] == 1
    assert found[0] < 1
    report = json.loads(done.stdout)
    assert report["candidates"]["mean"] == len(TEXTS)
    for layer, reranker in zip((8, 3, 5), report["rerankers"], strict=True):
        assert reranker["name"] == f"{minicpm} cutoff_layers=[{layer}]"
        assert reranker["latency"]["median"] > 0


def test_layers_of_a_lightweight_model_score_as_each_does_alone(
    gemma2: Path, tmp_path: Path
) -> None:
    # asked for together, its layers would use other heads
    options: dict[str, Any] = {"compress_ratio": 2, "compress_layers": [2]}
    alone = order(gemma2, 8, **options)
    together = load_scorer(str(gemma2), device="cpu", cutoff_layers=[3, 8], **options)
    mixed = np.argsort(-together.score([(QUERY, text) for text in TEXTS])).tolist()
    good = next(text for text, other in zip(alone, mixed, strict=True) if text != other)
    folder = judged(tmp_path / "data", {QUERY: good})
    command = ("--model", gemma2, "--cutoff-layers", 3, "--cutoff-layers", 8, "--data", folder)
    compress = ("--compress-ratio", 2, "--compress-layers", 2)
    found = ndcg(layers(*command, *compress))
    assert found[0] == pytest.approx(gain(order(gemma2, 3, **options).index(good) + 1))
    assert found[1] == pytest.approx(gain(alone.index(good) + 1))
    by_layer = ndcg(layers(*command, *compress, "--head-indexing", "layer"))
    rank = order(gemma2, 8, head_indexing="layer", **options).index(good) + 1
    assert by_layer[1] == pytest.approx(gain(rank))


def beir(folder: Path) -> Path:
    corpus = [{"_id": f"p{n}", "title": "", "text": text} for n, text in enumerate(TEXTS)]
    corpus[0] |= {"title": "Panda", "text": "It is a bear."}
    queries = [
        {"_id": "q1", "text": QUERY},
        {"_id": "q2", "text": "ships"},
        {"_id": "q3", "text": "?"},
    ]
    (folder / "corpus.jsonl").write_text(to_json_lines(corpus), encoding="utf-8")
    (folder / "queries.jsonl").write_text(to_json_lines(queries), encoding="utf-8")
    (folder / "qrels").mkdir()
    judgements = "query-id\tcorpus-id\tscore\nq1\tp0\t2\nq1\tp7\t1\nq1\tp5\t0\nq2\tp2\t1\n"
    (folder / "qrels" / "test.tsv").write_text(judgements, encoding="utf-8")
    # neither in order of rank nor grouped; q3 has no judgements
    lines = ["q1 Q0 p1 2 0.5 bm25", "q2 Q0 p2 1 3 bm25", "q1 Q0 p0 1 0.9 bm25"]
    lines += ["q3 Q0 p4 1 1 bm25", "q1 Q0 p7 3 0.1 bm25"]
    (folder / "run.bm25.trec").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_a_beir_folder_is_read_as_it_is_published(tmp_path: Path) -> None:
    first, second = read_beir(beir(tmp_path), depth=20)
    assert (first.id, first.text) == ("q1", QUERY)
    assert list(first.candidates.items()) == [
        ("p0", "Panda It is a bear."),
        ("p1", TEXTS[1]),
        ("p7", TEXTS[7]),
    ]
    assert first.grades == {"p0": 2, "p7": 1, "p5": 0}
    assert (second.id, list(second.candidates)) == ("q2", ["p2"])
    whole, _ = read_beir(tmp_path, depth=None)
    assert whole == first
    shallow, _ = read_beir(tmp_path, depth=2)
    assert list(shallow.candidates) == ["p0", "p1"]
    assert shallow.grades == first.grades, "what is judged counts, found or not"


def test_judgements_may_be_in_trec_s_own_form(tmp_path: Path) -> None:
    trec = tmp_path / "qrels.txt"
    trec.write_text("q1 0 p0 2\nq1 0 p7 1\nq1 0 p5 -2\nq2 0 p2 1\nq3 0 p1 1\n", encoding="utf-8")
    found = read_beir(beir(tmp_path), qrels=trec, depth=None)
    assert [query.grades for query in found] == [{"p0": 2, "p7": 1, "p5": -2}, {"p2": 1}, {"p1": 1}]
    run = tmp_path / "other.trec"
    # ranks that say nothing: the scores decide; and nothing was found for q2 and q3
    run.write_text("q1 Q0 p1 0 0.5 x\nq1 Q0 p0 0 0.9 x\n", encoding="utf-8")
    found = read_beir(tmp_path, run, qrels=trec, depth=None)
    assert [list(query.candidates) for query in found] == [["p0", "p1"], [], []]


def test_a_layer_of_a_beir_folder(minicpm: Path, tmp_path: Path) -> None:
    arguments = ("--cutoff-layers", 4, "--data", beir(tmp_path), "--queries", 1)
    done = layers("--model", minicpm, *arguments)
    (value,) = ndcg(done)
    scorer = load_scorer(str(minicpm), device="cpu", cutoff_layers=[4])
    texts = ["Panda It is a bear.", TEXTS[1], TEXTS[7]]
    scores = scorer.score([(QUERY, text) for text in texts])
    ranks = {int(number): rank for rank, number in enumerate(np.argsort(-scores), start=1)}
    found = 2 * gain(ranks[0]) + gain(ranks[2])
    assert value == pytest.approx(found / (2 * gain(1) + gain(2)))
    assert json.loads(done.stdout)["candidates"]["mean"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["8", "--cutoff-layers", "99"], "is [8, 99]; this model scores at layers 2 to 8"),
        (["8", "--compress-ratio", "2"], "options of the lightweight model"),
    ],
    ids=["deep", "compressed"],
)
def test_a_wrong_layer_is_named_before_anything_is_scored(
    minicpm: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    folder = judged(tmp_path / "data", {QUERY: 0})
    done = layers("--model", minicpm, "--data", folder, "--cutoff-layers", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in " ".join(done.stderr.split())
    assert not list(folder.glob("*.sqlite"))


@pytest.mark.parametrize("given", [(), ("--judged", "--data")], ids=["none", "both"])
def test_judged_data_is_given_once(tmp_path: Path, given: tuple[str, ...]) -> None:
    lines = tmp_path / "judged.jsonl"
    lines.write_text("", encoding="utf-8")
    places = {"--judged": str(lines), "--data": str(tmp_path)}
    data = [part for name in given for part in (name, places[name])]
    done = run("calibrate", "--model", "offline", "--out", str(tmp_path / "out.json"), *data)
    assert done.returncode == 2
    assert "either as --data FOLDER or as --judged FILE" in done.stderr


def test_a_model_without_layers_to_choose_is_refused(reranker_base: Path, tmp_path: Path) -> None:
    folder = judged(tmp_path / "data", {QUERY: 0})
    gemma = tiny_llms.MODELS["gemma"](tmp_path)
    for model, said in (
        (reranker_base, "--cutoff-layers"),
        (gemma, "this is a causal model"),
        ("offline", "--cutoff-layers"),
    ):
        done = layers("--model", model, "--cutoff-layers", 3, "--data", folder)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "line 2 of .* is not a judged query"),
        ("{", "line 2 of .* is not JSON"),
        ('{"query": "q", "positive": ["a"]}', "line 2 of .* is not a judged query"),
        ('{"query": 1, "positive": [], "negative": []}', "line 2 of .* is not a judged query"),
        ('{"query": "q", "positive": ["a", 1], "negative": []}', "line 2 of .* not a judged query"),
    ],
)
def test_a_line_that_is_no_judged_query_is_named(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "judged.jsonl"
    right = json.dumps({"query": QUERY, "positive": TEXTS[:1], "negative": TEXTS[1:]})
    file.write_text(f"{right}\n{line}\n", encoding="utf-8")
    with pytest.raises(UnreadableInput, match=said):
        read_judged_lines(file)
    file.write_text("\n\n", encoding="utf-8")
    with pytest.raises(UnreadableInput, match="holds no judged query"):
        read_judged_lines(file)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("qrels/test.tsv", None, "there is no .*qrels.tsv"),
        ("qrels/test.tsv", "q1\tp0\tgood\n", "line 1 of .*test.tsv must have 3 fields, field 3"),
        ("qrels/test.tsv", "q9\tp0\t1\n", "judges query 'q9', which .*queries.jsonl lacks"),
        ("qrels/test.tsv", "q3\tp0\t1\nq3\tp0\t2\n", "line 2 of .* 'p0' for 'q3' a second time"),
        ("qrels/test.tsv", "q1\tp0\n", r"must have 3 fields \(BEIR\) or 4 \(TREC\)"),
        ("run.bm25.trec", "q9 Q0 p0 1 1 x\n", "holds no judged query that has candidates"),
        ("run.bm25.trec", "q1 Q0 p0 1 nan x\n", "line 1 of .*trec must have 6 fields, field 5"),
        ("run.bm25.trec", "q1 Q0 p0 1 1 x\nq1 Q0 p1 2 3 x\n", "query 'q1' one way and scores"),
        ("run.bm25.trec", "q1 Q0 p0 1 3 x\nq1 Q0 p0 2 1 x\n", "a passage of query 'q1' twice"),
        ("run.bm25.trec", None, r"has 0 files \*.trec"),
        ("run.bm25.trec", "q1 p0 1\n", "line 1 of .*trec must have 6 fields, field 4"),
        ("run.bm25.trec", "q1 Q0 p99 1 1 x\n", "names 'p99', which .*corpus.jsonl lacks"),
        ("corpus.jsonl", None, "there is no .*corpus.jsonl"),
        ("corpus.jsonl", '{"_id": "p0"}\n', "line 1 of .*corpus.jsonl must have"),
        ("queries.jsonl", b"\xff\n", "queries.jsonl is not UTF-8"),
    ],
)
def test_a_beir_folder_that_is_damaged_is_named(
    tmp_path: Path, file: str, content: str | bytes | None, said: str
) -> None:
    beir(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UnreadableInput, match=said):
        read_beir(tmp_path, depth=20)
