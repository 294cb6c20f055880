"""Folders that sentence-transformers saved: its own score, one pair at a time, or a refusal.

Folders of its present release are saved by it here; older layouts are written by hand. Whatever
key of its files is changed, the score stays the reference's, or the folder is refused.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import (
    LayerNorm,
    Normalize,
    Pooling,
    StaticEmbedding,
)
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForMaskedLM

from bge_rerank_integrations import CheckpointError, UnsupportedModel, load_scorer
from bge_rerank_integrations.drop_in.langchain import HuggingFaceCrossEncoder
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.langchain import BGECrossEncoder
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.st_config import read_settings
from bge_rerank_integrations.local.text import head as heads
from bge_rerank_integrations.tools.verify import verify
from tests.local.onnx_backend.onnx_models import export

pytestmark = pytest.mark.reference

CLOSE = 2e-5
PAIRS = [
    ("what is a panda?", "The giant panda is a bear that lives in the mountains of China."),
    ("What IS a Panda?", "PANDA " * 60),
    ("how many people live in Berlin? " * 8, "Berlin"),
]
ST = "config_sentence_transformers.json"
BERT = "sentence_bert_config.json"


def edit(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**found, **changes}), encoding="utf-8")


def close(found: Any, expected: Any) -> None:
    assert list(found) == pytest.approx(list(expected), abs=CLOSE)


def predicted(folder: Path, **options: Any) -> list[float]:
    model = CrossEncoder(str(folder), device="cpu")
    return [float(model.predict([pair], **options)[0]) for pair in PAIRS]


def logits(folder: Path) -> list[float]:
    return predicted(folder, activation_fn=torch.nn.Identity())


def similarities(folder: Path) -> list[float]:
    model = SentenceTransformer(str(folder), device="cpu")
    return [
        float(model.similarity(model.encode_query([query]), model.encode_document([passage])))
        for query, passage in PAIRS
    ]


def scores(folder: Path, **options: Any) -> list[float]:
    options = {"device": "cpu", "precision": "fp32", "truncation": "longest_first", **options}
    found: list[float] = load_scorer(str(folder), **options).score(PAIRS).tolist()
    return found


def cosines(folder: Path, **options: Any) -> list[float]:
    return scores(folder, truncation=None, **options)


@pytest.fixture
def cross_encoder(bert_reranker: Path, tmp_path: Path) -> Path:
    CrossEncoder(str(bert_reranker), device="cpu").save_pretrained(str(tmp_path / "ce"))
    return tmp_path / "ce"


def build_dense_reranker(embedder: Path, folder: Path) -> Path:
    """Pooling and dense modules behind an encoder, as the Ettin rerankers are."""
    torch.manual_seed(0)
    hidden = 32
    modules = [
        Transformer(str(embedder)),
        Pooling(hidden, "cls"),
        Dense(hidden, 16, activation_function=torch.nn.GELU(), use_residual=True),
        LayerNorm(16),
        Dense(16, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    for module in modules[2:]:
        for weight in module.parameters():
            torch.nn.init.normal_(weight)
    CrossEncoder(modules=modules, device="cpu").save_pretrained(str(folder))
    return folder


@pytest.fixture
def dense_reranker(bge_embedder: Path, tmp_path: Path) -> Path:
    return build_dense_reranker(bge_embedder, tmp_path / "dense")


@pytest.fixture
def embedder(m3_embedder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(m3_embedder, tmp_path / "embedder"))


@pytest.fixture
def embedder_v6(m3_embedder: Path, tmp_path: Path) -> Path:
    model = SentenceTransformer(str(m3_embedder), device="cpu")
    model.save_pretrained(str(tmp_path / "embedder6"))
    return tmp_path / "embedder6"


def test_a_saved_default_prompt_stands_before_the_query(cross_encoder: Path) -> None:
    edit(cross_encoder, ST, prompts={"q": "Find: ", "other": "?"}, default_prompt_name="q")
    expected = logits(cross_encoder)
    close(scores(cross_encoder), expected)
    # the caller's own instruction wins, and the prompt is no part of other prompts
    plain = scores(cross_encoder, query_instruction="")
    assert plain != pytest.approx(expected, abs=1e-3)
    encoder = HuggingFaceCrossEncoder(model_name=str(cross_encoder))
    close(encoder.score(PAIRS), predicted(cross_encoder))
    edit(cross_encoder, ST, default_prompt_name="missing")
    with pytest.raises(UnsupportedModel, match="default_prompt_name='missing'"):
        scores(cross_encoder)


@pytest.mark.parametrize("where", ["saved", "config", "before 4"])
def test_the_saved_activation_is_the_drop_ins_and_a_sigmoid_the_adapters(
    cross_encoder: Path, reranker_base: Path, tmp_path: Path, where: str
) -> None:
    path = "torch.nn.modules.linear.Identity"
    if where == "saved":
        folder = cross_encoder
        edit(folder, ST, activation_fn=path)
    else:
        folder = Path(shutil.copytree(reranker_base, tmp_path / "plain"))
        inside = {"sentence_transformers": {"activation_fn": path, "version": "4.1.0"}}
        older = {"sbert_ce_default_activation_function": path}
        edit(folder, "config.json", **(inside if where == "config" else older))
    expected = predicted(folder)
    assert min(expected) < 0 or max(expected) > 1
    close(HuggingFaceCrossEncoder(model_name=str(folder)).score(PAIRS), expected)
    close(scores(folder), expected)
    options: dict[str, Any] = {"precision": "fp32", "truncation": "longest_first"}
    shown = BGECrossEncoder(model=str(folder), **options).score(PAIRS)
    close(shown, 1 / (1 + np.exp(-np.array(expected))))


def test_a_dense_head_scores_as_the_original(dense_reranker: Path) -> None:
    expected = logits(dense_reranker)
    assert max(expected) - min(expected) > 0.1
    close(scores(dense_reranker), expected)
    close(
        HuggingFaceCrossEncoder(model_name=str(dense_reranker)).score(PAIRS),
        predicted(dense_reranker),
    )
    name = load_scorer(str(dense_reranker), device="cpu").name
    weights = dense_reranker / "4_Dense" / "model.safetensors"
    shutil.copy(dense_reranker / "2_Dense" / "model.safetensors", weights)
    with pytest.raises(CheckpointError, match=r"4_Dense.*asks for"):
        scores(dense_reranker)
    weights.unlink()
    (weights.parent / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="never loaded"):
        scores(dense_reranker)
    assert "#" in name


def test_a_head_gives_each_row_what_it_gives_it_alone() -> None:
    draw = np.random.default_rng(0)
    steps = [
        heads.dense(draw.normal(size=(48, 32)), draw.normal(size=48), "GELU"),
        heads.layer_norm(draw.normal(size=48), draw.normal(size=48)),
        heads.dense(draw.normal(size=(48, 48)), None, "SiLU", residual=True),
        heads.dense(
            draw.normal(size=(3, 48)),
            None,
            "Identity",
            residual=True,
            projection=draw.normal(size=(3, 48)),
        ),
        heads.one_label(1, independent=False),
    ]
    head = heads.Head(tuple(steps))
    rows = draw.normal(size=(300, 32)).astype(np.float32)
    together = head(rows)
    assert together.dtype == np.float32
    assert np.array_equal(together, np.concatenate([head(row[None]) for row in rows]))
    assert np.array_equal(together[::-1], head(rows[::-1]))
    # logits of any size have log-odds
    far = np.array([[1000, -1000, 5], [-1e30, 1e30, 0]], dtype=np.float32)
    odds = heads.Head((heads.one_label(0, independent=False),))(far)
    assert odds[:, 0].tolist() == pytest.approx([995, -2e30])


def test_dense_weights_are_in_the_name(dense_reranker: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(dense_reranker, tmp_path / "other"))
    names = [load_scorer(str(dense_reranker), device="cpu").name.partition("#")[2]]
    data = bytearray((other / "4_Dense" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "4_Dense" / "model.safetensors").write_bytes(data)
    assert load_scorer(str(other), device="cpu").name.partition("#")[2] not in names


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dense_weights_of_half_precision_are_read(dense_reranker: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import load_file, save_file

    for file in dense_reranker.glob("*_Dense/model.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    close(scores(dense_reranker), logits(dense_reranker))


def test_dense_weights_that_are_no_floats_are_refused_by_name(dense_reranker: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = dense_reranker / "2_Dense" / "model.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(UnsupportedModel, match=r"holds '.*' as I8; supported: F64"):
        scores(dense_reranker)


def test_an_embedder_with_a_dense_module(m3_embedder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    modules = [Transformer(str(m3_embedder)), Pooling(32, "mean"), Dense(32, 12), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "d"))
    close(cosines(tmp_path / "d"), similarities(tmp_path / "d"))
    vectors = load_scorer(str(tmp_path / "d"), device="cpu").embed(["a panda"])
    assert vectors.shape == (1, 12)


def test_a_language_model_with_logit_score_is_refused(cross_encoder: Path) -> None:
    """It would be scored by v2-gemma's prompt otherwise."""
    modules = json.loads((cross_encoder / "modules.json").read_text(encoding="utf-8"))
    kind = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    modules.append({"idx": 1, "name": "1", "path": "1_LogitScore", "type": kind})
    (cross_encoder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    edit(cross_encoder, "config.json", architectures=["GemmaForCausalLM"])
    with pytest.raises(UnsupportedModel, match=r"LogitScore.*vLLM"):
        load_scorer(str(cross_encoder))


def test_yes_or_no_rerankers_are_refused_by_name(cross_encoder: Path, reranker_base: Path) -> None:
    folder = Path(shutil.copytree(reranker_base, cross_encoder.parent / "qwen"))
    edit(folder, "config.json", architectures=["Qwen3ForCausalLM"])
    with pytest.raises(UnsupportedModel, match=r"Qwen3-Reranker, mxbai-rerank-v2.*vLLM"):
        load_scorer(str(folder))


@pytest.mark.parametrize("kind", ["custom_st.Transformer", "sentence_transformers.models.CNN"])
def test_modules_that_do_not_run_are_refused_by_name(embedder: Path, kind: str) -> None:
    modules = json.loads((embedder / "modules.json").read_text(encoding="utf-8"))
    modules[0]["type"] = kind
    (embedder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(
        UnsupportedModel, match=f"modules.json of .* has type={kind!r}; supported values: Dense"
    ):
        load_scorer(str(embedder))


def test_a_chat_template_is_refused_where_the_original_renders_it(
    reranker_base: Path, cross_encoder: Path, tmp_path: Path
) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{{ 'relevant?' }}"
    )
    plain = Path(shutil.copytree(reranker_base, tmp_path / "plain"))
    bare = predicted(plain)
    (plain / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert predicted(plain) != pytest.approx(bare, abs=1e-3)
    saved = tmp_path / "saved"
    CrossEncoder(str(plain), device="cpu").save_pretrained(str(saved))
    for folder in (plain, saved):
        with pytest.raises(UnsupportedModel, match="chat template"):
            load_scorer(str(folder))
        with pytest.raises(UnsupportedModel, match="chat template"):
            HuggingFaceCrossEncoder(model_name=str(folder))
    # one that was added later is not rendered
    (cross_encoder / "chat_template.jinja").write_text(template, encoding="utf-8")
    close(scores(cross_encoder), logits(cross_encoder))


def test_a_prompt_that_the_library_leaves_out_is_asked_for(embedder: Path) -> None:
    edit(embedder, ST, prompts={"query": "query: ", "passage": "passage: "})
    with pytest.raises(UnsupportedModel, match="passage_instruction"):
        cosines(embedder)
    close(cosines(embedder, passage_instruction=""), similarities(embedder))
    edit(embedder, ST, prompts={"query": "query: ", "document": "passage: "})
    close(cosines(embedder), similarities(embedder))


@pytest.mark.parametrize("kind", ["multi_label_classification", None])
def test_one_label_of_several(
    damaged: Callable[[str], Path], tmp_path: Path, kind: str | None
) -> None:
    folder = Path(shutil.copytree(damaged("two_labels"), tmp_path / "labels"))
    edit(folder, "config.json", problem_type=kind, id2label={"0": "no", "1": "yes"})
    with pytest.raises(UnsupportedModel, match=r"of 2 labels.*label=\.\.\. \(no, yes\)"):
        scores(folder)
    model = CrossEncoder(str(folder), device="cpu")
    both = np.array([model.predict([pair])[0] for pair in PAIRS], dtype=np.float64)
    odds = np.exp(both)
    expected = 1 / (1 + 1 / odds) if kind else odds / odds.sum(axis=1, keepdims=True)
    for label, column in ((0, 0), ("no", 0), (1, 1), ("yes", 1)):
        raw = np.array(scores(folder, label=label), dtype=np.float64)
        close(1 / (1 + np.exp(-raw)), expected[:, column])
    shown = BGECrossEncoder(
        model=str(folder), label="yes", truncation="longest_first", precision="fp32"
    )
    close(shown.score(PAIRS), expected[:, 1])
    assert load_scorer(str(folder), label="yes").name.endswith(",label=1]")
    for wrong in ("maybe", 2, -1, True):
        with pytest.raises(InvalidInputError, match=f"label is {wrong!r}"):
            load_scorer(str(folder), label=wrong)


def test_long_pairs_of_a_saved_cross_encoder_are_cut_as_the_reference_cuts_them(
    cross_encoder: Path,
) -> None:
    edit(cross_encoder, BERT, max_seq_length=40)
    close(scores(cross_encoder, truncation=None), logits(cross_encoder))
    by_the_query = scores(cross_encoder, truncation="only_second")
    assert abs(by_the_query[2] - logits(cross_encoder)[2]) > 0.01
    for options, said in (
        ({}, "max_length=40,truncation=longest_first"),
        ({"query_max_length": 20}, "max_length=40,query_max_length=20"),
        ({"truncation": "only_second"}, "max_length=40,query_max_length=30"),
    ):
        name = load_scorer(str(cross_encoder), device="cpu", precision="fp32", **options).name
        assert said in name


@pytest.mark.parametrize(
    "key",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid", "version": "4.1.0"}},
        {"sbert_ce_default_activation_function": "torch.nn.Identity"},
    ],
    ids=["4 and 5", "before 4"],
)
@pytest.mark.parametrize("model", ["reranker_base", "reranker_m3"])
def test_long_pairs_of_a_folder_that_an_older_release_saved(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, key: dict[str, Any]
) -> None:
    """It has no modules.json: a key of config.json alone says who saved it."""
    folder = Path(shutil.copytree(request.getfixturevalue(model), tmp_path / "older"))
    long = [("panda bear " * 40, "The giant panda lives in China. " * 60), ("panda? " * 400, "hi")]
    options: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
    by_flag_embedding = load_scorer(str(folder), **options).score(long)
    edit(folder, "config.json", **key)
    encoder = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    expected = [float(encoder.predict([pair])[0]) for pair in long]
    close(load_scorer(str(folder), **options).score(long), expected)
    assert list(by_flag_embedding) != pytest.approx(expected, abs=1e-3)
    outcomes = {one.reference: one.outcome for one in verify(str(folder)).comparisons}
    assert outcomes["sentence-transformers"] == "equal"
    assert outcomes["FlagEmbedding"] == "not compared"


def test_a_saved_prompt_with_a_control_token_is_parsed_or_refused(
    cross_encoder: Path, embedder: Path
) -> None:
    edit(cross_encoder, ST, prompts={"q": "[MASK] find: "}, default_prompt_name="q")
    edit(embedder, ST, prompts={"query": "", "document": "<mask> "})
    for folder, token, name, expected in (
        (cross_encoder, r"\[MASK\]", "query_instruction", logits),
        (embedder, "<mask>", "passage_instruction", similarities),
    ):
        options: dict[str, Any] = {"truncation": None}
        with pytest.raises(UnsupportedModel, match=f"'{token}', which .*'literal'.* give {name}"):
            scores(folder, **options)
        close(scores(folder, special_tokens="parse", **options), expected(folder))
        options[name] = "Text: "
        assert np.isfinite(scores(folder, **options)).all()


def test_lower_case_as_its_release_6_saves_it(mean_embedder: Path, tmp_path: Path) -> None:
    modules = [Transformer(str(mean_embedder), do_lower_case=True), Pooling(32, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "lower"))
    saved = json.loads((tmp_path / "lower" / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["normalizer"]["type"] == "Sequence"
    close(cosines(tmp_path / "lower"), similarities(tmp_path / "lower"))
    # where letters would stay, the two generations of transformers differ
    edit(tmp_path / "lower", "tokenizer_config.json", do_lower_case=False)
    with pytest.raises(CheckpointError, match="tokenizer_class='BertTokenizer'"):
        cosines(tmp_path / "lower")


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_an_embedder_whose_config_names_the_masked_model(
    bert_reranker: Path, tmp_path: Path, kind: str
) -> None:
    """As all-mpnet-base-v2 does: the head is in the weights, and pooling does not read it."""
    plain = tmp_path / "plain"
    torch.manual_seed(2)
    config = AutoConfig.for_model(kind, vocab_size=600, hidden_size=32, num_hidden_layers=2)
    config.update({"num_attention_heads": 4, "intermediate_size": 48})
    masked: Any = AutoModelForMaskedLM
    model = masked.from_config(config)
    model.save_pretrained(plain)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert_reranker / file, plain)
    modules = [Transformer(str(plain)), Pooling(config.hidden_size, "mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "saved"))
    shutil.copy(plain / "config.json", tmp_path / "saved")
    shutil.copy(plain / "model.safetensors", tmp_path / "saved")
    close(cosines(tmp_path / "saved"), similarities(tmp_path / "saved"))
    with pytest.raises(UnsupportedModel, match="gives no relevance score"):
        cosines(plain)


def test_modules_without_a_config_are_refused_by_name(tmp_path: Path, bert_reranker: Path) -> None:
    static = StaticEmbedding(Tokenizer.from_file(str(bert_reranker / "tokenizer.json")), None, 8)
    SentenceTransformer(modules=[static], device="cpu").save_pretrained(str(tmp_path))
    with pytest.raises(UnsupportedModel, match=r"static_embedding\.StaticEmbedding'; supported"):
        load_scorer(str(tmp_path))


def test_verify_reads_the_settings_of_a_saved_cross_encoder(
    cross_encoder: Path, dense_reranker: Path
) -> None:
    edit(cross_encoder, BERT, max_seq_length=40)
    edit(cross_encoder, ST, prompts={"query": "Find: "}, default_prompt_name="query")
    for folder in (cross_encoder, dense_reranker):
        found = verify(str(folder)).comparisons
        outcomes = {one.reference: one.outcome for one in found}
        assert outcomes["sentence-transformers"] == "equal"
        assert outcomes["transformers"] == outcomes["FlagEmbedding"] == "not compared"


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_one_label_of_a_graph(
    bert_reranker: Path, damaged: Callable[[str], Path], tmp_path: Path, backend: str
) -> None:
    folder = Path(shutil.copytree(damaged("two_labels"), tmp_path / "labels"))
    expected = scores(folder, label=1)
    export(folder, folder / "model.onnx", "logits", inputs=("input_ids", "attention_mask"))
    close(scores(folder, label=1, backend=backend), expected)
    other = Path(shutil.copytree(bert_reranker, tmp_path / "one"))
    export(other, other / "model.onnx", "logits")
    edit(other, "config.json", id2label={"0": "no", "1": "yes"})
    with pytest.raises(UnsupportedModel, match=r"\[batch, 2\]; it has logits \[\?, 1\]"):
        scores(other, label=1, backend=backend)


def test_a_label_of_a_model_that_has_one_is_refused(reranker_base: Path, embedder: Path) -> None:
    for folder in (reranker_base, embedder):
        with pytest.raises(InvalidInputError, match=r"label is 0.*not a classifier with several"):
            load_scorer(str(folder), label=0)
    with pytest.raises(InvalidInputError, match="not a classifier"):
        load_scorer("offline", label=0)


# What each key of the files may legally be instead. The reference loads every one of them.
FLIPS: dict[str, dict[str, list[tuple[str, Any]]]] = {
    "cross_encoder": {
        ST: [
            ("prompts", {"query": "Find: "}), ("default_prompt_name", "query"),
            ("activation_fn", "torch.nn.Identity"), ("activation_fn", "torch.nn.Tanh"),
            ("activation_fn", None), ("activation_fn", "my.package.Function"),
            ("model_type", "SentenceTransformer"), ("__version__", {}),
            ("keep_in_fp32_modules", ["0.model.classifier"]), ("unknown", 1),
        ],
        BERT: [
            ("max_seq_length", 24), ("max_seq_length", None), ("do_lower_case", True),
            ("processing_kwargs", {"text": {"max_length": 20, "truncation": True}}),
            ("processing_kwargs", {}), ("unpad_inputs", False), ("query_length", 8),
            ("document_length", 8), ("processor_kwargs", {"model_max_length": 30}),
            ("tokenizer_args", {"model_max_length": 30}), ("model_kwargs", {"dtype": "float32"}),
            ("config_kwargs", {"num_hidden_layers": 1}), ("config_args", {"layer_norm_eps": 0.5}),
        ],
        "config.json": [
            ("sentence_transformers", {"activation_fn": "torch.nn.Identity"}),
            ("sbert_ce_default_activation_function", "torch.nn.Tanh"),
        ],
        "tokenizer_config.json": [("model_max_length", 24), ("model_max_length", 10**30)],
    },
    "dense_reranker": {
        ST: [("prompts", {"query": "Find: "}), ("default_prompt_name", "query")],
        BERT: [("max_seq_length", 24), ("do_lower_case", True)],
        "1_Pooling/config.json": [
            ("pooling_mode", mode)
            for mode in ("cls", "mean", "max", "lasttoken", "weightedmean", ["cls"])
        ] + [("include_prompt", False), ("embedding_dimension", 5)],
        "2_Dense/config.json": [
            ("activation_function", f"torch.nn.modules.activation.{name}")
            for name in ("Tanh", "ReLU", "Sigmoid", "SiLU", "GELU", "Softplus", "ELU")
        ] + [("activation_function", "my.package.Function")],
        "3_LayerNorm/config.json": [("dimension", 16)],
        "4_Dense/config.json": [
            ("activation_function", "torch.nn.Tanh"), ("use_residual", False), ("bias", True),
            ("module_input_name", "sentence_embedding"), ("module_output_name", "scores"),
        ],
    },
    "embedder": {
        ST: [
            ("prompts", {"query": "Find: ", "document": "Text: "}),
            ("prompts", {"Query": "Find: "}),
            ("default_prompt_name", "query"), ("truncate_dim", 8), ("truncate_dim", None),
            *(("similarity_fn_name", name) for name in ("cosine", "dot", "euclidean", "manhattan")),
            ("model_type", "SentenceTransformer"), ("unknown", 1), ("requirements", {}),
        ],
        BERT: [
            ("max_seq_length", 24), ("max_seq_length", None), ("do_lower_case", True),
            ("query_length", 8), ("document_length", 8), ("processor_kwargs", {}),
            ("model_args", {"add_pooling_layer": False}), ("tokenizer_args", {}),
        ],
        "1_Pooling/config.json": [
            ("pooling_mode_cls_token", False), ("pooling_mode_mean_tokens", True),
            ("pooling_mode_max_tokens", True), ("pooling_mode_lasttoken", True),
            ("pooling_mode_weightedmean_tokens", True), ("pooling_mode", "mean"),
            ("include_prompt", False),
        ],
        "2_Normalize/config.json": [
            ("module_input_name", "token_embeddings"), ("module_output_name", "sentence_embedding"),
        ],
        "tokenizer_config.json": [("model_max_length", 24)],
    },
    "embedder_v6": {
        ST: [("similarity_fn_name", "dot"), ("truncate_dim", 8), ("prompts", {"query": "Find: "})],
        BERT: [("max_seq_length", 24), ("query_length", 8), ("do_lower_case", True)],
        "1_Pooling/config.json": [("pooling_mode", "mean"), ("pooling_mode", "max")],
        "2_Normalize/config.json": [("module_input_name", "token_embeddings")],
        "tokenizer_config.json": [("model_max_length", 24)],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "key", "value", "refused"),
    [
        (1, "idx", 7, ""), (1, "name", "pooled", ""), (0, "kwargs", [], ""),
        (2, "path", "elsewhere", ""),
        (1, "type", "sentence_transformers.sentence_transformer.modules.pooling.Pooling", ""),
        (2, "type", "sentence_transformers.base.modules.normalize.Normalize", ""),
        (1, "kwargs", ["task"], "kwargs="), (0, "unknown", 1, "unknown=1"),
        (0, "path", "0_Transformer", "path='0_Transformer'"),
        (1, "path", "../1_Pooling", "points outside"),
        (2, "type", "sentence_transformers.models.Pooling", "one Pooling"),
        (1, "type", "sentence_transformers.models.WeightedLayerPooling", "WeightedLayerPooling"),
        (0, "type", "sentence_transformers.base.modules.router.Router", "router.Router"),
    ],
    ids=str,
)  # fmt: skip
def test_a_changed_module_gives_the_references_score_or_a_refusal(
    embedder: Path, place: int, key: str, value: Any, refused: str
) -> None:
    file = embedder / "modules.json"
    modules = json.loads(file.read_text(encoding="utf-8"))
    modules[place][key] = value
    file.write_text(json.dumps(modules), encoding="utf-8")
    if refused:
        with pytest.raises((UnsupportedModel, CheckpointError), match=refused):
            cosines(embedder)
    else:
        close(cosines(embedder), similarities(embedder))


@pytest.mark.parametrize("order", [(0, 1), (0, 2, 1), (1, 0, 2), (0,), (0, 1, 2, 2), (0, 1, 1)])
def test_modules_in_another_order(embedder: Path, order: tuple[int, ...]) -> None:
    file = embedder / "modules.json"
    modules = json.loads(file.read_text(encoding="utf-8"))
    listed = [{**modules[i], "name": str(place)} for place, i in enumerate(order)]
    file.write_text(json.dumps(listed), encoding="utf-8")
    if order in ((0, 1), (0, 1, 2, 2)):
        close(cosines(embedder), similarities(embedder))
    else:
        with pytest.raises(UnsupportedModel, match=r"modules"):
            cosines(embedder)


def test_other_kinds_of_model_are_refused_by_name(embedder: Path) -> None:
    edit(embedder, ST, model_type="SparseEncoder")
    with pytest.raises(UnsupportedModel, match="model_type='SparseEncoder'"):
        cosines(embedder)


def flips() -> Iterator[Any]:
    for kind, files in FLIPS.items():
        for file, changes in files.items():
            for key, value in changes:
                yield pytest.param(kind, file, key, value, id=f"{kind}-{file}-{key}-{value}"[:90])


@pytest.mark.parametrize(("kind", "file", "key", "value"), list(flips()))
def test_a_changed_key_gives_the_references_score_or_a_refusal(
    request: pytest.FixtureRequest, kind: str, file: str, key: str, value: Any
) -> None:
    folder: Path = request.getfixturevalue(kind)
    if key == "default_prompt_name":
        edit(folder, file, prompts={"query": "Find: "})
    edit(folder, file, **{key: value})
    embeds = kind.startswith("embedder")
    try:
        found = cosines(folder) if embeds else scores(folder)
    except UnsupportedModel as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert key in refused or str(value) in refused or "pools by" in refused
        return
    close(found, similarities(folder) if embeds else logits(folder))
    if not embeds:
        close(HuggingFaceCrossEncoder(model_name=str(folder)).score(PAIRS), predicted(folder))


@pytest.mark.parametrize("kind", ["cross_encoder", "dense_reranker", "embedder"])
def test_odd_values_raise_no_raw_error(request: pytest.FixtureRequest, kind: str) -> None:
    folder: Path = request.getfixturevalue(kind)
    refused = 0
    files = [*folder.glob("*_*/config.json"), *folder.glob("*sentence*.json")]
    for file in [*files, folder / "config.json"]:
        before = file.read_text(encoding="utf-8") if file.is_file() else "{}"
        flipped = FLIPS[kind].get(file.relative_to(folder).as_posix(), [])
        for key in {key for key, _ in flipped} | set(json.loads(before) if file in files else ()):
            for odd in (5, -1, "odd", [], [None], {"odd": 1}, True):
                file.write_text(json.dumps({**json.loads(before), key: odd}), encoding="utf-8")
                try:
                    read_settings(Checkpoint(str(folder), folder))
                except (UnsupportedModel, CheckpointError):
                    refused += 1
        file.write_text(before, encoding="utf-8")
    assert refused > 50


def test_what_is_obeyed_is_not_refused(request: pytest.FixtureRequest) -> None:
    """The generated test would pass if everything were refused."""
    for kind, file, key, value in [
        ("cross_encoder", BERT, "max_seq_length", 24),
        ("embedder", ST, "truncate_dim", 8),
        ("embedder", BERT, "do_lower_case", True),
        ("embedder_v6", "tokenizer_config.json", "model_max_length", 24),
        ("embedder_v6", "1_Pooling/config.json", "pooling_mode", "mean"),
        ("dense_reranker", "2_Dense/config.json", "activation_function", "torch.nn.ReLU"),
    ]:
        folder: Path = request.getfixturevalue(kind)
        before = cosines(folder) if kind.startswith("embedder") else scores(folder)
        edit(folder, file, **{key: value})
        after = cosines(folder) if kind.startswith("embedder") else scores(folder)
        assert after != pytest.approx(before, abs=1e-3), (kind, key)
