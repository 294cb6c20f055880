"""Clients of other projects, unchanged, ask a served reranker: URL KEY MODEL.

Prints one line of JSON for each client: its name, and the score of each passage or an error. The
packages of clients.txt must come first on the path.
"""

import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

QUERY = "what is a panda?"
PASSAGES = ["Water boils at 100 degrees.", "The panda is a bear.", "A fox is red."]
Scores = dict[str, float]


def haystack_jina(url: str, key: str, model: str) -> Scores:
    kind = import_module("haystack_integrations.components.rankers.jina").JinaRanker
    ranker = kind(model=model, base_url=f"{url}/v1/rerank", api_key=secret(key), top_k=3)
    return of_haystack(ranker)


def haystack_cohere(url: str, key: str, model: str) -> Scores:
    kind = import_module("haystack_integrations.components.rankers.cohere").CohereRanker
    return of_haystack(kind(model=model, api_base_url=url, api_key=secret(key), top_k=3))


def secret(key: str) -> Any:
    return import_module("haystack.utils").Secret.from_token(key)


def of_haystack(ranker: Any) -> Scores:
    kind = import_module("haystack").Document
    found = ranker.run(query=QUERY, documents=[kind(content=text) for text in PASSAGES])
    return {document.content: document.score for document in found["documents"]}


def langchain_infinity(url: str, key: str, model: str) -> Scores:
    module = import_module("langchain_community.document_compressors.infinity_rerank")
    headers = {"Authorization": f"Bearer {key}"}
    client = import_module("infinity_client").Client(base_url=url, headers=headers)
    kind = import_module("langchain_core.documents").Document
    found = module.InfinityRerank(client=client, model=model).compress_documents(
        [kind(text) for text in PASSAGES], QUERY
    )
    return {one.page_content: one.metadata["relevance_score"] for one in found}


def llama_index_cohere(url: str, key: str, model: str) -> Scores:
    kind = import_module("llama_index.postprocessor.cohere_rerank").CohereRerank
    return of_llama_index(kind(api_key=key, model=model, base_url=url, top_n=3))


def llama_index_siliconflow(url: str, key: str, model: str) -> Scores:
    kind = import_module("llama_index.postprocessor.siliconflow_rerank").SiliconFlowRerank
    ranker = kind(api_key=key, model=model, base_url=f"{url}/v1/rerank", top_n=3)
    return of_llama_index(ranker)


def llama_index_xinference(url: str, key: str, model: str) -> Scores:
    kind = import_module("llama_index.postprocessor.xinference_rerank").XinferenceRerank
    # it sends no key, so it asks the application that needs none
    return of_llama_index(kind(base_url=f"{url}/second", model="second", top_n=3))


def llama_index_contextual(url: str, key: str, model: str) -> Scores:
    kind = import_module("llama_index.postprocessor.contextual_rerank").ContextualRerank
    return of_llama_index(kind(api_key=key, model=model, base_url=f"{url}/v1", top_n=3))


def llama_index_nvidia(url: str, key: str, model: str) -> Scores:
    kind = import_module("llama_index.postprocessor.nvidia_rerank").NVIDIARerank
    scores = of_llama_index(kind(api_key=key, model=model, base_url=f"{url}/v1", top_n=3))
    return {text: 1 / (1 + math.exp(-logit)) for text, logit in scores.items()}


def llama_index_mixedbread(url: str, key: str, model: str) -> Scores:
    os.environ["MIXEDBREAD_BASE_URL"] = url
    kind = import_module("llama_index.postprocessor.mixedbreadai_rerank").MixedbreadAIRerank
    return of_llama_index(kind(api_key=key, model=model, top_n=3))


def llama_index_voyage(url: str, key: str, model: str) -> Scores:
    kind = import_module("llama_index.postprocessor.voyageai_rerank").VoyageAIRerank
    ranker = kind(api_key=key, model=model, top_n=3)
    # its own client can be sent elsewhere, but the postprocessor has no option for it
    ranker._client = import_module("voyageai").Client(api_key=key, base_url=f"{url}/v1")
    return of_llama_index(ranker)


