"""A reranker as an HTTP service on Ray Serve."""
