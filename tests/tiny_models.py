"""Models with the true architecture, file layout and tokenizer pipeline of BGE's, small and random.

Each builder writes one model folder, as `save_pretrained` does, and returns it. Weights come from
a seed, so a folder is the same on every machine with the same torch. They are drawn wide, because
at the usual 0.02 all logits of a small model agree and no test could tell a wrong one.

The tokenizers are trained here on `TEXT`, which covers everyday English, some Chinese and
punctuation; every other script and every emoji is unknown to them.
"""

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import Unigram, WordPiece
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

TEXT = """\
The giant panda is a bear that lives in the mountains of China and eats bamboo all day.
What is a panda? A panda is a black and white bear, sometimes called the giant panda.
How many people live in Berlin? About 3,520,031 people were registered in the city in 2015.
The capital of France is Paris; the capital of Germany is Berlin, and that of Italy is Rome.
Who wrote the first program for a computer? Ada Lovelace described one in 1843.
Water boils at 100 degrees at the level of the sea, and at less on a high mountain.
A ship of steel floats, because it pushes aside more water than its own weight.
Is it possible to store the energy of the sun? Yes: in batteries, in heat, and in water.
The heart moves blood through the body; the lungs bring oxygen to it.
To install the package, run: pip install "package[extra]" (version 2.0 or newer).
An error such as 404 - not found - says that the page does not exist any more!
The price of bread rose by 7% between 1990 and 2020, from $1.50 to $1.61 for each loaf.
Read the manual first, then open the box, remove the cover and press the red button.
She said: "I'm sure we'll find it," but nobody believed that they would ever find it.
The river flows from the mountains to the sea, past fields, villages and old towns.
Search engines rank the passages of a document by how well they answer the query.
When does the museum open? The museum in New York opens at ten and closes at six.
The wing of an aircraft turns the air downwards, and the air lifts the wing in return.
Heat moves from the hot body to the cold one; it never goes back without work.
Results show that the pressure at the wall of the tube depends on the speed of the flow.
大熊猫是中国特有的动物，主要生活在四川的山区。
什么是大熊猫？大熊猫是一种黑白相间的熊，吃竹子。
北京是中国的首都，上海是中国最大的城市。
水在一百度的时候会沸腾，在高山上温度会低一些。
这本书是谁写的？这本书是一位中国作家写的。
请先阅读说明书，然后打开盒子，按下红色的按钮。
太阳能可以储存在电池里，也可以储存在水里。
搜索引擎根据问题对文章进行排序。
"""

# the generated module defines its classes at run time, out of a type checker's sight
_ModelProto: Any = vars(sentencepiece_model_pb2)["ModelProto"]

_XLMR_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_SERVED_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # of 64 numbers each: vLLM on a CPU takes no smaller ones
    "intermediate_size": 256,
}


def build_reranker_base(folder: Path, *, seed: int = 0) -> Path:
    """Like bge-reranker-base: XLM-R, one label, 514 position rows and so at most 512 tokens."""
    return _build_xlmr(XLMRobertaForSequenceClassification, folder, seed, positions=514)


def build_reranker_m3(folder: Path, *, seed: int = 1) -> Path:
    """Like bge-reranker-v2-m3: XLM-R, one label, 8194 position rows."""
    return _build_xlmr(XLMRobertaForSequenceClassification, folder, seed, positions=8194)


def build_bert_reranker(folder: Path, *, seed: int = 2) -> Path:
    """A BERT cross-encoder with one label, whose passages have token type 1."""
    return _build_bert(BertForSequenceClassification, folder, seed)


def build_bge_embedder(folder: Path, *, seed: int = 3) -> Path:
    """Like bge-base-en-v1.5: BERT, the vector of [CLS], normalized."""
    _build_bert(BertModel, folder, seed)
    return _add_pooling(folder, "cls", max_length=512)


def build_mean_embedder(folder: Path, *, seed: int = 4) -> Path:
    """A BERT embedder that takes the mean of all tokens' vectors."""
    _build_bert(BertModel, folder, seed)
    return _add_pooling(folder, "mean", max_length=512)


def build_m3_embedder(folder: Path, *, seed: int = 5) -> Path:
    """Like the dense half of bge-m3: XLM-R, the vector of <s>, normalized, 8194 position rows."""
    _build_xlmr(XLMRobertaModel, folder, seed, positions=8194)
    return _add_pooling(folder, "cls", max_length=8192)


