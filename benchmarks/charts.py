"""Charts of the stored results, as PNG: ours in orange, everybody else in greys and blues."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import OURS, OURS_BF16
from benchmarks.plan import PARTS

Parts = Mapping[str, Mapping[str, Any]]

OURS_COLORS = {OURS: "#d95f02", OURS_BF16: "#fdae6b"}
OTHERS = ("#1f4e79", "#6baed6", "#525252", "#969696", "#9e9ac8", "#41ab5d", "#bdbdbd", "#8c6d31")
WIDTH = 8.0


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture: its title, the parts it is of, and how it is drawn."""

    title: str
    parts: Sequence[str]
    draw: Callable[[Parts, Path], None]


def draw_charts(parts: Parts, stem: Path) -> dict[str, Path]:
    """Draw every chart that there are results for, as `stem-name.png`; returns files by name."""
    import matplotlib as mpl

    mpl.use("Agg")
    drawn = {}
    for name, chart in CHARTS.items():
        there = {part: parts[part] for part in chart.parts if part in parts}
        if any(has_rows(found) for found in there.values()):
            drawn[name] = stem.with_name(f"{stem.name}-{name}.png")
            chart.draw(there, drawn[name])
    return drawn


def has_rows(found: Mapping[str, Any]) -> bool:
    """Whether anybody is in a part's tables."""
    return any(
        any(table["rows"] for table in result.get("tables", ()))
        or result.get("callers")
        or result.get("starts")
        for result in found["results"]
    )


def tables_of(parts: Parts) -> list[tuple[str, Mapping[str, Any]]]:
    """Every table that has rows, with the part it is of."""
    return [
        (name, table)
        for name, found in parts.items()
        for result in found["results"]
        for table in result.get("tables", ())
        if table["rows"]
    ]


def color(name: str, number: int) -> str:
    """Ours has its own, the others take turns."""
    if name in OURS_COLORS:
        return OURS_COLORS[name]
    return OURS_COLORS[OURS] if "ours" in name else OTHERS[number % len(OTHERS)]


def short(number: float) -> str:
    """The number with three digits or more, and no exponent."""
    digits = 0 if number >= 100 else 1 if number >= 10 else 2
    return f"{number:,.{digits}f}"


def throughput(parts: Parts, file: Path) -> None:
    """Pairs per second: a panel for each table, a bar for each contender."""
    panels = [
        (f"{name}: {table['workload']}, {table['model']}", bars(table, "pairs_per_second", 1))
        for name, table in tables_of(parts)
    ]
    draw_bars(panels, "pairs per second", file, best="most")


def memory(parts: Parts, file: Path) -> None:
    """Peak memory: a bar for each contender."""
    panels = [
        (f"{table['workload']}, {table['model']}", bars(table, "peak_memory", 1e6))
        for _, table in tables_of(parts)
    ]
    draw_bars(panels, "peak MB of the process", file, best="least")


def bars(table: Mapping[str, Any], value: str, unit: float) -> dict[str, float]:
    """A number for each contender of a table."""
    return {name: row[value] / unit for name, row in table["rows"].items()}


