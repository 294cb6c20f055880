"""The files of a tokenizer, as people edit and re-save them: the library's ids, or a refusal.

The ids of the installed transformers are the measure. `make test` runs this file on two
generations of it, so that a folder which they read differently must be refused.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from bge_rerank_integrations import CheckpointError, UnsupportedModel, load_scorer
from bge_rerank_integrations.local.text import tokenizer_config
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, join_pair
from bge_rerank_integrations.tools.export import export_onnx
from bge_rerank_integrations.types import SpecialTokens
from tests.local.llm.tiny_tokenizers import write_gemma_tokenizer, write_llama_tokenizer
from tests.tiny_models import TEXT

Edit = Callable[[dict[str, Any]], Any]
Folders = Callable[[str], Path]

PAIRS = [
    ("what is a panda?", "The giant panda is a bear that lives in China."),
    ("where do they live", "Café, Ünïted and 大熊猫 in the mountains"),
    ("HOW many?", "Berlin has 3,520,031 (three) inhabitants - don't ask"),
    ("panda", "1"),
]
TOLERANCE = 2e-5


def edit(folder: Path, change: Edit, file: str = "tokenizer_config.json") -> None:
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    change(content)
    (folder / file).write_text(json.dumps(content), encoding="utf-8")


def write_roberta_tokenizer(folder: Path) -> None:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 4, "cls": 0, "sep": 2}
    settings = {f"{role}_token": special[number] for role, number in names.items()}
    settings["tokenizer_class"] = "RobertaTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> Folders:
    """A fresh folder with the tokenizer of that kind, and a config.json."""

    def build(kind: str) -> Path:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        model_type, size = {"plain": "bert", "xlmr": "xlm-roberta"}.get(kind, kind), 2
        if kind == "gemma":
            write_gemma_tokenizer(folder)
            second = {"SpecialToken": {"id": "<bos>", "type_id": 1}}
            edit(folder, lambda j: j["post_processor"]["pair"].insert(2, second), "tokenizer.json")
        elif kind == "llama":
            write_llama_tokenizer(folder)
        elif kind == "roberta":
            write_roberta_tokenizer(folder)
        else:
            source: Path = request.getfixturevalue(
                "reranker_base" if kind == "xlmr" else "bert_reranker"
            )
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(source / file, folder)
            size = 1 if kind == "xlmr" else 2
        if kind == "plain":
            names = ["input_ids", "token_type_ids", "attention_mask"]
            settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": names}
            edit(folder, lambda keys: keys.update(settings))
        config = {"model_type": model_type, "type_vocab_size": size}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    return build


def ours(folder: Path, mode: Any = "literal") -> list[tuple[list[int], list[int]]]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = TextTokenizer(folder, config=config)
    found = []
    for pair in PAIRS:
        query, passage = tokenizer.encode(pair, [0, 0], special_tokens=mode)
        sequence = join_pair(query, passage, tokenizer.pair_template)
        ids = sequence.ids.tolist()
        found.append((ids, [int(n >= sequence.first_segment) for n in range(len(ids))]))
    return found


def theirs(folder: Path) -> list[tuple[list[int], list[int]]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for pair in PAIRS:
        given = tokenizer(*pair)
        ids = given["input_ids"]
        found.append((ids, given.get("token_type_ids", [0] * len(ids))))
    return found


KINDS = ["bert", "gemma", "plain", "roberta", "xlmr"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_and_types_of_a_folder_as_it_was_saved(folders: Folders, kind: str) -> None:
    folder = folders(kind)
    assert ours(folder) == theirs(folder)
    assert any(any(types) for _, types in ours(folder)) == (kind in ("bert", "plain"))


CLASSES = sorted(f"{name}Tokenizer" for name in tokenizer_config.KNOWN - tokenizer_config.PLAIN)
INPUTS = ["input_ids", "attention_mask"]
NAMES = ["panda", "<mask>", "[SEP]", "</s>", {"content": "panda", "lstrip": True}]
VALUES: dict[str, list[Any]] = {
    "tokenizer_class": [*CLASSES, "PreTrainedTokenizerFast", ""],
    "model_input_names": [INPUTS, [*INPUTS, "token_type_ids"], INPUTS[:1]],
    "additional_special_tokens": [[], ["panda"]],
    "extra_special_tokens": [[], ["panda"], {"one_token": "panda"}],
    "padding_side": ["left", "right"],
    "truncation_side": ["left", "right"],
    "chat_template": ["{{ messages }}"],
    "tokenizer_file": ["/nowhere/tokenizer.json", None],
    "vocab_file": ["/nowhere/vocab.txt"],
    "wordpieces_prefix": ["##", "@"],
    "merges_file": ["/nowhere/merges.txt"],
    **{key: [3, 40] for key in ("model_max_length", "max_len", "unk_id", "pad_token_type_id")},
    **{f"{role}_token": NAMES for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask", "my")},
}
"""Other legal values of a key; of any other it is true, false and null."""


def values(key: str, present: Any) -> list[Any]:
    if key != "added_tokens_decoder":
        return VALUES.get(key, [True, False, None])
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), True)
    odd = {number: {**token, **flags} for number, token in (present or {}).items()}
    return [odd, {**odd, "900": {**flags, "content": "panda", "special": True}}]


ROLES = {f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask", "my")}
KEYS = {*tokenizer_config.OBEYED, *tokenizer_config.NO_EFFECT, *tokenizer_config.ONLY_VALUE}
FLIPPED = sorted({*KEYS, *ROLES, "my_key"} - {"added_tokens.json"})


@pytest.mark.parametrize("kind", KINDS)
def test_each_key_is_obeyed_or_refused(folders: Folders, kind: str) -> None:
    same = refused = 0
    for key in FLIPPED:
        folder = folders(kind)
        keys = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        absent = ["absent"] if key in keys else []
        for value in [*values(key, keys.get(key)), *absent]:
            changed = {**keys, key: value}
            if value == "absent":
                del changed[key]
            (folder / "tokenizer_config.json").write_text(json.dumps(changed), encoding="utf-8")
            try:
                found = ours(folder)
            except CheckpointError:
                refused += 1
                continue
            try:
                expected = theirs(folder)
            except Exception:  # noqa: BLE001 - a value that it cannot read has no ids
                continue
            assert found == expected, f"{key}={value!r}"
            same += 1
    assert same > 50
    assert refused > 10


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("bert", lambda j: j["normalizer"].update(clean_text=False), "another normalizer"),
        ("bert", lambda j: j.update(normalizer={"type": "Lowercase"}), "another normalizer"),
        ("bert", lambda j: j["model"].update(max_input_chars_per_word=9), "or model than"),
        ("bert", lambda j: j["post_processor"].update(
            {"pair": [*j["post_processor"]["pair"][:3], {"Sequence": {"id": "B", "type_id": 0}},
                      {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]}), "token types differ"),
        ("plain", lambda j: j["post_processor"]["pair"].reverse(), "one after the other"),
        ("plain", lambda j: j["post_processor"].update(
            {"pair": [*j["post_processor"]["pair"][:3], {"Sequence": {"id": "B", "type_id": 2}},
                      {"SpecialToken": {"id": "[SEP]", "type_id": 2}}]}), "token types"),
        ("plain", lambda j: j.update(post_processor=None), "no post_processor"),
        ("xlmr", lambda j: j.update(normalizer={"type": "Lowercase"}), "has Lowercase"),
        ("xlmr", lambda j: j.update(normalizer={"type": "NFKC"}), "leaves NFKC out"),
        ("xlmr", lambda j: j["post_processor"]["pair"].pop(2), "puts the ids"),
        ("xlmr", lambda j: j.update(truncation={
            "direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}),
         "truncation_side='left'"),
        ("gemma", lambda j: j["model"].update(dropout=0.5), "dropout=0.5"),
        ("gemma", lambda j: j["model"].update(end_of_word_suffix="x"), "end_of_word_suffix='x'"),
        ("gemma", lambda j: j["model"].update(byte_fallback=False), "byte_fallback=False"),
        ("llama", lambda j: j["model"].update(fuse_unk=False), "fuse_unk=False"),
        ("llama", lambda j: j["model"].pop("byte_fallback"), "byte_fallback=False"),
        ("llama", lambda j: j["model"].update(ignore_merges=True), "ignore_merges=True"),
        ("roberta", lambda j: j["model"].update(end_of_word_suffix="x"), "end_of_word_suffix='x'"),
        ("roberta", lambda j: j["model"].update(byte_fallback=True), "byte_fallback=True"),
        ("gemma", lambda j: j.update(normalizer=None), "before its model"),
        ("gemma", lambda j: j["normalizer"].update(content="x"), "before its model"),
        ("gemma", lambda j: j["normalizer"].update(pattern={"String": "x"}), "before its model"),
        ("gemma", lambda j: j.update(normalizer={"type": "Prepend", "prepend": "▁"}),
         "before its model"),
        ("xlmr", lambda j: j["pre_tokenizer"]["pretokenizers"][1].update(replacement="x"),
         "before its model"),
        ("llama", lambda j: j["normalizer"]["normalizers"][0].update(prepend="x"),
         "before its model"),
        ("llama", lambda j: j["normalizer"]["normalizers"][1].update(content="x"),
         "before its model"),
        ("llama", lambda j: j["normalizer"]["normalizers"].pop(), "before its model"),
        ("llama", lambda j: j["model"].update(continuing_subword_prefix="x"),
         "end the process"),
    ],
)  # fmt: skip
def test_parts_of_tokenizer_json_that_two_generations_read_differently_are_refused(
    folders: Folders, kind: str, change: Edit, reason: str
) -> None:
    folder = folders(kind)
    edit(folder, change, "tokenizer.json")
    with pytest.raises((CheckpointError, UnsupportedModel), match=reason):
        ours(folder)


def test_merges_with_a_prefix_are_refused_under_escaped_keys_too(folders: Folders) -> None:
    folder = folders("llama")
    edit(folder, lambda j: j["model"].update(continuing_subword_prefix="x"), "tokenizer.json")
    file = folder / "tokenizer.json"
    content = file.read_text(encoding="utf-8").replace('"merges"', '"\\u006derg\\u0065s"')
    file.write_text(content.replace('"continuing', '"\\u0063ontinuing'), encoding="utf-8")
    assert "merges" in json.loads(file.read_text(encoding="utf-8"))["model"]
    with pytest.raises(UnsupportedModel, match="end the process"):
        ours(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_that_the_library_panics_at_is_refused(folders: Folders, kind: str) -> None:
    folder = folders(kind)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if kind == "roberta":  # its processor has no list of tokens
        assert "special_tokens" not in content["post_processor"]
        return
    edit(folder, lambda j: j["post_processor"]["special_tokens"].popitem(), "tokenizer.json")
    with pytest.raises(CheckpointError, match="damaged post_processor: PanicException"):
        ours(folder)


@pytest.mark.parametrize("single", [[], [{"Sequence": {"id": "A", "type_id": 0}}] * 2], ids=len)
def test_a_template_that_changes_a_text_by_itself_is_refused(
    folders: Folders, single: list[Any]
) -> None:
    folder = folders("xlmr")
    edit(folder, lambda j: j["post_processor"].update(single=single), "tokenizer.json")
    with pytest.raises(CheckpointError, match="encodes a single text differently"):
        ours(folder)


def test_a_text_that_the_library_cannot_encode_is_not_quoted(folders: Folders) -> None:
    folder = folders("plain")
    edit(folder, lambda j: j["model"].update(unk_token="nothing"), "tokenizer.json")
    tokenizer = TextTokenizer(folder, config={"model_type": "bert"})
    assert len(tokenizer.encode(["a panda"], [0])[0]) == 2
    for fails in (tokenizer.encode, lambda texts, _: tokenizer.offsets(texts)):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot turn") as refused:
            fails(["a secret 龘"], [0])
        assert "secret" not in str(refused.value)
        assert refused.value.__suppress_context__


def deberta(content: dict[str, Any], *, second: int) -> None:
    """Make the template of a tokenizer.json that of DeBERTa, with this type of the passage."""
    cls, sep = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("<s>", "</s>"))
    query, passage = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    middle = [sep] if second else [sep, sep]
    pair = json.loads(json.dumps([cls, query, *middle, passage, sep]))
    for part in pair[-2:]:
        next(iter(part.values()))["type_id"] = second
    special = {
        name: {"id": name, "ids": [number], "tokens": [name]}
        for name, number in (("<s>", 0), ("</s>", 2))
    }
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [cls, query, sep],
        "pair": pair,
        "special_tokens": special,
    }


@pytest.mark.parametrize(
    ("kind", "name", "second"),
    [("xlmr", "DebertaV2Tokenizer", 1), ("roberta", "DebertaTokenizer", 0)],
)
def test_deberta_is_read_where_both_generations_read_it_alike(
    folders: Folders, kind: str, name: str, second: int
) -> None:
    folder = folders(kind)
    changed = [
        {"type": "Replace", "pattern": {"Regex": "\\s{2,}|[\\n\\r\\t]"}, "content": " "},
        {"type": "NFC"},
        {"type": "Strip", "strip_left": False, "strip_right": True},
    ]
    normalizer = {"type": "Sequence", "normalizers": changed} if second else None
    edit(folder, lambda j: j.update(normalizer=normalizer), "tokenizer.json")
    edit(folder, lambda j: deberta(j, second=second), "tokenizer.json")
    roles = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    names = {"tokenizer_class": name, **roles, "mask_token": "<mask>"}
    edit(folder, lambda keys: keys.update(names))
    edit(folder, lambda keys: keys.update(type_vocab_size=2), "config.json")
    assert ours(folder) == theirs(folder)
    if second:
        edit(folder, lambda j: j.update(normalizer={"type": "NFKC"}), "tokenizer.json")
        reason = "DebertaV2Tokenizer'; it leaves NFKC out of the normalizer"
    else:
        edit(folder, lambda j: deberta(j, second=1), "tokenizer.json")
        reason = "DebertaTokenizer'; it puts the ids"
    with pytest.raises(CheckpointError, match=reason):
        ours(folder)


def test_deberta_v2_as_transformers_4_saved_it(folders: Folders) -> None:
    folder = folders("xlmr")
    characters = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["normalizer"]
    assert characters["type"] == "Precompiled"
    parts = [
        {"type": "Strip", "strip_left": True, "strip_right": True},
        characters,
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]
    normalizer = {"type": "Sequence", "normalizers": parts}
    edit(folder, lambda j: j.update(normalizer=normalizer), "tokenizer.json")
    edit(folder, lambda j: deberta(j, second=1), "tokenizer.json")
    roles = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    names = {
        "tokenizer_class": "DebertaV2Tokenizer", **roles, "mask_token": "<mask>",
        "do_lower_case": False, "split_by_punct": False, "sp_model_kwargs": {}, "vocab_type": "spm",
    }  # fmt: skip
    edit(folder, lambda keys: keys.update(names))
    edit(folder, lambda keys: keys.update(type_vocab_size=2), "config.json")
    assert ours(folder) == theirs(folder)
    # the ids of transformers 4, which takes tokenizer.json as it is; transformers 5 loses the map
    texts = ["ＰＡＮＤＡ ﬁve", " the  panda\tlives ", "①②"]
    as_saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = [as_saved.encode(text, add_special_tokens=False).ids for text in texts]
    if int(transformers.__version__.partition(".")[0]) < 5:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer(texts, add_special_tokens=False)["input_ids"] == expected
    found = TextTokenizer(folder, config={"model_type": "deberta-v2"}).encode(texts, [0, 1, 2])
    assert [ids.tolist() for ids in found] == expected


@pytest.mark.parametrize("kind", ["plain", "xlmr"])
def test_padding_and_truncation_of_tokenizer_json_are_ignored(folders: Folders, kind: str) -> None:
    expected = ours(folders(kind))
    cut = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    edit(folders(kind), lambda content: content.update(truncation=cut), "tokenizer.json")
    assert ours(folders(kind)) == expected


def test_xlm_r_without_its_character_map_is_read_as_it_is_with_a_warning(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folders("xlmr")
    assert ours(folder) == theirs(folder)
    assert not caplog.records
    edit(folder, lambda j: j.update(normalizer=None), "tokenizer.json")
    assert ours(folder) == theirs(folder)
    assert "has no character map" in caplog.text
    # the other thing that transformers 5.0 to 5.2 saved
    edit(folder, lambda j: j["post_processor"]["pair"].pop(2), "tokenizer.json")
    with pytest.raises(CheckpointError, match="it puts the ids"):
        ours(folder)


def test_plain_classes_take_any_template(folders: Folders) -> None:
    folder = folders("plain")
    edit(folder, lambda j: j["post_processor"]["pair"].pop(2), "tokenizer.json")
    assert ours(folder) == theirs(folder)


@pytest.mark.parametrize("listed", [True, False])
def test_the_older_map_counts_where_no_tokens_are_listed(folders: Folders, listed: bool) -> None:
    folder = folders("bert")
    listing = {"4": {"content": "[MASK]", "special": True}}
    if listed:
        edit(folder, lambda keys: keys.update(added_tokens_decoder=listing))
    content = json.dumps({"mask_token": "panda"})
    (folder / "special_tokens_map.json").write_text(content, encoding="utf-8")
    if listed:
        assert ours(folder) == theirs(folder)
        return
    with pytest.raises(CheckpointError, match="mask_token='panda'"):
        ours(folder)


@pytest.mark.parametrize("token", [{}, {"x": [1]}, {"content": 7}, [], ["[CLS]"]], ids=str)
@pytest.mark.parametrize("file", [tokenizer_config.CONFIG, tokenizer_config.SPECIAL])
def test_a_role_without_the_name_of_a_token_is_refused(
    folders: Folders, file: str, token: object
) -> None:
    """For such a role transformers takes an empty name, with which a text then begins."""
    folder = folders("bert")
    path = folder / file
    keys = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**keys, "cls_token": token}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{file} of .* has cls_token="):
        ours(folder)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000], ids=["list", "cut", "deep"])
def test_damaged_settings_are_named(folders: Folders, content: str) -> None:
    folder = folders("bert")
    (folder / "tokenizer_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        ours(folder)


def test_a_type_that_the_model_has_no_row_for_is_refused(folders: Folders) -> None:
    folder = folders("bert")
    edit(folder, lambda config: config.update(type_vocab_size=1), "config.json")
    with pytest.raises(CheckpointError, match="type_vocab_size 1"):
        ours(folder)


def test_a_model_without_token_types_is_given_none(folders: Folders) -> None:
    folder = folders("bert")
    config = json.dumps({"model_type": "distilbert"})
    (folder / "config.json").write_text(config, encoding="utf-8")
    assert [ids for ids, _ in ours(folder)] == [ids for ids, _ in theirs(folder)]
    assert not any(any(types) for _, types in ours(folder))


def test_split_special_tokens_counts_where_texts_are_parsed(folders: Folders) -> None:
    folder = folders("bert")
    text = "a [SEP] b"
    edit(folder, lambda keys: keys.update(split_special_tokens=True))
    expected = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    tokenizer = TextTokenizer(folder, config={"model_type": "bert"})
    modes: tuple[SpecialTokens, ...] = ("parse", "literal")
    for mode in modes:
        (ids,) = tokenizer.encode([text], [0], special_tokens=mode)
        assert ids.tolist() == expected


def bert_with_tokens_of(tokens: Path, folder: Path) -> Path:
    size = json.loads((tokens / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = BertConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=128, pad_token_id=1,
    )  # fmt: skip
    config.num_labels = 1
    torch.manual_seed(3)
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokens / file, folder)
    return folder


def library_scores(folder: Path) -> list[float]:
    """transformers, one pair at a time, with all that its tokenizer gives."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [float(model(**tokenizer(*pair, return_tensors="pt")).logits) for pair in PAIRS]


