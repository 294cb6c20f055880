"""A reranker served by Ray Serve, and LangChain's own Cohere client asking it.

python examples/ray_serve_langchain.py "When was oxygen named?"
"""

import os
import secrets
import socket

import ray
from first_stage import arguments, choose_model, open_first_stage
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from pydantic import SecretStr
from ray import serve

from bge_rerank_integrations.ray_serve import ServeSettings, rerank_app

KEY_VARIABLE = "RERANK_SERVE_KEY"


def free_port() -> int:
    """A port that nobody listens at; a real service has one of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def main() -> None:
    """Serve, ask one question, print what came back, and end the service."""
    parser = arguments("Ask a served reranker with the client that LangChain has for Cohere.")
    parser.add_argument(
        "question", nargs="?", default="What researcher first used the word oxygen ?"
    )
    options = parser.parse_args()
    model = choose_model(options.model)
    # the replicas, which this process starts, find the key in their environment
    key = os.environ.setdefault(KEY_VARIABLE, secrets.token_hex(16))
    port = free_port()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = ServeSettings(
        model=model, served_names=("our-reranker",), api_key_variable=KEY_VARIABLE
    )
    serve.run(rerank_app(settings))

    client = CohereRerank(
        base_url=f"http://127.0.0.1:{port}",
        cohere_api_key=SecretStr(key),
        model="our-reranker",
        top_n=3,
    )
    (found,) = open_first_stage(options.first_stage).candidates([options.question], 20)
    documents = [Document(passage.text, id=passage.id) for passage, _ in found]
    print(f"\n{options.question}")
    for document in client.compress_documents(documents, options.question):
        print(f"  {document.metadata['relevance_score']:.4f}  {document.page_content}")

    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


if __name__ == "__main__":
    main()