def draw_bars(
    panels: Sequence[tuple[str, Mapping[str, float]]], label: str, file: Path, *, best: str
) -> None:
    """Horizontal bars, the best on top, with their numbers."""
    from matplotlib import pyplot as plt

    heights = [1.0 + 0.3 * len(values) for _, values in panels]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(WIDTH, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for (title, values), panel in zip(panels, axes[:, 0], strict=True):
        ordered = sorted(values.items(), key=lambda item: item[1], reverse=best == "least")
        shown = panel.barh(
            [name for name, _ in ordered],
            [value for _, value in ordered],
            color=[color(name, 3) for name, _ in ordered],
        )
        panel.bar_label(shown, fmt=short, padding=3)
        panel.margins(x=0.12)
        panel.set_title(title, loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(label)
    save(figure, file)


def curves(value: str, label: str, unit: float) -> Callable[[Parts, Path], None]:
    """What draws a value along the tables' axis, a line for each contender."""

    def draw(parts: Parts, file: Path) -> None:
        from matplotlib import pyplot as plt
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        tables = [table for _, table in tables_of(parts)]
        axis = tables[0]["axis"]
        figure, panel = plt.subplots(figsize=(WIDTH, 4.5), layout="constrained")
        names = list(dict.fromkeys(name for table in tables for name in table["rows"]))
        for number, name in enumerate(names):
            points = [
                (table["pairs" if axis == "passages" else "tokens"], table["rows"][name][value])
                for table in tables
                if name in table["rows"]
            ]
            xs = [x for x, _ in points]
            ys = [y / unit for _, y in points]
            panel.plot(xs, ys, marker="o", color=color(name, number), label=name)
        panel.set_xscale("log")
        ticks = sorted({table["pairs" if axis == "passages" else "tokens"] for table in tables})
        panel.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        panel.minorticks_off()
        if axis == "tokens":  # time grows with length, so that a linear scale hides one end
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
        else:
            panel.set_ylim(0, 1.15 * panel.dataLim.ymax)
        panel.set_xlabel("passages" if axis == "passages" else "tokens of a pair")
        panel.set_ylabel(label)
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
        save(figure, file)

    return draw


def callers(parts: Parts, file: Path) -> None:
    """Throughput and the slowest twentieth of answers: a column of panels for each model."""
    from matplotlib import pyplot as plt

    rows = [row for found in parts.values() for of in found["results"] for row in of["callers"]]
    models = list(dict.fromkeys(row["model"] for row in rows))
    shown = (("pairs_per_second", "pairs per second"), ("p95", "95th percentile, s"))
    figure, axes = plt.subplots(
        2, len(models), figsize=(WIDTH * 1.2, 6.5), squeeze=False, layout="constrained"
    )
    for column, model in enumerate(models):
        of_model = [row for row in rows if row["model"] == model]
        groups = list(dict.fromkeys(row["callers"] for row in of_model))
        names = list(dict.fromkeys(row["peer"] for row in of_model))
        for (value, label), panel in zip(shown, axes[:, column], strict=True):
            for number, name in enumerate(names):
                given = [row for row in of_model if row["peer"] == name and row[value] is not None]
                places = [groups.index(row["callers"]) + 0.8 * number / len(names) for row in given]
                heights = [row[value] for row in given]
                width = 0.75 / len(names)
                drawn = panel.bar(places, heights, width, color=color(name, number), label=name)
                panel.bar_label(drawn, fmt=short, padding=2, fontsize=7)
            middle = 0.4 - 0.4 / len(names)
            panel.set_xticks(
                [group + middle for group in range(len(groups))],
                [f"{group} callers" for group in groups],
            )
            panel.set_title(f"{label}, {model}", loc="left", fontsize=10)
            panel.margins(y=0.12)
            panel.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    save(figure, file)


def starts(parts: Parts, file: Path) -> None:
    """Where the time to the first score goes: a stacked bar for each contender."""
    from matplotlib import pyplot as plt

    [found] = parts.values()
    rows = sorted(found["results"][0]["starts"].items(), key=lambda item: -item[1]["total"])
    figure, panel = plt.subplots(figsize=(WIDTH, 1.2 + 0.35 * len(rows)), layout="constrained")
    names = [name for name, _ in rows]
    steps = {"import": "#1f4e79", "load": "#6baed6", "first": "#d95f02"}
    begun = [max(0.0, row["total"] - row["import"] - row["load"] - row["first"]) for _, row in rows]
    panel.barh(names, begun, color="#d9d9d9", label="Python itself")
    for step, shade in steps.items():
        label = "first score" if step == "first" else step
        panel.barh(names, [row[step] for _, row in rows], left=begun, color=shade, label=label)
        begun = [before + row[step] for before, (_, row) in zip(begun, rows, strict=True)]
    for place, (_, row) in enumerate(rows):
        panel.text(row["total"], place, f" {row['total']:.1f}", va="center")
    panel.margins(x=0.08)
    panel.set_xlabel("seconds")
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    save(figure, file)


def save(figure: Any, file: Path) -> None:
    """Write the picture, without the name and version of what drew it."""
    from matplotlib import pyplot as plt

    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


CHARTS = {
    "throughput": Chart("Pairs per second", ("marco", "rag", "large", "v2-m3", "mini"), throughput),
    "adapters": Chart("Pairs per second through adapters", ("LlamaIndex", "LangChain"), throughput),
    "candidates": Chart(
        "Pairs per second with the number of candidates",
        ("candidates",),
        curves("pairs_per_second", "pairs per second", 1),
    ),
    "length": Chart(
        "Pairs per second with length",
        ("length",),
        curves("pairs_per_second", "pairs per second", 1),
    ),
    "long": Chart(
        "Seconds for one passage up to 8,192 tokens",
        ("8,192 tokens",),
        curves("median", "seconds", 1),
    ),
    "memory": Chart("Peak memory", ("memory",), memory),
    "bounded-memory": Chart(
        "Peak memory with the number of passages",
        ("10,000 passages",),
        curves("peak_memory", "peak MB of the process", 1e6),
    ),
    "concurrency": Chart("Many callers at once", ("concurrency",), callers),
    "cold-start": Chart("From starting Python to the first score", ("cold start",), starts),
    "llm": Chart("Pairs per second of an LLM reranker", ("LLM",), throughput),
}
assert all(part in PARTS for chart in CHARTS.values() for part in chart.parts)
