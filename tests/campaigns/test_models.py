"""The campaigns on texts, model folders and numbers, small."""

from tests.campaigns import folders, numbers, texts


def test_texts() -> None:
    counts = texts.campaign(60, 1)
    assert counts["texts"] == 60 * len(texts.FAMILIES)
    assert counts["texts with a control token"] > 60
    assert counts["texts spelled out again"] == 180


def test_folders() -> None:
    counts = folders.campaign(60, 1, "xlmr", "minicpm", "graph")
    assert counts["cases"] == 60
    assert counts["typed errors"] > 20
    assert counts["scores of the reference"] > 5


def test_numbers() -> None:
    counts = numbers.campaign(60, 1, "bert", "gemma")
    assert counts["cases"] == 60
    assert min(counts["typed errors"], counts["scores of the reference"]) > 5
    assert counts["scores without the setting"] > 0
