"""docs/migrating.md says what the code does and what was measured."""

import re
from pathlib import Path

from bge_rerank_integrations.drop_in.cross_encoder import ARGUMENTS

DOCS = Path(__file__).resolve().parents[2] / "docs"
MEASURED = DOCS.parent / "benchmarks" / "results" / "intel-r-xeon-r-processor-2-cores.md"


def test_its_speeds_are_those_that_were_measured() -> None:
    text = (DOCS / "migrating.md").read_text(encoding="utf-8")
    table = text[text.index("## How much faster") :]
    measured = MEASURED.read_text(encoding="utf-8")
    numbers = re.findall(r"\d+\.\d+(?=x| s)", table)
    assert len(numbers) == 8
    figures = set(re.findall(r"\d+\.\d+", measured))
    assert set(numbers) <= figures


def test_it_names_every_argument_that_is_taken() -> None:
    text = (DOCS / "migrating.md").read_text(encoding="utf-8")
    paragraph = text[text.index("`model_kwargs` and `cross_encoder_kwargs` may hold") :]
    older = {"default_activation_function", "automodel_args", "tokenizer_args", "tokenizer_kwargs"}
    named = set(re.findall(r"`(\w+)", paragraph[: paragraph.index("\n\n")]))
    holders = {alias.partition(".")[0] for alias in ARGUMENTS}
    assert holders - older <= named
