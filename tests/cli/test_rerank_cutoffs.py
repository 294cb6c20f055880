"""`bge-rerank rerank`: how many are kept, and which sentence answers, are those of a Reranker."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bge_rerank_integrations import InvalidInputError, load_scorer
from bge_rerank_integrations.cli import app
from bge_rerank_integrations.ranking.calibration import Calibration, fit_calibration
from tests.cli.command import json_lines, to_json_lines

ANIMALS = ["panda", "fox", "whale", "eagle", "otter", "wolf", "tiger", "horse", "camel", "koala"]
QUERY = "What does the panda eat?"
PASSAGES = [
    "Stocks fell on Monday.",
    "The panda is a bear. The panda eats bamboo.",
    "The panda eats at night.",
]


def rerank(*arguments: object, stdin: str = "") -> Result:
    options = ["--model", "offline", *arguments]
    return CliRunner().invoke(app, ["rerank", *map(str, options)], input=stdin)


def kept(*options: object) -> list[int]:
    result = rerank(*options, "--", QUERY, *PASSAGES)
    assert result.exit_code == 0, result.output
    return [row["index"] for row in json_lines(result.stdout)]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = [
        (f"What does the {one} eat?", f"The {two} eats.") for one in ANIMALS for two in ANIMALS
    ]
    scorer = load_scorer("offline")
    relevant = [one == two for one in ANIMALS for two in ANIMALS]
    fitted = fit_calibration(scorer.name, scorer.score(pairs), relevant, [q for q, _ in pairs])
    file = tmp_path_factory.mktemp("calibration") / "c.json"
    fitted.save(file)
    return file


def test_a_calibration_shows_probabilities(calibration: Path) -> None:
    result = rerank("--calibration", calibration, "--", QUERY, *PASSAGES)
    probability = Calibration.load(calibration).probability
    rows = json_lines(result.stdout)
    assert [row["score"] for row in rows] == [probability(row["raw_score"]) for row in rows]
    assert [row["index"] for row in rows][-1] == 0
    assert rows[0]["score"] > 0.5 > rows[-1]["score"]


def test_what_is_kept_by_a_calibration(calibration: Path) -> None:
    given = ("--calibration", calibration)
    assert sorted(kept(*given, "--min-probability", 0.5)) == [1, 2]
    assert sorted(kept(*given, "--target-recall", 0.9)) == [1, 2]


def test_what_is_kept_without_one() -> None:
    assert sorted(kept()) == [0, 1, 2]
    assert sorted(kept("--min-n", 1)) == [1, 2]  # the gap to the stocks is the largest
    best, second = kept()[:2]
    tokens = load_scorer("offline").count_tokens([PASSAGES[best], PASSAGES[second]])
    assert kept("--token-budget", sum(tokens)) == [best, second]
    assert kept("--token-budget", sum(tokens) - 1) == [best]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--min-probability", 0.5], "need a calibration"),
        (["--target-recall", 0.5], "need a calibration"),
        (["--min-n", 0], "min_n is 0"),
        (["--token-budget", -5], "token_budget is -5"),
        (["--calibration", __file__], "test_rerank_cutoffs.py is not a calibration"),
    ],
)
def test_what_cannot_be_kept_by_is_refused(options: list[object], said: str) -> None:
    result = rerank(*options, "--", QUERY, *PASSAGES)
    assert isinstance(result.exception, InvalidInputError)
    assert said in str(result.exception)
    assert result.stdout == ""


def test_explain_says_which_sentence() -> None:
    rows = json_lines(rerank("--explain", "--top-n", 2, "--", QUERY, *PASSAGES).stdout)
    found = {row["index"]: row["evidence"] for row in rows}
    assert set(found) == {1, 2}
    assert PASSAGES[1][found[1]["start"] : found[1]["end"]] == "The panda eats bamboo."
    assert (found[2]["start"], found[2]["end"]) == (0, len(PASSAGES[2]))
    row = next(row for row in rows if row["index"] == 2)  # of one sentence, which is all of it
    assert (found[2]["score"], found[2]["raw_score"]) == (row["score"], row["raw_score"])
    assert "evidence" not in json_lines(rerank(QUERY, *PASSAGES).stdout)[0]


def test_explain_in_requests_and_where_there_is_no_sentence() -> None:
    passages = [{"text": "***", "evidence": "carried"}, PASSAGES[1]]
    stdin = to_json_lines([{"query": QUERY, "passages": passages}])
    (answer,) = json_lines(rerank("--explain", stdin=stdin).stdout)
    evidence = {row["index"]: row["evidence"] for row in answer["results"]}
    assert evidence[0] is None
    assert evidence[1]["start"] == len("The panda is a bear. ")
    (answer,) = json_lines(rerank(stdin=stdin).stdout)
    assert json.dumps(answer["results"]).count("evidence") == 1, "what was carried stays"
