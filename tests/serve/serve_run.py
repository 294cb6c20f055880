"""A served reranker as a process: PORT SETTINGS, at / and at /second, until its input ends.

The second one has a name of its own and needs no key.
"""

import json
import sys

import ray
from ray import serve

from bge_rerank_integrations.serve.app import ServeSettings, rerank_app


def main() -> None:
    port, settings = sys.argv[1:]
    ray.init(log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    given = json.loads(settings)
    serve.run(rerank_app(ServeSettings(**given)))
    given |= {"served_names": ["second"], "api_key_variable": None}
    serve.run(rerank_app(ServeSettings(**given)), name="second", route_prefix="/second")
    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    sys.stdout.write(f"up {node['NodeManagerAddress']}:{node['MetricsExportPort']}\n")
    sys.stdout.flush()
    sys.stdin.read()
    serve.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