def build_served_reranker(folder: Path, *, seed: int = 4) -> Path:
    """Like bge-reranker-base, in sizes that every server of `tests/servers` takes.

    Of this seed, the two sentences of the test at the first use get unlike scores.
    """
    return _build_xlmr(
        XLMRobertaForSequenceClassification, folder, seed, positions=514, sizes=_SERVED_SIZES
    )


def build_served_embedder(folder: Path, *, seed: int = 7) -> Path:
    """Like the dense half of bge-m3, in sizes that every server of `tests/servers` takes."""
    _build_xlmr(XLMRobertaModel, folder, seed, positions=514, sizes=_SERVED_SIZES)
    # in every published config; vLLM asks for it, and transformers 5 no longer writes it
    _edit_json(folder / "config.json", position_embedding_type="absolute")
    return _add_pooling(folder, "cls", max_length=512)


def build_two_labels(folder: Path) -> Path:
    """A classifier of two labels, which is no reranker."""
    return _build_xlmr(XLMRobertaForSequenceClassification, folder, seed=0, positions=514, labels=2)


def build_missing_head(folder: Path) -> Path:
    """A reranker whose file lacks the classification head; transformers would draw it at random."""
    build_reranker_base(folder)
    return _rewrite_weights(
        folder, lambda weights: {k: v for k, v in weights.items() if "classifier" not in k}
    )


def build_embedder_as_reranker(folder: Path) -> Path:
    """An embedding model's weights under a reranker's config, as a careless edit leaves them."""
    build_m3_embedder(folder)
    return _edit_json(
        folder / "config.json",
        architectures=["XLMRobertaForSequenceClassification"],
        id2label={"0": "LABEL_0"},
        label2id={"LABEL_0": 0},
    )


def build_pickle_only(folder: Path) -> Path:
    """Good weights, kept only as a pickle (`pytorch_model.bin`)."""
    build_reranker_base(folder)
    safe = folder / "model.safetensors"
    torch.save(load_file(safe), folder / "pytorch_model.bin")
    safe.unlink()
    return folder


