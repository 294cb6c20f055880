"""The stored results of one part as Markdown tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def part_tables(found: Mapping[str, Any]) -> str:
    """All tables of a part, and who is left out of them and why."""
    texts = [
        write(result)
        for result in found["results"]
        for kind, write in KINDS.items()
        if kind in result
    ]
    left_out = {
        name: why for result in found["results"] for name, why in result["left_out"].items()
    }
    if left_out:
        texts.append("\n".join(f"- {name} is left out: {why}" for name, why in left_out.items()))
    return "\n\n".join(text for text in texts if text)


def race_table(result: Mapping[str, Any]) -> str:
    """Every contender on every text, the fastest first."""
    body = []
    versions: dict[str, None] = {}
    for table in result["tables"]:
        rows = sorted(table["rows"].items(), key=lambda item: item[1]["median"])
        for name, row in rows:
            body.append(
                [
                    table["workload"],
                    name,
                    f"{row['median']:.3f}",
                    f"{row['pairs_per_second']:.1f}",
                    or_dash(row["times_ours"], "{:.2f}"),
                    or_dash(row["share_of_peak"], "{:.0%}"),
                    megabytes(row["loaded_memory"]),
                    megabytes(row["peak_memory"]),
                    or_dash(row["largest_error"], "{:.1e}"),
                    or_dash(row["tau"], "{:.4f}"),
                    str(len(row["seconds"])),
                ]
            )
            if row["versions"]:
                runs_on = ", ".join(f"{package} {of}" for package, of in row["versions"].items())
                versions[f"{name} runs on {runs_on}."] = None
    if not body:
        return ""
    columns = ["", "", "s", "pairs/s", "times ours", "of peak", "loaded MB", "peak MB"]
    columns += ["error", "tau", "turns"]
    if len({row[0] for row in body}) == 1:
        about = f"{body[0][0]}, each pair {result['tables'][0]['tokens']:.0f} tokens on average."
        body, columns = [row[1:] for row in body], columns[1:]
        versions = {about: None} | versions
    return "\n\n".join([*([" ".join(versions)] if versions else []), markdown_table(columns, body)])


def callers_table(result: Mapping[str, Any]) -> str:
    """Many callers at once, the most answers first."""
    rows = sorted(result["callers"], key=lambda row: (row["callers"], -row["pairs_per_second"]))
    body = [
        [
            row["model"],
            str(row["callers"]),
            row["peer"],
            f"{row['pairs_per_second']:.1f}",
            or_dash(row["p50"], "{:.3f}"),
            or_dash(row["p95"], "{:.3f}"),
            f"{row['wrong']} of {row['requests']}",
            f"{row['failed']}" + (f" ({row['problem']})" if row["problem"] else ""),
        ]
        for row in rows
    ]
    columns = ["", "callers", "", "pairs/s", "p50 s", "p95 s", "wrong answers", "failed"]
    return markdown_table(columns, body) if body else ""


def starts_table(result: Mapping[str, Any]) -> str:
    """From starting Python to the first score."""
    steps = ("import", "load", "first", "total")
    body = [
        [name, *(f"{of[step]:.2f}" for step in steps), f"{of['modules']:,.0f}"]
        for name, of in sorted(result["starts"].items(), key=lambda item: item[1]["total"])
    ]
    columns = ["", "import s", "load s", "first score s", "total s", "modules"]
    return markdown_table(columns, body) if body else ""


def overhead_table(result: Mapping[str, Any]) -> str:
    """What our adapters take on top of scoring."""
    body = [
        [
            name,
            f"{1000 * row['alone']:.2f}",
            f"{row['scoring']:.3f}",
            f"{row['share']:.2%}",
            f"{row['with_adapter'] / row['scoring']:.3f}",
        ]
        for name, row in result["overhead"].items()
    ]
    columns = ["", "adapter alone ms", "scoring s", "share", "raced: with / without"]
    return markdown_table(columns, body) if body else ""


KINDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "tables": race_table,
    "callers": callers_table,
    "starts": starts_table,
    "overhead": overhead_table,
}


def summary_table(parts: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """How many times as long as ours the others took, a line for each of the parts."""
    tables = [
        (part, table)
        for part in names
        if part in parts
        for result in parts[part]["results"]
        for table in result["tables"]
        if table["rows"]
    ]
    peers = list(dict.fromkeys(name for _, table in tables for name in table["rows"]))
    ours = [name for name in peers if name.startswith("ours")]
    others = [name for name in peers if name not in ours]
    body = [
        [
            f"{table['model']}: {table['workload']}",
            *(rate(table["rows"].get(name)) for name in ours),
            *(times(table["rows"].get(name)) for name in others),
        ]
        for _, table in tables
    ]
    columns = ["", *(f"{name}, pairs/s" for name in ours), *others]
    return markdown_table(columns, body) if body else ""


def rate(row: Row | None) -> str:
    """Pairs per second, with the share of the peak."""
    if row is None:
        return "-"
    share = row["share_of_peak"]
    return f"{row['pairs_per_second']:.1f}" + ("" if share is None else f" ({share:.0%} of peak)")


def times(row: Row | None) -> str:
    """How many times as long as ours."""
    return "-" if row is None else or_dash(row["times_ours"], "{:.1f}x")


def markdown_table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Rows of cells between bars."""
    rows = [columns, ["---"] * len(columns), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def megabytes(size: int | None) -> str:
    """Bytes as MB; a dash where they were not measured."""
    return "-" if size is None else f"{size / 1e6:,.0f}"


def or_dash(number: float | None, form: str) -> str:
    """The number in this form, or a dash where there is none."""
    return "-" if number is None else form.format(number)
