"""A run as a process of its own, so that it can be killed: INPUT OUTPUT LOADER OPTIONS.

OPTIONS is JSON; "gate" goes to the loader. Prints as JSON the report, or the error's class and
message.
"""

import json
import sys
from dataclasses import asdict
from functools import partial
from typing import Any, cast

from bge_rerank_integrations.batch.run import Columns, rerank_files
from bge_rerank_integrations.errors import RerankError
from tests.batch.scorers import LOADERS


def main() -> None:
    source, output, loader, given = sys.argv[1:]
    options: dict[str, Any] = json.loads(given)
    if "columns" in options:
        options["columns"] = Columns(**options["columns"])
    load = cast(Any, partial(LOADERS[loader], options.pop("gate", None)))
    try:
        report = rerank_files(source, output, load=load, **options)
    except RerankError as error:
        sys.stdout.write(json.dumps({"error": type(error).__name__, "message": str(error)}))
    else:
        sys.stdout.write(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
