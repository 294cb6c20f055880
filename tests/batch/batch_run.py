"""A run as a process of its own, so that it can be killed: INPUT OUTPUT LOADER OPTIONS.

OPTIONS is JSON; "gate" goes to the loader; "forget" drops a worker's arguments once it has started,
so that Ray cannot restart it. Prints as JSON the report, or the error's class and message.
"""

import importlib
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
    if options.pop("forget", False):
        forget_arguments()
    load = cast(Any, partial(LOADERS[loader], options.pop("gate", None)))
    try:
        report = rerank_files(source, output, load=load, **options)
    except RerankError as error:
        sys.stdout.write(json.dumps({"error": type(error).__name__, "message": str(error)}))
    else:
        sys.stdout.write(json.dumps(asdict(report)))


def forget_arguments() -> None:
    """Make Ray Data drop its references to what it passes to a worker, right after it has."""
    operator = importlib.import_module(
        "ray.data._internal.execution.operators.actor_pool_map_operator"
    ).ActorPoolMapOperator
    start = operator._start_actor

    def start_and_forget(self: Any, *arguments: Any) -> Any:
        started = start(self, *arguments)
        del self.__dict__["_map_transformer_ref"]
        return started

    operator._start_actor = start_and_forget


if __name__ == "__main__":
    main()
