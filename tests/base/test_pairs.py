"""Three ways to hand over pairs, and every way to get them wrong."""

from collections import UserDict
from collections.abc import Sized
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_rerank_integrations import InvalidInputError
from bge_rerank_integrations.base.contract import check_text, like_input, read_pairs

PAIRS = [("q", "p"), ("", ""), ("熊", "猫")]


@pytest.mark.parametrize(
    "given_pairs",
    [
        PAIRS,
        tuple(PAIRS),
        [list(pair) for pair in PAIRS],
        [{"query": query, "passage": passage, "id": 7} for query, passage in PAIRS],
        [UserDict(query=query, passage=passage) for query, passage in PAIRS],
        pd.DataFrame(PAIRS, columns=["query", "passage"]),
        pd.DataFrame(PAIRS, columns=["query", "passage"], dtype="string"),
        pd.DataFrame([(p, 1, q) for q, p in PAIRS], columns=["passage", "n", "query"]),
        dict.fromkeys(PAIRS).keys(),
        np.array(PAIRS),
        np.array(PAIRS, dtype=object),
        [row for _, row in pd.DataFrame(PAIRS).iterrows()],
    ],
    ids=[
        *("list", "tuple", "lists", "dicts", "mappings", "frame", "strings", "reordered", "keys"),
        *("array of str", "array of objects", "rows"),
    ],
)
def test_all_forms_read_the_same(given_pairs: Any) -> None:
    assert read_pairs(given_pairs) == PAIRS


def test_a_generator_is_read_once() -> None:
    assert read_pairs(pair for pair in PAIRS) == PAIRS


def test_subclasses_of_str_are_text() -> None:
    assert read_pairs([(np.str_("q"), np.str_("熊"))]) == [("q", "熊")]


def type_and_size(value: object) -> str:
    """The same in every process, unlike a set's order or an object's address."""
    return f"{type(value).__name__}{len(value) if isinstance(value, Sized) else ''}"


@pytest.mark.parametrize(
    "wrong",
    [None, 5, "qp", b"qp", ("q",), ("q", "p", "x"), {"q", "p"}, [], object()],
    ids=type_and_size,
)
def test_an_item_that_is_no_pair_is_named_by_position(wrong: object) -> None:
    with pytest.raises(InvalidInputError, match=f"position 1 is {type(wrong).__name__}") as refused:
        read_pairs([("q", "p"), wrong])
    assert refused.value.index == 1


@pytest.mark.parametrize("missing", ["query", "passage"])
def test_a_missing_key_or_column_is_named(missing: str) -> None:
    whole = {"query": "q", "passage": "p"}
    rest = {key: text for key, text in whole.items() if key != missing}
    with pytest.raises(InvalidInputError, match=f"position 1 has no key '{missing}'"):
        read_pairs([whole, rest])
    with pytest.raises(InvalidInputError, match=f"no column '{missing}'.* has "):
        read_pairs(pd.DataFrame([rest]))


@pytest.mark.parametrize("bad", [None, float("nan"), pd.NA, pd.NaT, 3], ids=repr)
def test_a_missing_value_of_a_frame_is_named_by_row(bad: object) -> None:
    frame = pd.DataFrame({"query": ["q", "q"], "passage": ["p", bad]}, index=[70, 80])
    with pytest.raises(InvalidInputError, match="passage at position 1 is") as refused:
        read_pairs(frame)
    assert refused.value.index == 1


@pytest.mark.parametrize("whole", ["text", {"query": "q", "passage": "p"}, None, 7], ids=repr)
def test_what_is_no_list_at_all(whole: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"pairs is one {type(whole).__name__}"):
        read_pairs(whole)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["query", "passage", "passage"], "2 columns 'passage'"),
        (["query", "query", "passage"], "2 columns 'query'"),
    ],
)
def test_a_frame_with_a_column_twice_is_refused(columns: list[str], said: str) -> None:
    """Such a frame gives a frame for that name, which would be read as the name itself."""
    with pytest.raises(InvalidInputError, match=said):
        read_pairs(pd.DataFrame([["q", "q", "p"], ["q", "q", "p"]], columns=columns))
    doubled = pd.DataFrame([["q", "p", 1, 2]], columns=["query", "passage", "n", "n"])
    assert read_pairs(doubled) == [("q", "p")]


def test_a_set_of_pairs_has_no_order_for_its_scores() -> None:
    with pytest.raises(InvalidInputError, match="pairs is a set, which has no order"):
        read_pairs({("q", "p"), ("q", "r")})


def test_one_pair_alone_is_not_a_list_of_pairs() -> None:
    with pytest.raises(
        InvalidInputError, match=r"position 0 is str.*a list too: \[\(query, passage\)\]"
    ):
        read_pairs(("a query", "a passage"))


@given(st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=())))
def test_any_string_becomes_one_that_can_be_written_down(text: str) -> None:
    cleaned = check_text(text, "passage")
    cleaned.encode("utf-8")
    assert check_text(cleaned, "passage") == cleaned
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert cleaned == text


def test_lone_surrogates_by_hand() -> None:
    assert check_text("a\ud800b", "x") == "a\ufffdb"
    assert check_text("\udc00\ud800", "x") == "\ufffd\ufffd"
    assert check_text("\ud83d\ude00", "x") == "😀"
    assert check_text("tail\ud83d", "x") == "tail\ufffd"
    assert check_text("\x00", "x") == "\x00"


def test_a_frame_gives_a_series_with_its_index() -> None:
    index = pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)], names=["letter", "number"])
    frame = pd.DataFrame(PAIRS, columns=["query", "passage"], index=index)
    scores = np.array([1, 2, 3], dtype=np.float32)
    series: Any = like_input(frame, scores)
    assert isinstance(series, pd.Series)
    assert series.index.equals(index)
    assert series.dtype == np.float32
    assert series.name == "score"
    assert like_input(PAIRS, scores) is scores


def test_a_repeated_index_is_kept_and_an_empty_frame_gives_an_empty_series() -> None:
    frame = pd.DataFrame(PAIRS, columns=["query", "passage"], index=[1, 1, 1])
    series: Any = like_input(frame, np.zeros(3, dtype=np.float32))
    assert series.index.tolist() == [1, 1, 1]
    empty: Any = like_input(frame[:0], np.zeros(0, dtype=np.float32))
    assert isinstance(empty, pd.Series)
    assert len(empty) == 0
