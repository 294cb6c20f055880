"""Other libraries' reranker classes on this engine: change the import and nothing else.

`drop_in.llama_index` has `SentenceTransformerRerank` and `FlagEmbeddingReranker`,
`drop_in.langchain` has `HuggingFaceCrossEncoder` and `CrossEncoderReranker`. They take the
originals' arguments, follow or refuse each of them, and give the originals' scores. They differ
where the originals lose something: inputs are not changed, scores are kept as Python floats, and
a model that cannot be scored correctly is an error. docs/migrating.md has the whole list.
"""
