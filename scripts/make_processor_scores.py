"""Write tests/data/processors.json: raw scores that every other processor is held to.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv/bin/python scripts/make_processor_scores.py "AMD Zen 5"

The argument says which processor this is; the recorded one should have AVX-512 and VNNI.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Score once, write the table with a line for each row."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.processor_scores", folder]
        printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    rows = (
        f"  {json.dumps(row)}: {json.dumps(found)}" for row, found in json.loads(printed).items()
    )
    text = ",\n".join(rows)
    head = json.dumps(sys.argv[1])
    (ROOT / "tests" / "data" / "processors.json").write_text(
        f'{{\n "processor": {head},\n "rows": {{\n{text}\n }}\n}}\n', encoding="utf-8"
    )


if __name__ == "__main__":
    main()
