"""One start of a contender, in a process that imports as little else as it can.

python -m benchmarks.first_score "ours fp32" FOLDER     as JSON
"""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

from benchmarks.peers import Unavailable
from benchmarks.plan import EVERYONE
from benchmarks.worker import put_packages_first, silence

PAIR = ("What is a panda?", "A bear that eats bamboo.")


def main() -> None:
    """Print the seconds that import, load and the first pair take, and when that was done."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("peer", choices=EVERYONE)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    peer = EVERYONE[asked.peer]
    silence()
    try:
        put_packages_first(asked.peer)
        times = [time.monotonic()]
        importlib.import_module(peer.module)
        times.append(time.monotonic())
        score = peer.load(asked.folder)
    except (ModuleNotFoundError, Unavailable) as error:
        print(json.dumps({"problem": str(error)}))
        return
    times.append(time.monotonic())
    score([PAIR])
    times.append(time.monotonic())
    steps = {
        name: later - earlier
        for name, earlier, later in zip(
            ("import", "load", "first"), times[:-1], times[1:], strict=True
        )
    }
    # a clock that all processes share, so that whoever started this one can tell how long it took
    print(json.dumps(steps | {"modules": len(sys.modules), "at": times[-1]}))


if __name__ == "__main__":
    main()
