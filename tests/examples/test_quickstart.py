"""The notebook prints what it shows."""

import json

from scripts.make_notebook import NOTEBOOK, TEXT_AND_CODE, run
from tests.docs.printed import assert_shown


def outputs(book: dict[str, object]) -> list[str]:
    cells = book["cells"]
    assert isinstance(cells, list)
    return [
        "".join("".join(out.get("text", "")) for out in cell["outputs"])
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def test_the_notebook_prints_what_it_shows() -> None:
    kept = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert ["".join(cell["source"]) for cell in kept["cells"]] == [
        text.strip() for text in TEXT_AND_CODE
    ]
    shown, printed = outputs(kept), outputs(run())
    assert len(shown) == 5
    for one, other in zip(shown, printed, strict=True):
        assert_shown(one, other)
    assert "100 questions: nDCG@10 0.79 before, 0.88 after" in shown[-1]