def of_llama_index(ranker: Any) -> Scores:
    schema = import_module("llama_index.core.schema")
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text)) for text in PASSAGES]
    return {
        one.node.get_content(): one.score
        for one in ranker.postprocess_nodes(nodes, query_str=QUERY)
    }


def mteb(url: str, key: str, model: str) -> Scores:
    kind = import_module("mteb.models.openai_wrappers").OpenAIAPIRerankWrapper
    # it lists the models without a key, so it asks the application that needs none
    ranker = kind(endpoint_url=f"{url}/second", model_name="second", api_key=key)
    scores = ranker._rerank(QUERY, PASSAGES)
    return dict(zip(PASSAGES, map(float, scores), strict=True))


def rerankers(provider: str, path: str) -> Callable[[str, str, str], Scores]:
    def ask(url: str, key: str, model: str) -> Scores:
        kind = import_module("rerankers.models.api_rankers").APIRanker
        ranker = kind(model, api_key=key, api_provider=provider, verbose=0, url=url + path)
        return {one.text: one.score for one in ranker.rank(QUERY, PASSAGES).results}

    return ask


def xinference(url: str, key: str, model: str) -> Scores:
    module = import_module("xinference_client.client.restful.restful_client")
    headers = {"Authorization": f"Bearer {key}"}
    found = module.RESTfulRerankModelHandle(model, url, headers).rerank(PASSAGES, QUERY)
    return {PASSAGES[one["index"]]: one["relevance_score"] for one in found["results"]}


def litellm(
    provider: str, path: str, *, return_documents: bool = True
) -> Callable[[str, str, str], Scores]:
    def ask(url: str, key: str, model: str) -> Scores:
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
        found = import_module("litellm").rerank(
            model=f"{provider}/{model}",
            query=QUERY,
            documents=PASSAGES,
            top_n=3,
            return_documents=return_documents,
            api_base=url + path,
            api_key=key,
        )
        return {PASSAGES[one["index"]]: one["relevance_score"] for one in found.results}

    return ask


CLIENTS: dict[str, Callable[[str, str, str], Scores]] = {
    "Haystack, Jina": haystack_jina,
    "Haystack, Cohere": haystack_cohere,
    "LangChain, Infinity": langchain_infinity,
    "LlamaIndex, Cohere": llama_index_cohere,
    "LlamaIndex, SiliconFlow": llama_index_siliconflow,
    "LlamaIndex, Xinference": llama_index_xinference,
    "LlamaIndex, Contextual": llama_index_contextual,
    "LlamaIndex, NVIDIA": llama_index_nvidia,
    "LlamaIndex, Mixedbread": llama_index_mixedbread,
    "LlamaIndex, Voyage": llama_index_voyage,
    "mteb": mteb,
    "rerankers, Jina": rerankers("jina", "/v1/rerank"),
    "rerankers, Cohere": rerankers("cohere", "/v1/rerank"),
    "rerankers, TEI": rerankers("text-embeddings-inference", "/rerank"),
    "Xinference": xinference,
    "LiteLLM, Cohere": litellm("cohere", "/v2/rerank"),
    "LiteLLM, Jina": litellm("jina_ai", "/v1/rerank"),
    # Infinity returns a text where Jina and vLLM return {"text": ...}
    "LiteLLM, Infinity": litellm("infinity", "", return_documents=False),
    "LiteLLM, vLLM": litellm("hosted_vllm", ""),
    "LiteLLM, TEI": litellm("huggingface", ""),
}


def main() -> None:
    asked = sys.argv[1:]
    for name, client in CLIENTS.items():
        try:
            answer: Scores | str = client(*asked)
        except Exception:  # noqa: BLE001 - the test reports it
            answer = traceback.format_exc()
        sys.stdout.write(json.dumps([name, answer]) + "\n")


if __name__ == "__main__":
    main()