def build_truncated_weights(folder: Path) -> Path:
    """A download that stopped halfway."""
    build_reranker_base(folder)
    safe = folder / "model.safetensors"
    whole = safe.read_bytes()
    safe.write_bytes(whole[: len(whole) // 2])
    return folder


def build_nan_weights(folder: Path) -> Path:
    """One NaN in the last layer, so that every score is NaN."""
    build_reranker_base(folder)

    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["classifier.out_proj.weight"][0, 0] = float("nan")
        return weights

    return _rewrite_weights(folder, spoil)


def build_no_weights(folder: Path) -> Path:
    """A reranker without any file of weights."""
    build_reranker_base(folder)
    (folder / "model.safetensors").unlink()
    return folder


def build_no_config(folder: Path) -> Path:
    """A reranker without its config.json."""
    build_reranker_base(folder)
    (folder / "config.json").unlink()
    return folder


def build_no_tokenizer(folder: Path) -> Path:
    """A reranker without its tokenizer.json."""
    build_reranker_base(folder)
    (folder / "tokenizer.json").unlink()
    return folder


def build_too_many_tokens(folder: Path) -> Path:
    """A tokenizer with 50 ids more than the embedding has rows."""
    build_reranker_base(folder)
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([f"extra{number}" for number in range(50)])
    tokenizer.save(str(path))
    return folder


MODELS: dict[str, Callable[[Path], Path]] = {
    "reranker_base": build_reranker_base,
    "reranker_m3": build_reranker_m3,
    "bert_reranker": build_bert_reranker,
    "bge_embedder": build_bge_embedder,
    "mean_embedder": build_mean_embedder,
    "m3_embedder": build_m3_embedder,
}
"""Good models by name; `tests/conftest.py` has a fixture of each name."""

DAMAGED: dict[str, Callable[[Path], Path]] = {
    "two_labels": build_two_labels,
    "missing_head": build_missing_head,
    "embedder_as_reranker": build_embedder_as_reranker,
    "pickle_only": build_pickle_only,
    "truncated_weights": build_truncated_weights,
    "nan_weights": build_nan_weights,
    "no_weights": build_no_weights,
    "no_config": build_no_config,
    "no_tokenizer": build_no_tokenizer,
    "too_many_tokens": build_too_many_tokens,
}
"""Folders that must be refused, by what is wrong with them."""


def _build_xlmr(
    architecture: Callable[[Any], PreTrainedModel],
    folder: Path,
    seed: int,
    *,
    positions: int,
    labels: int = 1,
    sizes: dict[str, Any] = _SIZES,
) -> Path:
    tokenizer = _unigram_tokenizer()
    config = XLMRobertaConfig(
        **sizes,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    config.num_labels = labels
    _save(architecture(config), seed, folder)
    special = dict(
        zip(("bos_token", "pad_token", "eos_token", "unk_token"), _XLMR_SPECIAL, strict=True)
    )
    _save_tokenizer(
        tokenizer,
        folder,
        **special,
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        tokenizer_class="XLMRobertaTokenizer",
        model_max_length=positions - 2,
    )
    return folder


def _build_bert(architecture: Callable[[Any], PreTrainedModel], folder: Path, seed: int) -> Path:
    tokenizer = _wordpiece_tokenizer()
    config = BertConfig(
        **_SIZES,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=512,
        type_vocab_size=2,
        pad_token_id=0,
    )
    config.num_labels = 1
    _save(architecture(config), seed, folder)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    _save_tokenizer(
        tokenizer,
        folder,
        **dict(zip(names, _BERT_SPECIAL, strict=True)),
        tokenizer_class="BertTokenizer",
        do_lower_case=True,
        model_max_length=512,
    )
    return folder


def _save(model: PreTrainedModel, seed: int, folder: Path) -> None:
    generator = torch.Generator().manual_seed(seed)
    width = 0.25 * (32 / model.config.hidden_size) ** 0.5  # sums are as large in a wider model
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            draw = torch.randn(weight.shape, generator=generator)
            if "LayerNorm.weight" in name:
                weight.copy_(1 + 0.2 * draw)
            elif name.endswith("bias") or "token_type" in name or "position" in name:
                weight.copy_(0.1 * draw)
            elif "classifier" in name and weight.shape[0] <= 2:
                weight.copy_(0.6 * draw)
            else:
                weight.copy_(width * draw)
    model.save_pretrained(folder)


def _unigram_tokenizer() -> Tokenizer:
    """XLM-R's pipeline: SentencePiece's own normalization, Unigram, fairseq's order of ids.

    As in the published file, control tokens are also ordinary pieces, of the best possible score.
    """
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=written,
        vocab_size=600,
        hard_vocab_limit=False,
        model_type="unigram",
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    trained = _ModelProto.FromString(written.getvalue())
    pieces = [(piece, 0.0) for piece in _XLMR_SPECIAL]
    pieces += [(piece.piece, piece.score) for piece in trained.pieces[3:]]
    tokenizer = Tokenizer(Unigram([*pieces, ("<mask>", 0.0)], unk_id=3))
    tokenizer.normalizer = normalizers.Precompiled(trained.normalizer_spec.precompiled_charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.add_special_tokens(
        [
            *(AddedToken(token, normalized=False) for token in _XLMR_SPECIAL),
            AddedToken("<mask>", lstrip=True, normalized=True),
        ]
    )
    return tokenizer


def _wordpiece_tokenizer() -> Tokenizer:
    """BERT's uncased pipeline over the frequent words of `TEXT` and all its characters."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(TEXT))
    counts = Counter(word for word, _ in split)
    characters = sorted({character for word in counts for character in word})
    frequent = sorted(word for word, count in counts.items() if count > 1 and len(word) > 1)
    endings = sorted({f"##{word[-length:]}" for word in counts for length in (2, 3)})
    vocabulary = dict.fromkeys(
        [
            *_BERT_SPECIAL,
            *characters,
            *(f"##{character}" for character in characters),
            *frequent,
            *endings,
        ]
    )
    tokenizer = Tokenizer(
        WordPiece({piece: number for number, piece in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _BERT_SPECIAL])
    return tokenizer


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, **settings: Any) -> None:
    # By hand rather than by save_pretrained: the file that transformers 5 writes has keys that
    # transformers 4 cannot read, and the published folders have neither.
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", settings)


def _add_pooling(folder: Path, mode: str, *, max_length: int) -> Path:
    hidden_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    kind = "sentence_transformers.models."
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    _write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": kind + name}
            for index, (path, name) in enumerate(modules)
        ],
    )
    (folder / "1_Pooling").mkdir()
    _write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden_size,
            "pooling_mode_cls_token": mode == "cls",
            "pooling_mode_mean_tokens": mode == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    _write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_length, "do_lower_case": False},
    )
    return folder


def _rewrite_weights(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Path:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


def _edit_json(path: Path, **changes: Any) -> Path:
    _write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})
    return path.parent


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
