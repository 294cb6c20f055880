"""From the stored results to tables and charts.

    python -m benchmarks.report

Writes each machine's report and charts beside its JSON in benchmarks/results, and the lines between
`<!-- results -->` and `<!-- end -->` in docs/speed.md: each machine with its summary table. No
number there is typed by hand.
"""

import argparse
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.charts import CHARTS, draw_charts
from benchmarks.plan import PARTS
from benchmarks.results import RESULTS, stored
from benchmarks.tables import markdown_table, or_dash, part_tables, summary_table

__all__ = ["describe_machine", "fill", "markdown_table", "write_reports"]

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "speed.md"
REGION = re.compile(r"(<!-- results -->\n).*?(<!-- end -->)", re.DOTALL)
QUIET = 0.05
"""Share of the processor's time from which on other work is in the numbers."""
SUMMARY = CHARTS["throughput"].parts

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

ABOUT = """\
Random weights of the true shapes, everybody with their own defaults and in a process of their own,
taking turns; medians. *times ours*: how many times as long as the first of ours in that race.
*of peak*: the model's arithmetic over the fastest matrix product that the machine does in that
number format. *error*: the largest difference of a score from the reference's, where logits spread
by 2.4; *tau*: agreement of the order. Ratios below about 1.15 are ties."""


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


def write_reports(folder: Path) -> list[Path]:
    """Markdown and charts for every machine's results in the folder; returns the files."""
    written = []
    for file, parts in stored(folder).items():
        charts = draw_charts(parts, file.with_suffix(""))
        report = file.with_suffix(".md")
        report.write_text(as_markdown(parts, charts), encoding="utf-8")
        written += [file, report, *charts.values()]
    return written


def as_markdown(parts: Mapping[str, Mapping[str, Any]], charts: Mapping[str, Path]) -> str:
    """One machine's whole report."""
    texts = ["# Races", ABOUT, machine_lines(parts), summary_table(parts, SUMMARY)]
    texts += [
        f"## {name}: {part.title}\n\n{part_tables(parts[name])}"
        for name, part in PARTS.items()
        if name in parts
    ]
    texts += [f"## {CHARTS[name].title}\n\n![]({file.name})" for name, file in charts.items()]
    return "\n\n".join(text for text in texts if text) + "\n"


def _ends(numbers: Sequence[float]) -> list[str]:
    """The smallest and the largest, once if they look alike."""
    return list(dict.fromkeys(f"{end:,.0f}" for end in (min(numbers), max(numbers))))


def machine_lines(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """What the parts were run on, when, and with which versions."""
    machines = [found["machine"] for found in parts.values()]
    last = max(machines, key=lambda machine: machine["date"])
    dates = sorted({machine["date"][:10] for machine in machines})
    peaks = [found["peak"] for found in parts.values()]
    rates = ", ".join(
        f"{kind} {' to '.join(rates)} GFLOP/s"
        for kind in dict.fromkeys(kind for peak in peaks for kind in peak)
        if (rates := _ends([peak[kind] / 1e9 for peak in peaks if kind in peak]))
    )
    versions = ", ".join(
        f"{package} {'/'.join(numbers)}"
        for package in PACKAGES
        if (numbers := sorted({str(machine["versions"].get(package)) for machine in machines}))
    )
    where = f"{last['processor']}, {last['cores']} cores, {last['system']}, Python {last['python']}"
    lines = [
        f"- {where}; {' and '.join(dates)}",
        f"- fastest matrix products: {rates}",
        f"- {versions}",
    ]
    busy = [
        f"{name} ({or_dash(found['others'], '{:.0%}')})"
        for name, found in parts.items()
        if found["others"] is None or found["others"] > QUIET
    ]
    if busy:
        lines.append(
            f"- not quiet, with others' share of the processor (-: not known): {', '.join(busy)}"
        )
    return "\n".join(lines)


def fill(document: str, results: Mapping[Path, Mapping[str, Any]], to_results: str) -> str:
    """The document with each machine's lines, summary table and link to its report.

    `to_results` is the path from the document to the folder with the reports.
    """
    blocks = []
    for file, parts in results.items():
        blocks += [
            machine_lines(parts),
            summary_table(parts, SUMMARY),
            f"All results: [{file.stem}.md]({to_results}/{file.stem}.md)",
        ]
    text = "\n\n".join(block for block in blocks if block)
    return REGION.sub(lambda region: f"{region[1]}\n{text}\n\n{region[2]}", document)


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


def main() -> None:
    """Write the reports and the document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    asked = parser.parse_args()
    for file in write_reports(asked.results):
        print(file)
    to_results = os.path.relpath(asked.results, asked.document.parent)
    text = asked.document.read_text(encoding="utf-8")
    asked.document.write_text(fill(text, stored(asked.results), to_results), encoding="utf-8")
    print(asked.document)


if __name__ == "__main__":
    main()
