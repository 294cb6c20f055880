"""A reranker served by Ray Serve, called by LangChain's own Cohere client.

    python examples/ray_serve_langchain.py "When was oxygen named?"

It prints the three best of twenty candidates with their scores. Only the address and the key of the
Cohere client were changed.
"""

from first_stage import arguments, choose_model, open_first_stage
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from pydantic import SecretStr
from rerank_server import serving


def main() -> None:
    """Serve, ask one question, print the results, and end the service."""
    parser = arguments("Ask a served reranker with the client that LangChain has for Cohere.")
    parser.add_argument(
        "question", nargs="?", default="What researcher first used the word oxygen ?"
    )
    options = parser.parse_args()
    (found,) = open_first_stage(options.first_stage).candidates([options.question], 20)
    documents = [Document(passage.text, id=passage.id) for passage, _ in found]
    with serving(choose_model(options.model), "our-reranker") as server:
        client = CohereRerank(
            base_url=server.url,
            cohere_api_key=SecretStr(server.key),
            model="our-reranker",
            top_n=3,
        )
        ranked = client.compress_documents(documents, options.question)
    print(f"\n{options.question}")
    for document in ranked:
        print(f"  {document.metadata['relevance_score']:.4f}  {document.page_content}")


if __name__ == "__main__":
    main()
