"""The races' texts and arithmetic are right, and docs/speed.md says what was stored.

Nothing is timed here.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.callers import wrong_answers
from benchmarks.charts import CHARTS
from benchmarks.measures import (
    decoder_flops,
    encoder_flops,
    order_agreement,
    quantile,
    ratios,
    sigmoid,
    turns_within,
)
from benchmarks.overhead import KnownScores, calls_around
from benchmarks.peers import OURS, OURS_BF16, REFERENCE
from benchmarks.plan import EVERYONE, PARTS, Callers, ColdStart, Race
from benchmarks.quiet import ProcessorTime, busy_seconds, share_of_others
from benchmarks.report import DOCUMENT, as_markdown, fill
from benchmarks.results import RESULTS, save_part, stored
from benchmarks.tables import part_tables, summary_table
from benchmarks.turns import compare
from benchmarks.worker import serve_many
from benchmarks.workloads import LONGEST, EqualPairs, Passages, Texts, read_lines
from bge_rerank_integrations import Pair, Scorer


def texts(seed: int = 0) -> Texts:
    """Every word is one token, and a pair has four control tokens."""
    return Texts(lambda word: 1, 4, seed=seed)


def test_a_workload_has_the_passages_and_lengths_it_says() -> None:
    drawn = texts().workload("w", 200, mean=80, spread=0.45)
    words = [len(passage.split()) for passage in drawn.passages]
    around = 4 + len(drawn.query.split())
    assert len(drawn.pairs) == 200
    assert all(query == drawn.query for query, _ in drawn.pairs)
    assert drawn.query in read_lines("queries")
    assert drawn.lengths == tuple(around + number for number in words)
    # the mean of 200 draws is off by 80 * 0.47 / sqrt(200) = 2.7 on average
    assert sum(words) / 200 == pytest.approx(80, abs=9)
    assert min(words) < 50
    assert 150 < max(words) <= LONGEST


def test_no_spread_makes_all_passages_equal() -> None:
    drawn = texts().workload("w", 5, mean=30, spread=0)
    assert [len(passage.split()) for passage in drawn.passages] == [30] * 5


def test_equal_pairs_fill_their_length() -> None:
    assert texts().equal_pairs(3, pair_tokens=64).lengths == (64, 64, 64)
    # words of two tokens: one token may be left over
    two = Texts(lambda word: 2, 4).equal_pairs(3, pair_tokens=65)
    assert two.lengths == (64, 64, 64)


def test_the_seed_alone_decides_the_texts() -> None:
    assert texts().workload("w", 9, mean=20, spread=0.4) == texts().workload(
        "w", 9, mean=20, spread=0.4
    )
    other = texts(seed=1).workload("w", 9, mean=20, spread=0.4)
    assert other.passages != texts().workload("w", 9, mean=20, spread=0.4).passages


def test_ratios_are_of_medians_to_ours() -> None:
    seconds = {"ours": [2.0, 9.0, 1.0], "other": [5.0, 4.0, 100.0]}
    assert ratios(seconds, "ours") == {"ours": 1.0, "other": 2.5}
    # of an even number of rounds the median is the middle of the two in the middle
    assert ratios({"ours": [1.0, 3.0], "other": [3.0, 5.0]}, "ours")["other"] == 2.0
    assert ratios({"other": [1.0]}, "ours") == {}


def test_quantiles_are_values_that_occurred() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [quantile(values, share) for share in (0.0, 0.2, 0.5, 0.95, 1.0)] == [1, 1, 3, 5, 5]


def test_order_agreement_is_kendall_s_tau() -> None:
    reference = np.array([1.0, 2.0, 3.0, 4.0])
    assert order_agreement(reference * 10, reference) == 1.0
    assert order_agreement(-reference, reference) == -1.0
    # one of six pairs the other way round: (5 - 1) / 6
    swapped = np.array([2.0, 1.0, 3.0, 4.0])
    assert order_agreement(swapped, reference) == pytest.approx(4 / 6)
    # passages that the reference scores alike have no order to agree on
    near = np.array([1.0, 1.00001, 3.0, 4.0])
    assert order_agreement(swapped, near, tolerance=1e-4) == 1.0
    assert order_agreement(swapped, np.ones(4)) == 1.0


def test_flops_of_a_layer_by_hand() -> None:
    # 5 tokens through four 2x2 and two 2x3 matrices, two operations each; attention of lengths
    # 2 and 3: scores and mixing, 2 * 2 * hidden for each of the 4 + 9 pairs of tokens
    one_layer = 2 * 5 * (4 * 4 + 2 * 6) + 2 * 2 * 2 * (4 + 9)
    assert encoder_flops(2, 1, 3, [2, 3]) == one_layer
    assert encoder_flops(2, 7, 3, [2, 3]) == 7 * one_layer


def test_a_logit_as_a_probability() -> None:
    assert sigmoid(np.array([0.0, math.log(3)])).tolist() == pytest.approx([0.5, 0.75])


def test_tau_of_many_scores_equals_its_definition() -> None:
    draw = np.random.default_rng(0)
    scores, reference = draw.random(60), draw.random(60)
    pairs = [(i, j) for i in range(60) for j in range(i)]
    agree = sum((scores[i] > scores[j]) == (reference[i] > reference[j]) for i, j in pairs)
    tau = (2 * agree - len(pairs)) / len(pairs)
    assert order_agreement(scores, reference) == pytest.approx(tau)


def test_flops_of_a_gemma_by_hand() -> None:
    config = {
        "hidden_size": 4,
        "intermediate_size": 5,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 2,
        "num_hidden_layers": 7,
    }
    # queries and output 4x6 each, keys and values 4x2 each, three 4x5 of the feed-forward network
    weights = 2 * 24 + 2 * 8 + 3 * 20
    # attention is 3 heads of 2 wide, over the 9 + 4 pairs of tokens, scores and mixing
    assert decoder_flops(config, [3, 2]) == 7 * (2 * 5 * weights + 2 * 2 * 6 * 13)


def test_slow_contenders_have_fewer_turns() -> None:
    # 60 seconds for three: 20 each
    turns = turns_within(60, {"fast": 1.0, "slow": 9.0, "slowest": 100.0}, 5)
    assert turns == {"fast": 5, "slow": 2, "slowest": 1}


def test_a_smoke_run_is_small() -> None:
    assert Passages(100, 80).small() == Passages(8, 30)
    assert Passages(3, 20, 0.2).small() == Passages(3, 20, 0.2)
    assert EqualPairs(1, 8192).small() == EqualPairs(1, 64)
    drawn = Passages(2000, 12, 0).draw(texts())
    assert drawn.name == "2,000 passages of about 12 tokens"
    assert len(drawn.passages) == 2000


@pytest.mark.parametrize("part", PARTS.values(), ids=list(PARTS))
def test_every_part_names_contenders_that_there_are(part: Any) -> None:
    for task in part.tasks:
        if isinstance(task, Race | Callers | ColdStart):
            assert set(task.peers) <= set(EVERYONE)
            # the first is the one that the others are measured by
            assert "ours" in task.peers[0]


def test_scores_that_differ_are_found() -> None:
    right = np.array([1.0, -2.0, 3.0])
    agreement = compare({OURS: right + 5e-5, OURS_BF16: right + 0.5, REFERENCE: right})
    assert [found["problem"] for found in agreement.values()] == [None, None, None]
    assert agreement[OURS]["reference"] == REFERENCE
    assert agreement[OURS]["largest_error"] == pytest.approx(5e-5)
    assert agreement[OURS_BF16]["largest_error"] == pytest.approx(0.5)
    # one score off by more than rounding, in the format that it is off in
    off = right + np.array([0, 2e-4, 0])
    assert (
        "differ from sentence-transformers"
        in compare({OURS: off, REFERENCE: right})[OURS]["problem"]
    )
    far = right + np.array([0, 0, 1.5])
    assert compare({OURS_BF16: far, REFERENCE: right})[OURS_BF16]["problem"]
    nothing = np.array([1.0, np.nan, 3.0])
    assert compare({OURS: nothing, REFERENCE: right})[OURS]["problem"]


def test_adapters_are_compared_on_their_own_scales() -> None:
    logits = np.array([0.0, math.log(3)])
    shown = np.array([0.5, 0.75])
    agreement = compare({"LlamaIndex: ours": shown, "LlamaIndex: FlagEmbeddingReranker": logits})
    assert agreement["LlamaIndex: ours"]["problem"] is None
    # an order without scores: the second is the best, as in the scores, or the first is
    places = np.array([-1.0, 0.0])
    for given, wrong in ((places, False), (-places, True)):
        found = compare({"LangChain: ours": shown, "LangChain: HuggingFaceCrossEncoder": given})
        assert bool(found["LangChain: HuggingFaceCrossEncoder"]["problem"]) == wrong


def test_answers_from_many_threads_are_counted_and_compared() -> None:
    requests: list[list[Pair]] = [[("q", "p" * number)] for number in range(8)]

    def score(pairs: Any) -> Any:
        length = len(pairs[0][1])
        if length == 5:
            raise ValueError("five")
        return np.array([float(length)])

    served = serve_many(score, requests, callers=8)
    given = [None if scores is None else scores[0] for scores in served["scores"]]
    assert given == [0, 1, 2, 3, 4, None, 6, 7]
    assert len(served["latencies"]) == 7
    assert served["problem"] == "ValueError('five')"
    alone = [np.array([float(number)]) for number in range(8)]
    assert wrong_answers(served["scores"], alone) == 0
    alone[2] = alone[2] + 0.002
    assert wrong_answers(served["scores"], alone) == 1


def test_adapters_around_known_scores_do_their_whole_work() -> None:
    drawn = texts().workload("w", 3, mean=9, spread=0)
    known = KnownScores(np.array([0.0, 2.0, -1.0], dtype=np.float32))
    assert isinstance(known, Scorer)
    calls = calls_around(known, drawn)
    nodes: Any = calls["LlamaIndex"]()
    documents: Any = calls["LangChain"]()
    ordered = [drawn.passages[1], drawn.passages[0], drawn.passages[2]]
    assert [node.node.text for node in nodes] == ordered
    assert [document.page_content for document in documents] == ordered
    with pytest.raises(ValueError, match="2 pairs, and scores of 3"):
        known.score(drawn.pairs[:2])


def test_processor_time_of_others() -> None:
    # user 100, nice 10, system 30, idle 700, disks 60, interrupts 1, soft 2, stolen 7; guests twice
    stat = "cpu  100 10 30 700 60 1 2 7 50 5\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    assert busy_seconds(stat, ticks=100) == 1.5
    before = ProcessorTime(clock=50.0, busy=100.0, own=10.0)
    # 10 seconds of 2 cores: 15 at work, of which 11 are ours
    after = ProcessorTime(clock=60.0, busy=115.0, own=21.0)
    assert share_of_others(before, after, cores=2) == pytest.approx(4 / 20)
    assert share_of_others(before, ProcessorTime(60.0, 110.0, 20.5), cores=2) == 0


def found_by(date: str, seconds: dict[str, float], *, others: float | None = 0.0) -> dict[str, Any]:
    """What one part stores when contenders took so long for four pairs."""
    machine = {
        "date": date,
        "processor": "Z80 (tm)",
        "cores": 2,
        "system": "Linux",
        "python": "3.11",
        "load": 0.0,
        "versions": {"torch": "2.13"},
    }
    rows = {
        name: {
            "seconds": [taken],
            "median": taken,
            "pairs_per_second": 4 / taken,
            "share_of_peak": 0.5 / taken,
            "times_ours": taken / seconds[OURS],
            "loaded_memory": 2_000_000,
            "peak_memory": 3_000_000,
            "largest_error": 0.0,
            "tau": 1.0,
            "versions": {},
        }
        for name, taken in seconds.items()
    }
    table = {"workload": "w", "model": "base", "axis": None, "pairs": 4, "tokens": 9, "rows": rows}
    return {
        "machine": machine,
        "peak": {"fp32": 2e9},
        "others": others,
        "results": [{"tables": [table], "left_out": {"slow one": "has no legs"}}],
    }


def test_parts_are_kept_in_one_file_for_each_machine(tmp_path: Path) -> None:
    first = found_by("2026-01-01", {OURS: 2.0})
    second = found_by("2026-01-02", {OURS: 4.0})
    file = save_part("marco", first, tmp_path)
    assert save_part("rag", first, tmp_path) == file
    assert save_part("marco", second, tmp_path) == file
    assert file.name == "z80-tm-2-cores.json"
    (tmp_path / "another.json").write_text(json.dumps({"device": "a GPU"}), encoding="utf-8")
    assert stored(tmp_path) == {file: {"marco": second, "rag": first}}


def test_tables_say_what_was_stored() -> None:
    found = found_by("2026-01-01", {REFERENCE: 4.0, OURS: 2.0})
    assert part_tables(found).splitlines()[4:] == [
        "| ours fp32 | 2.000 | 2.0 | 1.00 | 25% | 2 | 3 | 0.0e+00 | 1.0000 | 1 |",
        "| sentence-transformers | 4.000 | 1.0 | 2.00 | 12% | 2 | 3 | 0.0e+00 | 1.0000 | 1 |",
        "",
        "- slow one is left out: has no legs",
    ]
    last = summary_table({"marco": found}, ("marco", "rag")).splitlines()[-1]
    assert last == "| base: w | 2.0 (25% of peak) | 2.0x |"


def test_a_document_gets_each_machine_s_summary(tmp_path: Path) -> None:
    save_part("marco", found_by("2026-01-01", {OURS: 2.0}, others=0.3), tmp_path)
    document = "Before.\n<!-- results -->\nold\n<!-- end -->\nAfter.\n"
    filled = fill(document, stored(tmp_path), "there")
    assert filled.startswith("Before.\n<!-- results -->\n\n- Z80 (tm), 2 cores, Linux, Python 3.11")
    assert "2026-01-01" in filled
    assert "marco (30%)" in filled
    assert "| base: w | 2.0 (25% of peak) |" in filled
    end = "All results: [z80-tm-2-cores.md](there/z80-tm-2-cores.md)\n\n<!-- end -->\nAfter.\n"
    assert filled.endswith(end)
    assert "old" not in filled
    assert fill(filled, stored(tmp_path), "there") == filled


def test_speed_md_and_the_reports_say_what_was_stored() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.count("<!-- results -->") == 1
    # changed by hand, or other results? python -m benchmarks.report writes them
    assert fill(text, stored(RESULTS), "../benchmarks/results") == text
    for file, parts in stored(RESULTS).items():
        names = [name for name in CHARTS if file.with_name(f"{file.stem}-{name}.png").is_file()]
        charts = {name: file.with_name(f"{file.stem}-{name}.png") for name in names}
        assert file.with_suffix(".md").read_text(encoding="utf-8") == as_markdown(parts, charts)


def test_asking_for_help_starts_no_benchmark() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.streams", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("usage: python -m benchmarks.streams")
    assert "Whole batches on each core" in done.stdout
    assert "side by side, " not in done.stdout


def test_gpu_check_needs_a_gpu_and_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2
    assert done.stdout.startswith("no CUDA device here, so nothing was tested or measured")


@pytest.mark.parametrize(
    ("tests", "attention", "good"),
    [
        ({"failed": 0}, {"padded float16": {"error": 1e-3}}, True),
        ({"failed": 0}, {"varlen float32": {"problem": "NotImplementedError"}}, True),
        ({"failed": 1}, {}, False),
        ("took longer than 180 s", {}, False),
        ({"failed": 0}, {"padded float32": {"error": 1e-2}}, False),
        ({"failed": 0}, {"padded float16": {"error": math.nan}}, False),
    ],
)
def test_gpu_check_passes_if_tests_and_attentions_do(
    tests: Any, attention: Any, good: bool
) -> None:
    assert gpu.passed({"tests": tests, "attention": attention}) == good
