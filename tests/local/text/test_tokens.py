"""Text never becomes a control token, in any disguise; and nothing else about it changes."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bge_rerank_integrations import CheckpointError, InvalidInputError
from bge_rerank_integrations.local.text.tokenizer import (
    Ids,
    Template,
    TextTokenizer,
    join_pair,
    join_single,
)
from bge_rerank_integrations.types import SpecialTokens
from tests.local.text.tokenizers_bpe import (
    GEMMA_SPECIAL,
    LLAMA_SPECIAL,
    build_gemma_tokenizer,
    build_llama_tokenizer,
)

XLMR = ["<s>", "</s>", "<pad>", "<mask>"]
BERT = ["[CLS]", "[SEP]", "[PAD]", "[MASK]"]
UNKNOWN = ["<unk>", "[UNK]"]
CONTROL = [
    *XLMR,
    *BERT,
    *(token for token in GEMMA_SPECIAL if token != "<unk>"),
    *LLAMA_SPECIAL,
]
ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u0301\ufe0f"
# other characters that normalisation turns into these
LOOK_ALIKES = {"<": "＜﹤", ">": "＞﹥", "/": "／", "[": "［", "]": "］", "|": "｜", "_": "＿﹍"}

Mutation = st.sampled_from(["same", "wide", "joined", "upper", "lower"])


def encode(tokenizer: TextTokenizer, *args: Any, **options: Any) -> list[list[int]]:
    """The ids as lists, which compare as a whole."""
    return [ids.tolist() for ids in tokenizer.encode(*args, **options)]


@st.composite
def disguised(draw: st.DrawFn, tokens: list[str] = CONTROL) -> str:
    """A control token's name, some of its characters replaced, joined or doubled."""
    text = ""
    for character in draw(st.sampled_from(tokens)):
        match draw(Mutation):
            case "wide" if character in LOOK_ALIKES:
                text += draw(st.sampled_from(LOOK_ALIKES[character]))
            case "wide":
                text += chr(ord(character) + 0xFEE0)
            case "joined":
                text += character + draw(st.sampled_from(ZERO_WIDTH))
            case "upper":
                text += character.upper()
            case "lower":
                text += character.lower()
            case _:
                text += character
    return text


plain_words = st.sampled_from(["a", " panda ", "the giant", "熊猫", "  ", "\n", "😀", "\x00", "é"])
pieces = st.one_of(st.sampled_from(CONTROL), disguised(), plain_words, st.text(max_size=8))
texts = (
    st.lists(pieces, max_size=6)
    .map("".join)
    .map(lambda text: text.encode("utf-8", "replace").decode("utf-8"))
)
TOKENIZERS = ["xlmr", "bert", "gemma", "llama"]


@pytest.fixture(scope="module", params=TOKENIZERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path
    if request.param == "gemma":
        return build_gemma_tokenizer(tmp_path_factory.mktemp("gemma"))
    if request.param == "llama":
        return build_llama_tokenizer(tmp_path_factory.mktemp("llama"))
    path = request.getfixturevalue(
        {"xlmr": "reranker_base", "bert": "bert_reranker"}[request.param]
    )
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Tokenizer:
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.no_padding()
    raw.no_truncation()
    return raw


def raw_ids(reference: Tokenizer, text: str) -> list[int]:
    ids: list[int] = reference.encode(text, add_special_tokens=False).ids
    return ids


def ids_of(tokenizer: TextTokenizer, text: str, **options: Any) -> list[int]:
    (ids,) = tokenizer.encode([text], [0], **options)
    listed: list[int] = ids.tolist()
    return listed


def special_ids(reference: Tokenizer) -> set[int]:
    return {
        number
        for number, token in reference.get_added_tokens_decoder().items()
        if token.special and token.content not in UNKNOWN
    }


def test_knows_every_control_token_of_the_file(
    tokenizer: TextTokenizer, reference: Tokenizer
) -> None:
    assert tokenizer.control_ids == special_ids(reference)
    assert len(tokenizer.control_ids) >= 3


@given(text=texts)
@settings(max_examples=600)
def test_no_text_holds_a_control_id(tokenizer: TextTokenizer, text: str) -> None:
    (ids,) = encode(tokenizer, [text], [0])
    assert tokenizer.control_ids.isdisjoint(ids)


@given(text=texts)
@settings(max_examples=300)
def test_text_without_control_tokens_is_the_checkpoints_own(
    tokenizer: TextTokenizer, reference: Tokenizer, text: str
) -> None:
    parsed = raw_ids(reference, text)
    if tokenizer.control_ids.isdisjoint(parsed):
        assert encode(tokenizer, [text], [0]) == [parsed]


@given(text=texts)
@settings(max_examples=300)
def test_parse_is_the_checkpoints_own_and_error_refuses_what_it_would_inject(
    tokenizer: TextTokenizer, reference: Tokenizer, text: str
) -> None:
    parsed = raw_ids(reference, text)
    assert encode(tokenizer, [text], [0], special_tokens="parse") == [parsed]
    if tokenizer.control_ids.isdisjoint(parsed):
        assert encode(tokenizer, [text], [0], special_tokens="error") == [parsed]
        return
    with pytest.raises(InvalidInputError, match="position 41 holds the control token") as refused:
        encode(tokenizer, ["plain", text], [3, 41], special_tokens="error")
    assert refused.value.index == 41
    if len(text) > 20:
        assert text not in str(refused.value)


@pytest.mark.parametrize("place", ["{}", "{} panda", "panda {}", "a {} b", "a{}b", "{}{}"])
@pytest.mark.parametrize("wide", [False, True])
def test_every_control_token_at_every_place(
    tokenizer: TextTokenizer, reference: Tokenizer, place: str, wide: bool
) -> None:
    for number in tokenizer.control_ids:
        name = reference.id_to_token(number) or ""
        if wide:
            name = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in name)
        text = place.format(*[name] * place.count("{}"))
        (ids,) = encode(tokenizer, [text], [0])
        assert tokenizer.control_ids.isdisjoint(ids), text
        assert ids, "the text itself is not lost"


