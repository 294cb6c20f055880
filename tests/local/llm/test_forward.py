"""What the forward reads, computes and shares, and that none of it changes a score."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import CheckpointError, NonFiniteScoreError, load_scorer
from bge_rerank_integrations.local.torch_backend.decoder import split_batch
from tests.contract.pairs import PAIRS, TOLERANCE
from tests.local.llm import tiny_llms
from tests.local.llm.assembly import assemble, method_of
from tests.local.llm.tiny_llms import Weights, rewrite_config, rewrite_weights

LONG_QUERY = "what is a panda and how many people live in the city of Berlin in Germany " * 2
PASSAGES = [passage for _, passage in PAIRS[:10]]
SHARED = [(LONG_QUERY, passage) for passage in PASSAGES]
MIXED = [*SHARED, *PAIRS]
COMPRESS: dict[str, Any] = {"compress_ratio": 3, "compress_layers": [2, 5]}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("gemma", {}),
    ("minicpm", {"cutoff_layers": [3, 6]}),
    ("gemma2", {"cutoff_layers": [3, 7]}),
    ("gemma2", {"cutoff_layers": [3, 7], **COMPRESS}),
    ("gemma2-window", {"cutoff_layers": [4, 7], **COMPRESS}),
]


def load(folder: Path, **options: Any) -> Any:
    return load_scorer(str(folder), device="cpu", precision="fp32", **options)


def copy_without(weights: Weights, *beginnings: str) -> Weights:
    return {name: w for name, w in weights.items() if not name.startswith(beginnings)}


@pytest.mark.parametrize(("model", "options"), MODELS, ids=str)
@pytest.mark.parametrize("attention", ["runs", "padded"])
@pytest.mark.parametrize("pairs", [SHARED, MIXED], ids=["one query", "many queries"])
def test_a_shared_query_and_the_attention_path_change_no_score(
    llm: Callable[[str], Path],
    model: str,
    options: dict[str, Any],
    attention: str,
    pairs: list[tuple[str, str]],
) -> None:
    plan = {"attention": attention}
    plain = assemble(llm(model), share_prefix=False, **options)
    other = assemble(llm(model), share_prefix=True, plan=plan, **options)
    assert other.plan.attention == attention
    assert other.score_layers(pairs) == pytest.approx(plain.score_layers(pairs), abs=TOLERANCE)


def parts_of(folder: Path, pairs: list[tuple[str, str]], **how: bool) -> tuple[list[Any], int]:
    tokenizer, method = method_of(folder)
    sequences = method.encode(pairs, range(len(pairs)), tokenizer).sequences
    parts, _ = split_batch(sequences, **{"share": True, **how})
    return parts, sum(len(sequence.ids) for sequence in sequences)


def test_a_query_is_shared_where_that_saves_a_fifth_of_the_tokens(
    llm: Callable[[str], Path],
) -> None:
    parts, total = parts_of(llm("gemma"), SHARED)
    prefix, *rest = parts
    assert prefix.prefix is None
    assert len(rest) == len(SHARED)
    assert all(part.prefix == 0 and part.start == prefix.length for part in rest)
    assert sum(part.length for part in parts) == total - (len(SHARED) - 1) * prefix.length
    # a short query before long passages is not worth the copies, nor one passage alone
    short = [("panda", passage * 5) for passage in PASSAGES if len(passage) > 50]
    for pairs, how in ((short, {}), (SHARED[:1], {}), (SHARED, {"share": False})):
        parts, total = parts_of(llm("gemma"), pairs, **how)
        assert [part.prefix for part in parts] == [None] * len(pairs)
        assert sum(part.length for part in parts) == total
    # two long queries are two prefixes
    two = [*SHARED, *(("Who? " + query, passage) for query, passage in SHARED)]
    assert {part.prefix for part in parts_of(llm("gemma"), two)[0]} == {None, 0, 11}


def test_shards_score_as_one_file_does(llm: Callable[[str], Path], tmp_path: Path) -> None:
    for model in ("gemma", "minicpm", "gemma2"):
        folder = tiny_llms.split_into_shards(tiny_llms.MODELS[model](tmp_path / model), 3)
        assert len(list(folder.glob("*.safetensors"))) == 3
        assert load(folder).score(PAIRS).tolist() == load(llm(model)).score(PAIRS).tolist()


@pytest.mark.parametrize("damage", ["missing", "nan"])
@pytest.mark.parametrize("model", ["minicpm", "gemma2"])
def test_nothing_beyond_the_deepest_cutoff_is_read(
    llm: Callable[[str], Path], tmp_path: Path, model: str, damage: str
) -> None:
    beyond = tuple(f"model.layers.{number}." for number in range(5, 8))
    # of minicpm's heads those of layers 3 and 5, of gemma2's the first two
    heads = {"minicpm": (1, 3), "gemma2": (0, 1)}[model]
    unused = tuple(f"lm_head.{number}." for number in range(7) if number not in heads)

    def spoil(weights: Weights) -> Weights:
        if damage == "missing":
            return copy_without(weights, *beyond, *unused)
        return {
            name: np.full_like(w, np.nan) if name.startswith((*beyond, *unused)) else w
            for name, w in weights.items()
        }

    folder = rewrite_weights(tiny_llms.MODELS[model](tmp_path), spoil)
    options = {"cutoff_layers": [3, 5]}
    whole = load(llm(model), **options).score_layers(PAIRS)
    assert load(folder, **options).score_layers(PAIRS).tolist() == whole.tolist()
    # and the layers below are: without the last of them the model is refused
    rewrite_weights(folder, lambda weights: copy_without(weights, "model.layers.4.mlp.up_proj"))
    with pytest.raises(CheckpointError, match=r"model\.layers\.4\.mlp\.up_proj\.weight"):
        load(folder, **options)


@pytest.mark.parametrize(
    ("model", "head"), [("minicpm", "lm_head.6"), ("gemma2", "lm_head.0"), ("gemma", "model.norm")]
)
def test_a_head_that_is_missing_is_named(tmp_path: Path, model: str, head: str) -> None:
    folder = tiny_llms.MODELS[model](tmp_path)
    rewrite_weights(folder, lambda weights: copy_without(weights, head))
    with pytest.raises(CheckpointError, match=head.replace(".", r"\.")):
        load(folder)


def test_a_head_stored_by_itself_is_used_and_only_its_row_of_yes(tmp_path: Path) -> None:
    folder = tiny_llms.MODELS["gemma-untied"](tmp_path)
    scores = load(folder).score(PAIRS)
    yes = row_of(folder, "Yes")

    def double_yes(weights: Weights) -> Weights:
        head = np.full_like(weights["lm_head.weight"], np.nan)
        head[yes] = 2 * weights["lm_head.weight"][yes]
        return {**weights, "lm_head.weight": head}

    rewrite_weights(folder, double_yes)
    assert load(folder).score(PAIRS) == pytest.approx(2 * scores, abs=1e-6)


def test_else_the_embedding_of_yes_is_the_head(tmp_path: Path) -> None:
    folder = tiny_llms.MODELS["gemma"](tmp_path)
    # "Yes" is not among the tokens that go in, so its row is used for the score alone
    options = {"prompt": "Is it so?"}
    pairs = [(query, passage) for query, passage in PAIRS if "Yes" not in query + passage]
    assert len(pairs) > 9
    scores = load(folder, **options).score(pairs)
    yes, no, space_yes = (row_of(folder, token) for token in ("Yes", "No", "▁Yes"))

    def change(weights: Weights) -> Weights:
        table = weights["model.embed_tokens.weight"].copy()
        table[yes] *= 2
        table[[no, space_yes]] = 7
        return {**weights, "model.embed_tokens.weight": table}

    rewrite_weights(folder, change)
    assert load(folder, **options).score(pairs) == pytest.approx(2 * scores, abs=1e-6)


@pytest.mark.parametrize("said", [{}, {"tie_word_embeddings": True}], ids=str)
def test_a_head_that_is_stored_although_it_is_tied_must_be_the_embedding(
    llm: Callable[[str], Path], tmp_path: Path, said: dict[str, Any]
) -> None:
    # transformers 4 passes over the stored head, and transformers 5 takes it
    folder = rewrite_config(tiny_llms.MODELS["gemma"](tmp_path), **said)
    rewrite_weights(folder, lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"]})
    assert load(folder).score(PAIRS).tolist() == load(llm("gemma")).score(PAIRS).tolist()
    rewrite_weights(folder, lambda w: {**w, "lm_head.weight": 2 * w["lm_head.weight"]})
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight', which differs"):
        load(folder)


def row_of(folder: Path, token: str) -> int:
    vocabulary = method_of(folder)[0]._parsing.get_vocab()
    return int(vocabulary[token])


@pytest.mark.parametrize(("model", "step"), [("gemma2", 1), ("gemma2-steps", 2)])
def test_heads_follow_the_request_or_the_layer(
    llm: Callable[[str], Path], tmp_path: Path, model: str, step: int
) -> None:
    folder = llm(model)
    both, deepest = {"cutoff_layers": [4, 8]}, {"cutoff_layers": [8]}
    by_layer = load(folder, head_indexing="layer", **both).score_layers(PAIRS)
    alone = load(folder, head_indexing="layer", **deepest).score_layers(PAIRS)
    assert alone[:, 0] == pytest.approx(by_layer[:, 1], abs=TOLERANCE)
    # by request, the same numbers need the layers' own heads in the first places
    own = [(layer - 2) // step for layer in (4, 8)]

    def swap(places: list[int]) -> Path:
        def change(weights: Weights) -> Weights:
            heads = {
                f"lm_head.{to}.linear_head.weight": weights[f"lm_head.{place}.linear_head.weight"]
                for to, place in enumerate(places)
            }
            return {**weights, **heads}

        return rewrite_weights(tiny_llms.MODELS[model](tmp_path / str(places)), change)

    assert load(swap(own), **both).score_layers(PAIRS).tolist() == by_layer.tolist()
    assert load(swap(own[1:]), **deepest).score(PAIRS).tolist() == alone[:, 0].tolist()
    # so asked for together or alone, the last layer's scores differ: the reference's quirk
    request = load(folder, **both).score_layers(PAIRS)
    assert np.abs(request[:, 1] - by_layer[:, 1]).max() > 0.1
    assert np.abs(request[:, 1] - load(folder, **deepest).score(PAIRS)).max() > 0.1


def test_a_layerwise_model_gives_each_layer_its_own_head(llm: Callable[[str], Path]) -> None:
    folder = llm("minicpm")
    layers = [2, 4, 5, 8]
    together = load(folder, cutoff_layers=layers).score_layers(PAIRS)
    assert together.shape == (len(PAIRS), 4)
    for column, layer in enumerate(layers):
        alone = load(folder, cutoff_layers=[layer])
        assert alone.score(PAIRS) == pytest.approx(together[:, column], abs=TOLERANCE)
    scorer = load(folder, cutoff_layers=[5, 2, 8, 4, 5])
    assert scorer.name == load(folder, cutoff_layers=layers).name
    assert scorer.score_layers(PAIRS).tolist() == together.tolist()
    assert scorer.score(PAIRS).tolist() == together[:, -1].tolist()


@pytest.mark.parametrize("model", ["gemma", "gemma2", "minicpm"])
@pytest.mark.parametrize("name", ["embed_tokens", "self_attn.o_proj", "mlp.down_proj"])
def test_sums_that_overflow_in_a_norm_are_an_error(tmp_path: Path, model: str, name: str) -> None:
    folder = tiny_llms.MODELS[model](tmp_path)

    def enlarge(weights: Weights) -> Weights:
        return {key: w * np.float32(1e25 if name in key else 1) for key, w in weights.items()}

    rewrite_weights(folder, enlarge)
    with pytest.raises(NonFiniteScoreError):
        load(folder).score(PAIRS)