@pytest.mark.parametrize("tokens", ["reranker_base", "bert_reranker"])
def test_token_types_come_from_the_tokenizer_on_every_back_end(
    request: pytest.FixtureRequest, tmp_path: Path, tokens: str
) -> None:
    # a fine-tune of multilingual-e5 is a BERT with XLM-R's tokenizer, which gives no types
    folder = bert_with_tokens_of(request.getfixturevalue(tokens), tmp_path / "model")
    expected = library_scores(folder)
    assert np.std(expected) > 0.1
    export_onnx(str(folder), tmp_path / "graph")
    scorers = [
        load_scorer(str(folder), backend="torch", device="cpu"),
        load_scorer(str(tmp_path / "graph"), backend="onnx"),
        load_scorer(str(tmp_path / "graph"), backend="openvino"),
    ]
    for scorer in scorers:
        assert scorer.score(PAIRS) == pytest.approx(expected, abs=TOLERANCE), scorer.name


@pytest.mark.parametrize(
    "keys",
    [
        {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False},
        {"model_input_names": ["input_ids", "attention_mask"]},
    ],
    ids=str,
)  # fmt: skip
def test_an_obeyed_key_gives_the_librarys_scores_and_another_name(
    bert_reranker: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    folder = bert_with_tokens_of(bert_reranker, tmp_path)
    before = load_scorer(str(folder), device="cpu")
    was, name = before.score(PAIRS), before.name
    edit(folder, lambda content: content.update(keys))
    after = load_scorer(str(folder), device="cpu")
    assert after.score(PAIRS) == pytest.approx(library_scores(folder), abs=TOLERANCE)
    assert np.abs(after.score(PAIRS) - was).max() > 0.01
    assert after.name != name