def test_the_ascii_names_do_parse(tokenizer: TextTokenizer, reference: Tokenizer) -> None:
    # or the laws above would hold of a tokenizer that knows no control tokens
    for number in tokenizer.control_ids:
        name = reference.id_to_token(number)
        assert number in raw_ids(reference, f"a {name} b")


def test_full_width_parses_after_normalisation(reranker_base: Path) -> None:
    tokenizer = TextTokenizer(reranker_base)
    (parsed,) = encode(tokenizer, ["a ＜/s＞ b"], [0], special_tokens="parse")
    assert 2 in parsed, "a filter on the text would not see it"
    with pytest.raises(InvalidInputError, match="'</s>'"):
        encode(tokenizer, ["a ＜/s＞ b"], [0], special_tokens="error")


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "\ufffd", "\u200b", "a" * 1_000_000, "熊 " * 9999]
)
def test_strange_texts_are_texts(tokenizer: TextTokenizer, reference: Tokenizer, text: str) -> None:
    assert encode(tokenizer, [text], [0]) == [raw_ids(reference, text)]


def test_the_size_is_one_more_than_the_largest_id(
    tokenizer: TextTokenizer, reference: Tokenizer
) -> None:
    assert tokenizer.size == 1 + max(reference.get_vocab().values())


def test_no_texts(tokenizer: TextTokenizer) -> None:
    assert encode(tokenizer, [], []) == []


def test_the_unknown_token_is_what_any_unknown_character_gives(
    reranker_base: Path, bert_reranker: Path
) -> None:
    # so its name may be written too: it steers nothing, and is no control token
    for folder, name, number in ((reranker_base, "<unk>", 3), (bert_reranker, "[UNK]", 1)):
        tokenizer = TextTokenizer(folder, [number])
        assert number not in tokenizer.control_ids
        for mode in get_args(SpecialTokens):
            assert ids_of(tokenizer, f"a {name} b", special_tokens=mode).count(number) == 1
            assert ids_of(tokenizer, "a 龘 b", special_tokens=mode).count(number) == 1
        # and next to a control token, which takes another way
        control = tokenizer._parsing.id_to_token(min(tokenizer.control_ids))
        assert number in ids_of(tokenizer, f"龘 {control}")


long_texts = st.lists(st.one_of(pieces, st.sampled_from([" ", "  ", "x" * 120])), max_size=40).map(
    lambda parts: "".join(parts).encode("utf-8", "replace").decode("utf-8")
)


@given(text=long_texts, keep=st.integers(1, 6), mode=st.sampled_from(get_args(SpecialTokens)[::2]))
@settings(max_examples=600)
def test_the_ids_that_are_kept_do_not_depend_on_the_rest_of_a_long_text(
    tokenizer: TextTokenizer, text: str, keep: int, mode: SpecialTokens
) -> None:
    whole = ids_of(tokenizer, text, special_tokens=mode)
    begun = ids_of(tokenizer, text, special_tokens=mode, keep=keep)
    assert begun[:keep] == whole[:keep]
    assert (len(begun) > keep) == (len(whole) > keep), "a text that was cut must look like one"


@pytest.mark.parametrize(
    "text",
    [
        "x" * 5000 + " panda bear",
        " " * 5000 + "panda bear",
        "panda" + " " * 5000 + "bear",
        "\u200b" * 5000 + " panda",
        "a \u0301" * 3000,
        "panda </s> " * 3000,
        "熊猫" * 3000 + " bear",
    ],
    ids=lambda text: repr(text[:8]),
)
def test_long_texts_of_few_tokens(tokenizer: TextTokenizer, text: str) -> None:
    whole = ids_of(tokenizer, text)
    for keep in (1, 3, 64):
        assert ids_of(tokenizer, text, keep=keep)[:keep] == whole[:keep]


