"""Other libraries' reranker classes on this engine: change the import and nothing else.

`drop_in.llama_index` has `SentenceTransformerRerank` and `FlagEmbeddingReranker`,
`drop_in.langchain` has `HuggingFaceCrossEncoder` and `CrossEncoderReranker`. They take the
originals' arguments, and honour each or refuse it; they give the originals' scores. They differ
where the originals lose something: inputs are left as they are, scores are kept and are Python
floats, and a model that cannot be scored right is an error. docs/migrating.md has the whole list.
"""
