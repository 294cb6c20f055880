"""A race's results as JSON for programs, Markdown for readers and a chart."""

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "bge-rerank-integrations",
    "torch",
    "tokenizers",
    "transformers",
    "sentence-transformers",
    "FlagEmbedding",
    "onnxruntime",
    "rerankers",
    "llama-index-core",
    "llama-index-postprocessor-sbert-rerank",
    "llama-index-postprocessor-flag-embedding-reranker",
    "langchain-core",
    "langchain-classic",
    "langchain-community",
)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, versions, date, and how busy the machine is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        "versions": {name: _version(name) for name in PACKAGES},
    }


def write_report(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the three files, named by date and processor; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = results["machine"]
    slug = re.sub(r"[^a-z0-9]+", "-", machine["processor"].lower()).strip("-")
    stem = folder / f"{machine['date'][:10]}-{slug}"
    files = [stem.with_name(stem.name + suffix) for suffix in (".json", ".md", ".png")]
    files[0].write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    files[1].write_text(as_markdown(results, files[2].name), encoding="utf-8")
    draw_chart(results, files[2])
    return files


def as_markdown(results: Mapping[str, Any], chart: str) -> str:
    """The whole report as text with tables."""
    machine = results["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    peak = ", ".join(f"{kind} {rate / 1e9:.0f} GFLOP/s" for kind, rate in results["peak"].items())
    about = (
        "Random weights of the true shapes; every contender with its own defaults, in a process of "
        "its own, taking turns; medians. 'x ours' is how many times as long it took as the first "
        "of ours in that race; the error is the largest difference of scores to the library "
        "that ours is compared with, on the contender's own scale; below about 1.15 is a tie."
    )
    setting = (
        f"{machine['system']}, Python {machine['python']}, load at the start {machine['load']:.2f}."
        f"\nFastest matrix product: {peak}.\n{packages}."
    )
    parts = [
        f"# Races of {machine['date'][:10]} on {machine['processor']}, {machine['cores']} cores",
        about,
        setting,
        f"![pairs per second]({chart})",
        *(race_table(table) for table in results["races"]),
    ]
    if rows := results.get("concurrency"):
        parts.append(concurrency_table(rows))
    if cold := results.get("cold start"):
        parts.append(cold_table(cold))
    if left_out := results["left_out"]:
        lines = [f"- {name}: {why}" for name, why in left_out.items()]
        parts.append("\n".join(["## Left out", "", *lines]))
    return "\n\n".join(parts) + "\n"


def race_table(table: Mapping[str, Any]) -> str:
    """One workload's contenders, the fastest first."""
    rows = sorted(table["rows"].items(), key=lambda item: item[1]["median"])
    head = f"## {table['section']}: {table['workload']}, {table['model']}"
    about = (
        f"{table['pairs']} pairs of {table['tokens']:.0f} tokens with question and control tokens; "
        f"rounds: {table['rounds']}."
    )
    body = [
        [
            name,
            f"{row['median']:.3f}",
            f"{row['pairs_per_second']:.1f}",
            _or_dash(row["times_ours"], "{:.2f}"),
            f"{100 * row['share_of_peak']:.0f}%",
            f"{row['peak_memory'] / 1e6:.0f}",
            _or_dash(row.get("largest_error"), "{:.1e}"),
            _or_dash(row.get("tau"), "{:.4f}"),
        ]
        for name, row in rows
    ]
    columns = ["", "s", "pairs/s", "x ours", "of peak", "peak MB", "error", "tau"]
    return "\n\n".join([head, about, markdown_table(columns, body)])


def concurrency_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Many callers at once."""
    body = [
        [
            str(row["callers"]),
            row["peer"],
            f"{row['pairs_per_second']:.1f}",
            _or_dash(row["p50"], "{:.3f}"),
            _or_dash(row["p95"], "{:.3f}"),
            f"{row['wrong']} of {row['requests']}",
            row["problem"] or "none",
        ]
        for row in rows
    ]
    columns = ["callers", "", "pairs/s", "p50 s", "p95 s", "wrong answers", "error"]
    about = "Requests of 10 passages; wrong answers differ from those the same request gets alone."
    return "\n\n".join(["## Concurrency", about, markdown_table(columns, body)])


def cold_table(cold: Mapping[str, Mapping[str, float]]) -> str:
    """From starting Python to the first score."""
    steps = ("import", "load", "first", "total")
    body = [
        [name, *(f"{of[step]:.2f}" for step in steps), f"{of['modules']:.0f}"]
        for name, of in sorted(cold.items(), key=lambda item: item[1]["total"])
    ]
    columns = ["", "import s", "load s", "first score s", "total s", "modules"]
    about = "Fresh processes with the files in the system's cache; the total includes Python's own."
    return "\n\n".join(["## Cold start", about, markdown_table(columns, body)])


def markdown_table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Rows of cells between bars."""
    rows = [columns, ["---"] * len(columns), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw_chart(results: Mapping[str, Any], file: Path) -> None:
    """Pairs per second: a panel for each workload that more than three took part in."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    tables = [table for table in results["races"] if len(table["rows"]) > 3]
    tables = tables or results["races"]
    if not tables:
        return
    figure, panels = plt.subplots(len(tables), 1, figsize=(8, 2.6 * len(tables)), squeeze=False)
    for table, axes in zip(tables, panels[:, 0], strict=True):
        rows = sorted(table["rows"].items(), key=lambda item: item[1]["median"], reverse=True)
        names = [name for name, _ in rows]
        rates = [row["pairs_per_second"] for _, row in rows]
        colors = ["tab:orange" if "ours" in name else "tab:gray" for name in names]
        bars = axes.barh(names, rates, color=colors)
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.margins(x=0.12)
        axes.set_title(f"{table['section']}: {table['workload']}, {table['model']}")
        axes.set_xlabel("pairs per second")
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _or_dash(number: float | None, form: str) -> str:
    return "-" if number is None else form.format(number)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found is not None:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
