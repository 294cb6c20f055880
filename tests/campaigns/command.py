"""The command of every campaign: its size, its seed, and one line with what it counted."""

import argparse
import sys
from collections.abc import Callable, Mapping


def run_campaign(
    name: str, campaign: Callable[[int, int], Mapping[str, int]], *, size: int
) -> None:
    """Run a campaign of the size and seed that were asked for, and print its counts."""
    parser = argparse.ArgumentParser(description=f"The campaign {name}.")
    parser.add_argument("--size", type=int, default=size)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    counts = campaign(asked.size, asked.seed)
    said = ", ".join(f"{number:,} {what}" for what, number in counts.items())
    sys.stdout.write(f"{name}, size {asked.size:,}, seed {asked.seed}: {said}\n")
