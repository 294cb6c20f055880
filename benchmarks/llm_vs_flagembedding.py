"""An LLM reranker against FlagEmbedding's FlagLLMReranker: peak memory and time, on a CPU.

    python -m benchmarks.llm_vs_flagembedding
    python -m benchmarks.llm_vs_flagembedding --hidden 2048 --layers 18 --only ours

A Gemma of random float32 weights is written to a temporary folder; each contender loads it in a
process of its own and they score in turns. FlagEmbedding runs on the transformers that is found;
`--reference-path FOLDER` puts another before it, such as .venv-transformers4 (see the Makefile).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
Pairs = list[tuple[str, str]]
QUERY = "how do people live in the mountains of China"


def main() -> None:
    """Build the model, race, print."""
    options = arguments()
    if options.contender:
        serve(options.contender, Path(options.folder), options.precision)
        return
    names = ("ours", "FlagEmbedding") if options.only is None else (options.only,)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write_gemma(Path(folder), options)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        print(
            f"Gemma of {options.layers} layers, hidden {options.hidden}, feed-forward "
            f"{options.ffn}, vocabulary {options.vocabulary}: {size / 1e9:.2f} GB in float32, "
            f"written in {time.perf_counter() - started:.0f} s"
        )
        contenders = {name: Contender(name, folder, options) for name in names}
        scores = {name: contender.ask("score")["scores"] for name, contender in contenders.items()}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(options.rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                seconds[name].append(contenders[name].ask("score")["seconds"])
        memory = {name: contender.ask("memory")["peak"] for name, contender in contenders.items()}
        for contender in contenders.values():
            contender.close()
    report(options, contenders, seconds, memory, scores)


def report(
    options: argparse.Namespace,
    contenders: dict[str, "Contender"],
    seconds: dict[str, list[float]],
    memory: dict[str, int],
    scores: dict[str, list[float]],
) -> None:
    """Print a line for each contender, the ratios, and how far the scores are apart."""
    load = os.getloadavg()[0]
    print(
        f"1 query, {options.passages} passages of {options.tokens} tokens; {options.threads} "
        f"threads of {os.cpu_count()} cores, load {load:.1f}; medians of {options.rounds} rounds\n"
    )
    for name, taken in seconds.items():
        print(
            f"{name:14} {statistics.median(taken):8.3f} s (from {min(taken):.3f} to "
            f"{max(taken):.3f})   peak {memory[name] / 1e9:6.2f} GB   {contenders[name].about}"
        )
    if len(seconds) == 2:
        time_ratio = statistics.median(seconds["FlagEmbedding"]) / statistics.median(
            seconds["ours"]
        )
        difference = np.abs(np.subtract(scores["ours"], scores["FlagEmbedding"])).max()
        print(
            f"\nFlagEmbedding / ours: time {time_ratio:.1f}, memory "
            f"{memory['FlagEmbedding'] / memory['ours']:.1f}; largest difference of two scores "
            f"{difference:.1e}, of {np.ptp(scores['ours']):.2f} between the best and the worst"
        )


class Contender:
    """The parent's end of a process that has loaded one contender."""

    def __init__(self, name: str, folder: str, options: argparse.Namespace) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)}
        if name == "FlagEmbedding" and options.reference_path:
            environment["PYTHONPATH"] = options.reference_path
        command = [sys.executable, "-m", "benchmarks.llm_vs_flagembedding", "--contender", name]
        command += ["--folder", folder, "--precision", options.precision]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=ROOT,
            text=True,
        )
        self.about = self.ask(json.dumps(pairs(options)))["about"]

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to one line; raises `ChildProcessError` when the process has died."""
        stdin, stdout = self._pipes()
        stdin.write(line + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise ChildProcessError(f"a contender ended with {self._process.wait()}")
        answered: dict[str, Any] = json.loads(answer)
        return answered

    def close(self) -> None:
        """End the process."""
        self._pipes()[0].close()
        self._process.wait()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        return stdin, stdout


def serve(name: str, folder: Path, precision: str) -> None:
    """Load, then answer the parent's lines: pairs first, then "score" or "memory"."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what the libraries print is no answer
    given: Pairs = [(query, passage) for query, passage in json.loads(sys.stdin.readline())]
    started = time.perf_counter()
    score, about = LOADERS[name](folder, precision)
    about += f", loaded in {time.perf_counter() - started:.1f} s"
    print(json.dumps({"about": about}), file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            answer: dict[str, Any] = {"peak": peak_memory()}
        else:
            begin = time.perf_counter()
            scores = score(given)
            answer = {"seconds": time.perf_counter() - begin, "scores": scores}
        print(json.dumps(answer), file=answers, flush=True)


def load_ours(folder: Path, precision: str) -> tuple[Callable[[Pairs], Sequence[float]], str]:
    """Our scorer, and what it says of itself."""
    from bge_rerank_integrations import load_scorer

    scorer = load_scorer(str(folder), device="cpu", precision=precision)  # type: ignore[arg-type]
    return lambda given: scorer.score(given).tolist(), str(scorer.plan).partition("\n")[0]


def load_theirs(folder: Path, precision: str) -> tuple[Callable[[Pairs], Sequence[float]], str]:
    """FlagEmbedding's scorer, and the transformers it runs on."""
    import transformers
    from FlagEmbedding import FlagLLMReranker

    reranker = FlagLLMReranker(
        str(folder), use_fp16=False, use_bf16=precision == "bf16", devices="cpu"
    )
    return reranker.compute_score, f"transformers {transformers.__version__}, {precision}"


LOADERS = {"ours": load_ours, "FlagEmbedding": load_theirs}


def peak_memory() -> int:
    """The most bytes this process has held: Linux's own count, which no parent's is mixed into."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def pairs(options: argparse.Namespace) -> Pairs:
    """One query with passages of so many tokens, each of other words."""
    sys.path.insert(0, str(ROOT))
    from tests.llm.tiny_tokenizers import WORDS

    words = [word for word in WORDS if word.isascii()]
    draw = np.random.default_rng(1)
    # the two tokens of the passage's own instruction, "B:" and a space, are among them
    return [
        (QUERY, " ".join(draw.choice(words, options.tokens - 2))) for _ in range(options.passages)
    ]


def write_gemma(folder: Path, options: argparse.Namespace) -> None:
    """A model folder in shards of one layer each."""
    sys.path.insert(0, str(ROOT))
    from safetensors.numpy import save_file

    from tests.llm.tiny_llms import GEMMA
    from tests.llm.tiny_tokenizers import write_gemma_tokenizer

    write_gemma_tokenizer(folder)
    size, heads = 256, options.hidden // 256
    config = {
        **GEMMA,
        "hidden_size": options.hidden,
        "intermediate_size": options.ffn,
        "num_hidden_layers": options.layers,
        "num_attention_heads": heads,
        "head_dim": size,
        "vocab_size": options.vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    draw = np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        # uniform, of the standard deviation 0.02 that such models begin with
        return (draw.random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32(0.07)

    hidden, ffn = options.hidden, options.ffn
    shards = [
        {
            "model.embed_tokens.weight": weight(options.vocabulary, hidden),
            "model.norm.weight": np.zeros(hidden, dtype=np.float32),
        }
    ]
    places: dict[str, str] = {}
    for number in range(-1, options.layers):
        prefix = f"model.layers.{number}."
        shard = (
            shards.pop()
            if number < 0
            else {
                f"{prefix}self_attn.q_proj.weight": weight(heads * size, hidden),
                f"{prefix}self_attn.k_proj.weight": weight(size, hidden),
                f"{prefix}self_attn.v_proj.weight": weight(size, hidden),
                f"{prefix}self_attn.o_proj.weight": weight(hidden, heads * size),
                f"{prefix}mlp.gate_proj.weight": weight(ffn, hidden),
                f"{prefix}mlp.up_proj.weight": weight(ffn, hidden),
                f"{prefix}mlp.down_proj.weight": weight(hidden, ffn),
                f"{prefix}input_layernorm.weight": np.zeros(hidden, dtype=np.float32),
                f"{prefix}post_attention_layernorm.weight": np.zeros(hidden, dtype=np.float32),
            }
        )
        file = f"model-{number + 2:05}-of-{options.layers + 1:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=1024, help="a multiple of 256")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--ffn", type=int, default=16384)
    parser.add_argument("--vocabulary", type=int, default=256_000)
    parser.add_argument("--passages", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=120, help="of each passage")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--only", choices=list(LOADERS))
    parser.add_argument("--reference-path", help="put before FlagEmbedding's PYTHONPATH")
    parser.add_argument("--contender", choices=list(LOADERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
