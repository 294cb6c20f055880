"""The stored results: a JSON file for each machine, with a place for each part of the programme."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def save_part(name: str, found: Mapping[str, Any], folder: Path) -> Path:
    """Put a part's results into the machine's file, in place of older ones; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{slug(found['machine'])}.json"
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"] if file.is_file() else {}
    parts[name] = found
    text = json.dumps({"parts": parts}, indent=1)
    # short lists, such as the seconds of all turns, on one line
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda list_: f"[{' '.join(list_[1].split())}]", text)
    partial = file.with_suffix(".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(file)
    return file


def slug(machine: Mapping[str, Any]) -> str:
    """A name for the machine's files."""
    words = f"{machine['processor']} {machine['cores']} cores".lower()
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def stored(folder: Path) -> dict[Path, dict[str, Any]]:
    """The parts in every file of the folder that is one of ours, by file."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        results = json.loads(file.read_text(encoding="utf-8"))
        if "parts" in results:
            found[file] = results["parts"]
    return found