def test_templates_by_hand(reranker_base: Path, bert_reranker: Path) -> None:
    xlmr, bert = TextTokenizer(reranker_base), TextTokenizer(bert_reranker)
    assert xlmr.pair_template == Template((0,), (2, 2), (2,))
    assert xlmr.single_template == Template((0,), (), (2,))
    assert bert.pair_template == Template((2,), (3,), (3,), second=1)
    assert bert.single_template == Template((2,), (), (3,))
    assert [len(t) for t in (xlmr.pair_template, bert.pair_template)] == [4, 3]


def array(*numbers: int) -> Ids:
    return np.array(numbers, dtype=np.int32)


def test_joining_by_hand() -> None:
    bert = Template((2,), (3,), (3,), second=1)
    pair = join_pair(array(10, 11), array(20), bert)
    assert pair.ids.tolist() == [2, 10, 11, 3, 20, 3]
    assert pair.first_segment == 4
    xlmr = join_pair(array(10), array(20, 21), Template((0,), (2, 2), (2,)))
    assert xlmr.ids.tolist() == [0, 10, 2, 2, 20, 21, 2]
    assert xlmr.first_segment == 7, "every token has type 0"
    empty = join_pair(array(), array(), Template((0,), (2, 2), (2,)))
    assert empty.ids.tolist() == [0, 2, 2, 2]
    assert join_single(array(10), Template((2,), (), (3,))).ids.tolist() == [2, 10, 3]


def test_declared_control_ids_count_without_added_tokens(
    reranker_base: Path, tmp_path: Path
) -> None:
    content = json.loads((reranker_base / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = TextTokenizer(tmp_path, [0, 1, 2])
    assert tokenizer.control_ids == {0, 1, 2}
    assert tokenizer.control_ids.isdisjoint(encode(tokenizer, ["a </s> ＜s＞ b"], [0])[0])


def test_declared_control_ids_count_without_an_unknown_token(tmp_path: Path) -> None:
    build_llama_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"] = []
    file.write_text(json.dumps(content), encoding="utf-8")
    plain = Tokenizer.from_file(str(file))
    number = plain.token_to_id("<|eot_id|>")
    assert number is not None
    assert plain.encode("<|eot_id|>", add_special_tokens=False).ids == [number]
    tokenizer = TextTokenizer(tmp_path, [number])
    assert number in tokenizer.control_ids
    assert number not in encode(tokenizer, ["<|eot_id|>"], [0])[0]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '"x"', "null", '{"model": {"type": "Unknown"}}']
)
def test_a_file_that_is_no_tokenizer_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "tokenizer.json"))):
        TextTokenizer(tmp_path)


def test_a_tokenizer_that_places_no_control_tokens_is_refused(
    reranker_base: Path, tmp_path: Path
) -> None:
    content = json.loads((reranker_base / "tokenizer.json").read_text(encoding="utf-8"))
    content["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match="post_processor"):
        _ = TextTokenizer(tmp_path).pair_template


@pytest.mark.parametrize("pairs", [True, False], ids=["as pairs", "as strings"])
def test_merges_that_build_a_control_tokens_name_leave_text_as_text(
    tmp_path: Path, pairs: bool
) -> None:
    build_gemma_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    model, name = content["model"], "<eos>"
    for piece in ["<", "e", "o", "s", ">", "<e", "os", "<eos", "<eos>>"]:
        model["vocab"].setdefault(piece, len(model["vocab"]))
    merges = [("<", "e"), ("o", "s"), ("<e", "os"), ("<eos", ">"), (name, ">")]
    model["merges"] = [list(merge) if pairs else " ".join(merge) for merge in merges]
    # without the added token it is the merges that give the id
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != name]
    file.write_text(json.dumps(content), encoding="utf-8")
    number = model["vocab"][name]
    tokenizer = TextTokenizer(tmp_path, [number])
    assert ids_of(tokenizer, name, special_tokens="parse") == [number]
    assert ids_of(tokenizer, name) == [model["vocab"]["<eos"], model["vocab"][">"]]
    assert ids_of(tokenizer, "<eos>>") == [model["vocab"]["<eos>>"]], "an ordinary piece"
    expected = [model["vocab"][piece] for piece in ("<eos", ">", "<eos", ">", ">")]
    assert ids_of(tokenizer, "<eos><eos>>") == expected


@pytest.mark.parametrize(
    "slow", ["sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "vocab.txt"]
)
def test_a_slow_tokenizer_is_named_with_what_makes_a_fast_one(tmp_path: Path, slow: str) -> None:
    (tmp_path / slow).write_bytes(b"")
    needs = "transformers sentencepiece" if slow.endswith(".model") else "transformers, then"
    with pytest.raises(CheckpointError, match=f"only {slow}.*{needs}.*save_pretrained"):
        TextTokenizer(tmp_path)
