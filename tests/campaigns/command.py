"""The command of every campaign: its size, its seed, and one line with what it counted."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping

_end = math.inf


def run_campaign(name: str, campaign: Callable[..., Mapping[str, int]], *, size: int) -> None:
    """Run a campaign of the size and seed that were asked for, and print its counts."""
    global _end
    parser = argparse.ArgumentParser(description=f"The campaign {name}.")
    parser.add_argument("--size", type=int, default=size)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="start nothing more after this long"
    )
    parser.add_argument(
        "names", nargs="*", help="its models or protocols, where it has several; by default all"
    )
    asked = parser.parse_args()
    _end = time.monotonic() + 60 * asked.minutes
    counts = campaign(asked.size, asked.seed, *asked.names)
    said = ", ".join(f"{number:,} {what}" for what, number in counts.items())
    sys.stdout.write(f"{name}, size {asked.size:,}, seed {asked.seed}: {said}\n")


def time_is_up() -> bool:
    """Whether a campaign that was given minutes should start nothing more."""
    return time.monotonic() > _end
