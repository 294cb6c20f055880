"""The servers there are, as values: each with the command that its documents give."""

import json
from pathlib import Path

from tests.servers.serving import KEY, MODEL, Kind, post


def _llama_cpp(folder: Path, model: Path, port: int) -> list[str]:
    # started by the C library that it was built with, which may be newer than this system's
    (loader,) = (folder / "usr/lib").glob("*-linux-gnu*/ld-linux-*.so.*")
    libraries = [loader.parent, loader.parent / "llama"]
    return [
        *(str(loader), "--library-path", ":".join(map(str, libraries))),
        *(str(folder / "usr/bin/llama-server"), "--model", str(model), "--reranking"),
        *("--host", "127.0.0.1", "--port", str(port), "--api-key", KEY),
        *("--threads", "1", "--parallel", "2", "--ctx-size", "1024"),
    ]


def _infinity(folder: Path, model: Path, port: int) -> list[str]:
    return [
        *(str(folder / "bin/infinity_emb"), "v2", "--model-id", str(model)),
        *("--served-model-name", MODEL, "--engine", "torch", "--device", "cpu"),
        *("--host", "127.0.0.1", "--port", str(port), "--api-key", KEY),
        *("--no-bettertransformer", "--no-model-warmup"),
    ]


def _vllm(folder: Path, model: Path, port: int) -> list[str]:
    return [
        *(str(folder / "bin/vllm"), "serve", str(model), "--served-model-name", MODEL),
        *("--dtype", "float32", "--max-model-len", "512", "--enforce-eager"),
        *("--host", "127.0.0.1", "--port", str(port), "--api-key", KEY),
    ]


def _xinference(folder: Path, model: Path, port: int) -> list[str]:
    return [str(folder / "bin/xinference-local"), "--host", "127.0.0.1", "--port", str(port)]


def _launch_in_xinference(url: str, model: Path) -> None:
    described = {
        "version": 2,
        "model_name": MODEL,
        "type": "normal",
        "max_tokens": 512,
        "language": ["en"],
        "model_specs": [
            {"model_format": "pytorch", "model_uri": model.as_uri(), "quantization": "none"}
        ],
    }
    for path, body in (
        ("/v1/model_registrations/rerank", {"model": json.dumps(described), "persist": False}),
        (
            "/v1/models",
            {
                "model_uid": MODEL,
                "model_name": MODEL,
                "model_type": "rerank",
                "model_engine": "sentence_transformers",
            },
        ),
    ):
        status, answer = post(url + path, body)
        if status != 200:
            raise RuntimeError(f"Xinference answered {status} to {path}: {answer}")


LLAMA_CPP = Kind(
    name="llama.cpp",
    dialect="llama.cpp",
    command=_llama_cpp,
    # it looks for its arithmetic, one library for each kind of CPU, where it is started
    started_in="usr/lib/*/ggml/backends*",
    recognised_as="llama.cpp",
    takes_gguf=True,
)
INFINITY = Kind(name="infinity", dialect="infinity", recognised_as="infinity", command=_infinity)
VLLM = Kind(
    name="vllm",
    dialect="vllm",
    recognised_as="vllm-score",
    command=_vllm,
    environment={
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
    },
)
XINFERENCE = Kind(
    name="xinference",
    dialect="xinference",
    recognised_as="xinference",
    command=_xinference,
    health="/v1/cluster/auth",
    launch=_launch_in_xinference,
    checks_key=False,
    environment={
        "XINFERENCE_AUTH_ADVANCED": "0",
        "XINFERENCE_ENABLE_VIRTUAL_ENV": "0",
        "XINFERENCE_HOME": "{log}.home",
    },
)

KINDS = (LLAMA_CPP, INFINITY, VLLM, XINFERENCE)
